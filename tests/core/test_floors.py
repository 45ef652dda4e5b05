"""Imports only go down: the floors of docs/design.md, read from the source with no import of it."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent.parent

# From the bottom up. A name stands for a module or a package right below sora_jax.
FLOORS = (
    ("errors", "files", "heartbeat", "supervisor", "settings", "config", "mesh", "patches", "distributed"),
    ("models", "diffusion"),
    ("weights", "data"),
    ("train", "generate", "evaluate", "captioning"),
    ("cli", "verbs", "verbs_sample", "verbs_serve", "verbs_upkeep", "serve", "demo", "plan"),
)
# Packages of others that are kept to one place, and where that is.
KEPT = {
    "orbax": ("train/checkpoint.py", "train/saving.py"),
    "grain": ("data/",),
    "ml_collections": ("config.py", "cli.py"),
    "tensorflow_datasets": ("data/",),
    "array_record": ("data/",),
    "av": ("data/", "generate/"),
}
# Pure maths: nothing of files, processes or the command line.
PURE = ("models/", "diffusion/", "errors.py", "patches.py", "mesh.py")
IMPURE = ("os", "pathlib", "shutil", "tempfile", "subprocess", "argparse", "absl", "etils")


def floor_of(name: str) -> int | None:
    return next((height for height, names in enumerate(FLOORS) if name in names), None)


def imports(source: str, path: str) -> list[tuple[int, str]]:
    """Every module that a file imports, at any depth of its code, as (line, full name)."""
    package = ["sora_jax", *path.split("/")[:-1]]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found.append((node.lineno, base))
            # "from sora_jax import cli" names the module only in its second half.
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def broken_arrows(source: str, path: str) -> list[str]:
    """What a file of sora_jax imports against the rules; `path` is below sora_jax/."""
    here = path.split("/")[0].removesuffix(".py")
    broken = []
    for line, module in imports(source, path):
        top, *rest = module.split(".")
        where = f"sora_jax/{path}:{line}: {module}"
        if top in KEPT and not path.startswith(KEPT[top]):
            broken.append(f"{where}: only in {', '.join(KEPT[top])}")
        if top in IMPURE and path.startswith(PURE):
            broken.append(f"{where}: no files, processes or flags in here")
        if top != "sora_jax" or not rest or floor_of(rest[0]) is None:
            continue
        low = floor_of(here)
        if low is not None and floor_of(rest[0]) > low:
            broken.append(f"{where}: an arrow up")
        if here == "data" and rest[0] == "models" and path != "data/encoder.py":
            broken.append(f"{where}: data imports models in encoder.py only")
    return sorted(set(broken))


def sources() -> dict[str, str]:
    folder = ROOT / "sora_jax"
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.py"))}


def test_imports_only_go_down():
    found = sources()
    assert "models/module.py" in found
    assert [arrow for path, source in found.items() for arrow in broken_arrows(source, path)] == []


def test_every_file_stands_on_a_floor():
    homeless = {path.split("/")[0].removesuffix(".py") for path in sources()} - {"__init__", "__main__"}
    assert {name for name in homeless if floor_of(name) is None} == set()


def test_a_broken_arrow_is_found():
    cases = {
        "from sora_jax.data import stream": "models/dit.py",
        "import sora_jax.train.loop": "data/stream.py",
        "from sora_jax import cli": "generate/pipeline.py",
        "from ..evaluate import metrics": "weights/wan.py",
        "from .. import cli": "train/loop.py",
        "def late():\n    from sora_jax.models import dit": "data/stream.py",
        "from sora_jax.models.autoencoder.model import Autoencoder": "patches.py",
        "import orbax.checkpoint as ocp": "train/loop.py",
        "from grain import MapDataset": "train/loop.py",
        "import ml_collections": "train/loop.py",
        "import pathlib": "models/text.py",
        "from os import path": "diffusion/flow.py",
    }
    for source, path in cases.items():
        assert len({arrow.split(":")[1] for arrow in broken_arrows(source, path)}) == 1, (source, path)


def test_arrows_down_and_the_one_exception_pass():
    cases = {
        "from sora_jax.models.autoencoder.model import Autoencoder": "data/encoder.py",
        "from sora_jax import mesh, settings": "models/dit.py",
        "from sora_jax.diffusion import flow": "models/dit.py",
        "import orbax.checkpoint as ocp": "train/checkpoint.py",
        "from grain import MapDataset": "data/stream.py",
        "import graingrowth": "train/loop.py",
        "from . import dit": "models/text.py",
    }
    for source, path in cases.items():
        assert broken_arrows(source, path) == [], (source, path)
