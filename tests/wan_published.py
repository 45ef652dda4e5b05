"""A small pipeline with random weights, in the folders and files that diffusers publishes."""

import dataclasses
import json
import pathlib

import jax
import safetensors.numpy
import tiny
from wan_cases import CASES, IMAGE, TEXT, TRANSFORMERS, random_tensors

from sora_jax.data.tokenizer import train_tokenizer
from sora_jax.interop.tables import foreign_shapes
from sora_jax.interop.wan import configs as wan_configs
from sora_jax.interop.wan.tables import autoencoder_table, image_table, text_table, transformer_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.dit import DiT
from sora_jax.models.image_encoder import ImageEncoder
from sora_jax.models.text_encoder import TextEncoder

TRANSFORMER = TRANSFORMERS["t2v"]
SHIFT = 5.0


def write_published(folder: pathlib.Path, dtype: str, *, boundary: float = 0.0, case: str = "t2v"):
    """The whole pipeline, its transformer (of wan_cases) in three files; a second one for times below
    boundary.
    """
    transformer, autoencoder = TRANSFORMERS[case], CASES["wan22" if case == "ti2v" else "wan21"]
    config = wan_configs.transformer_config(transformer)
    table = transformer_table(transformer)
    write_component(folder / "transformer", table, DiT, transformer, config, files=3, dtype=dtype)
    if boundary:
        write_component(folder / "transformer_2", table, DiT, transformer, config, dtype=dtype, scale=0.9)
    config = wan_configs.autoencoder_config(autoencoder)
    write_component(folder / "vae", autoencoder_table(autoencoder), Autoencoder, autoencoder, config)
    tokenizer = train_tokenizer(["a rabbit", "a bird"], folder / "tokenizer" / "spiece.model", vocabulary=300)
    config = {
        "model_type": "umt5",
        "vocab_size": tokenizer.vocabulary,
        "d_model": TEXT.width,
        "num_heads": TEXT.heads,
        "d_kv": TEXT.head_dim,
        "d_ff": TEXT.mlp,
        "num_layers": TEXT.layers,
    }
    text = folder / "text_encoder"
    text.mkdir()
    (text / "config.json").write_text(json.dumps(config))
    settings = wan_configs.text_settings(text / "config.json", "")
    write_component(text, text_table(settings), TextEncoder, settings, config)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"flow_shift": SHIFT}))
    second = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": boundary}
    index = {"_class_name": "WanPipeline" if case == "t2v" else "WanImageToVideoPipeline"}
    index |= {"expand_timesteps": True} if case == "ti2v" else {}
    (folder / "model_index.json").write_text(json.dumps(index | (second if boundary else {})))
    if transformer.image_width:
        write_image_encoder(folder)


def write_image_encoder(folder: pathlib.Path):
    """A CLIPVisionModel, with the last layer and norm that Wan does without."""
    config = {
        "hidden_size": IMAGE.width,
        "intermediate_size": IMAGE.mlp,
        "num_hidden_layers": IMAGE.layers + 1,
        "num_attention_heads": IMAGE.heads,
        "image_size": IMAGE.size,
        "patch_size": IMAGE.patch,
        "hidden_act": "gelu",
    }
    more = dataclasses.replace(IMAGE, layers=IMAGE.layers + 1)
    write_component(folder / "image_encoder", image_table(more), ImageEncoder, more, config)
    processor = {"size": {"shortest_edge": IMAGE.size}, "crop_size": {"height": IMAGE.size, "width": IMAGE.size}}
    (folder / "image_processor").mkdir()
    (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps(processor))


def write_component(folder, table, module_class, settings, config, *, files=1, dtype="float32", scale=1.0):
    """Random tensors, times `scale`, in so many files, and their config."""
    with jax.set_mesh(tiny.mesh_of()):
        tensors = random_tensors(foreign_shapes(table, module_class, settings))
    tensors = {name: (scale * tensor).astype(dtype) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    number = {name: f"-{n * files // len(names)}" if files > 1 else "" for n, name in enumerate(names)}
    where = {name: f"model{number[name]}.safetensors" for name in names}
    for file in set(where.values()):
        part = {name: tensors[name] for name in names if where[name] == file}
        safetensors.numpy.save_file(part, folder / file, metadata={"format": "pt"})
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
