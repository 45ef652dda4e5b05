"""Imports only go down, read from the source of sora_jax without importing it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent / "sora_jax"
# From the bottom up; packages of one layer may import each other.
LAYERS = (
    ("compat", "core", "config", "cluster"),
    ("kernels", "diffusion", "report"),
    ("models",),
    ("checkpoint", "interop"),
    ("data",),
    ("generate",),
    ("train", "captioning"),
    ("evaluate",),
    ("worlds",),
    ("api",),
    ("serve", "plan", "cli"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
# Packages of others that are kept to a few places.
KEPT = {
    "orbax": ("checkpoint/", "compat.py"),
    "grain": ("data/",),
    "ml_collections": ("config/", "cli/"),
    "tensorflow_datasets": ("data/",),
    "array_record": ("data/",),
    "av": ("data/", "generate/"),
}
# No files, processes or flags in here.
PURE = ("kernels/", "models/", "diffusion/", "core/errors.py", "core/patches.py", "core/mesh.py")
IMPURE = ("os", "pathlib", "shutil", "tempfile", "subprocess", "argparse", "absl", "etils")


def imports(source: str, path: str) -> list[tuple[int, str]]:
    """(line, full name) of every module that a file imports, and of every name that it imports from one."""
    package = ["sora_jax", *path.split("/")[:-1]]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def wrong_imports(source: str, path: str) -> list[str]:
    """What a file of sora_jax, at `path` below it, may not import."""
    here = path.split("/")[0].removesuffix(".py")
    wrong = []
    for line, module in imports(source, path):
        top, part, *_ = [*module.split("."), ""]
        reason = None
        if top in KEPT and not path.startswith(KEPT[top]):
            reason = f"only in {', '.join(KEPT[top])}"
        elif top in IMPURE and path.startswith(PURE):
            reason = "no files, processes or flags in here"
        elif top != "sora_jax" and path != "compat.py" and any(map(private, module.split("."))):
            reason = "private, only in compat.py"
        elif top == "sora_jax" and HEIGHT.get(part, -1) > HEIGHT.get(here, len(LAYERS)):
            reason = f"{part} lies above {here}"
        elif here == "report" and top == "sora_jax" and part not in ("report", "core", "__version__", ""):
            reason = "report imports core alone"
        if reason:
            wrong.append(f"sora_jax/{path}:{line}: {module}: {reason}")
    return wrong


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_uses(source: str, path: str) -> list[str]:
    """Where a file uses a private attribute of a name that it imported from another library."""
    tree = ast.parse(source)
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            names = {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            module = getattr(node, "module", None)
            foreign |= {name for name, full in names.items() if not (module or full).startswith("sora_jax")}
    return [
        f"sora_jax/{path}:{node.lineno}: {ast.unparse(node)}: private, only in compat.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and private(node.attr)
        and (text := ast.unparse(node)) != "os._exit"  # documented
        and text.split(".")[0] in foreign
    ]


def sources() -> dict[str, str]:
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(ROOT.rglob("*.py"))}


def test_imports_only_go_down():
    wrong = [line for path, source in sources().items() for line in wrong_imports(source, path)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_file_lies_in_a_layer():
    assert {path.split("/")[0].removesuffix(".py") for path in sources()} - {"__init__", "__main__"} == set(HEIGHT)


def test_private_functions_of_other_libraries_are_used_in_compat_alone():
    found = sources()
    assert private_uses(found.pop("compat.py"), "compat.py")
    wrong = [line for path, source in found.items() for line in private_uses(source, path)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "source, path",
    [
        ("from sora_jax.data import tokenizer", "models/dit.py"),
        ("import sora_jax.train.loop", "data/tokenizer.py"),
        ("from sora_jax import cli", "generate/sampling/pipeline.py"),
        ("from ...evaluate import metrics", "interop/wan/tables.py"),
        ("def late():\n    from sora_jax.train import loop", "data/tokenizer.py"),
        ("from sora_jax.config.schema import Settings", "report/page.py"),
        ("import orbax.checkpoint as ocp", "train/loop.py"),
        ("import pathlib", "models/text_encoder.py"),
        ("from os import path", "diffusion/flow.py"),
        ("from jax._src import clusters", "cluster/join.py"),
    ],
)
def test_a_wrong_import_is_found(source, path):
    assert len(wrong_imports(source, path)) == 1


@pytest.mark.parametrize(
    "source, path",
    [
        ("from sora_jax.models.autoencoder.model import Autoencoder", "data/prepare/encode.py"),
        ("from sora_jax.core import mesh", "models/dit.py"),
        ("import orbax.checkpoint as ocp", "checkpoint/reader.py"),
        ("import graingrowth", "train/loop.py"),
        ("from . import dit", "models/text_encoder.py"),
    ],
)
def test_an_import_down_passes(source, path):
    assert wrong_imports(source, path) == []
