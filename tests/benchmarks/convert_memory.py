"""Time and peak memory of `convert` on a model of published sizes with random weights.

Run: python tests/benchmarks/convert_memory.py wan2.1-t2v-1.3b FOLDER   (needs twice the model's size there)
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from wan_published import write_published

from sora_jax.config.schema import MeshSettings, TextSettings
from sora_jax.core.mesh import make_mesh
from sora_jax.interop.streaming import Entry, write_tensors
from sora_jax.interop.tables import foreign_shapes
from sora_jax.interop.tensors import DTYPES
from sora_jax.interop.wan import configs as wan_configs
from sora_jax.interop.wan import tables as wan
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT
from sora_jax.models.text_encoder import TextEncoder


def write_random(folder: pathlib.Path, table, module_class, settings, dtype: str, config: dict):
    """A part of a model with random weights, written tensor by tensor."""
    shapes = foreign_shapes(table, module_class, settings)
    entries = [Entry(name, shape, dtype) for name, shape in shapes.items()]
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    arrays = (draw.standard_normal(e.shape, np.float32).astype(DTYPES[dtype]) for e in entries)
    write_tensors(folder / "model.safetensors", entries, arrays)
    (folder / "config.json").write_text(json.dumps(config))


def main(name: str, folder: pathlib.Path):
    source, target = folder / "published", folder / "workdir"
    settings = wan.TRANSFORMERS[name]
    coder = wan.WAN22_AUTOENCODER if settings.channels == 48 else wan.WAN21_AUTOENCODER
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        write_published(source, "bfloat16")
        table = wan.transformer_table(settings)
        config = wan_configs.transformer_config(settings)
        write_random(source / "transformer", table, DiT, settings, "BF16", config)
        table, config = wan.autoencoder_table(coder), wan_configs.autoencoder_config(coder)
        write_random(source / "vae", table, Autoencoder, coder, "F32", config)
        text = json.loads((source / "text_encoder" / "config.json").read_text()) | {"d_model": 4096}
        path = source / "text_encoder" / "config.json"
        path.write_text(json.dumps(text))
        text_settings: TextSettings = wan_configs.text_settings(path, "")
        table = wan.text_table(text_settings)
        write_random(source / "text_encoder", table, TextEncoder, text_settings, "BF16", text)
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    began = time.monotonic()
    start = "import sys; from sora_jax.cli.main import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", start, "convert", f"--from={source}", f"--to={target}"], check=True)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    rate, gib = seconds / size * 1e9, peak / 2**30
    print(f"{name}: {size / 1e9:.2f} GB in {seconds:.1f} s, {rate:.1f} s a GB, peak {gib:.2f} GiB")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
