"""No module goes around storage.py: what would silently mean a local file, or half a file, is not called."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent / "sora_jax"
# Files whose paths are local by their nature: processes, packages, uploads of a server, temporary files.
LOCAL = {
    "cluster/heartbeat.py",
    "cluster/supervisor.py",
    "core/local_cache.py",
    "core/storage.py",
    "core/growing_file.py",
    "train/workdir_lock.py",
    "captioning/cache.py",
    "worlds/emoji/fetch.py",
    "cli/main.py",
    "serve/job_queue.py",
}
LIBRARY_CALLS = {
    ("os", "rename"),
    ("os", "replace"),
    ("shutil", "move"),
    ("shutil", "copytree"),
    ("shutil", "copyfile"),
}


def broken_rules(source: str) -> list[str]:
    """ "line: what is wrong" of each call that a path in a bucket can't take."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            mode = next((a.value for a in node.args[:1] if isinstance(a, ast.Constant)), None)
            if (
                node.func.attr == "open"
                and isinstance(mode, str)
                and set(mode) <= set("axbt+")
                and set(mode) & set("ax")
            ):
                found.append(f"{node.lineno}: open({mode!r}); growing_file.open_growing appends to any path")
            if isinstance(node.func.value, ast.Name) and (node.func.value.id, node.func.attr) in LIBRARY_CALLS:
                found.append(
                    f"{node.lineno}: {node.func.value.id}.{node.func.attr}; storage.py has a function for it"
                )
            if node.func.attr == "rename":
                found.append(f"{node.lineno}: rename; storage.move_folder moves a folder on any storage")
        if isinstance(node, ast.Call) and ast.unparse(node).startswith("isinstance(") and len(node.args) == 2:
            asked = ast.unparse(node.args[1])
            if "pathlib.Path" in asked:
                found.append(f"{node.lineno}: isinstance of {asked} is False for a path in a bucket")
    return found


def test_no_call_goes_around_the_storage_module():
    broken = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in LOCAL and (wrong := broken_rules(path.read_text())):
            broken[name] = wrong
    assert not broken


@pytest.mark.parametrize(
    "line",
    ['p.open("a")', "os.replace(a, b)", "folder.rename(other)", "isinstance(x, pathlib.Path)", 'p.open("xb")'],
)
def test_each_rule_is_noticed(line):
    assert broken_rules(line) and not broken_rules('p.open("rb"); storage.move_folder(a, b)')
