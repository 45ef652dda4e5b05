"""Counts the code: python tests/benchmarks/code_size.py [ROOT] prints one row for each measure.

Duplicated places are runs of four or more equal lines of code, without imports, blank lines and comments; each
occurrence after the first counts. Old names are words of no other use, so that a match is a remainder.
"""

import ast
import collections
import pathlib
import re
import sys

OLD_NAMES = (
    "run_verb|define_verb|doors|upkeep|put_given|hold_known|told_time|rotary_turns|rotary_angles|row_patches|row_tokens"
    "|row_clips|row_levels|of_few|FEW_LEVELS|unlatent|fold_pixels|on_first|in_all|wait_for_all|mendable|echoes|NOBODY"
    "|MODEST|footage|Studio|starts.json|mask_kinds|MASK_KINDS|text_segments|image_segments|whole_times|draw_known"
    "|put_masks|check_levels|level_shifts|levels_of|judges"
).replace(".", "[.]")
# They hold old names to read the files that the project ships, and to test that.
READERS = ("code_size.py", "refactoring.md", "old_keys.py", "test_settings.py", "test_renamed.py", "test_docs.py")
WINDOW = 4  # equal lines that make a place duplicated


def code_lines(path: pathlib.Path) -> list[str]:
    """The file's lines of code, stripped: no blank lines, comments or imports."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "import ", "from "))]


def duplicated_places(paths: list[pathlib.Path]) -> int:
    """The number of runs of WINDOW or more equal lines that were seen before in these files."""
    seen, places = set(), 0
    for path in paths:
        lines, inside = code_lines(path), False
        for start in range(len(lines) - WINDOW + 1):
            window = tuple(lines[start : start + WINDOW])
            if sum(len(line) > 3 for line in window) < WINDOW - 1:  # brackets alone are no code
                continue
            known = window in seen
            places += known and not inside
            inside = known
            seen.add(window)
    return places


def functions(paths: list[pathlib.Path]) -> list[tuple[int, int, str]]:
    """(lines, parameters, name) of every function, decorators left out."""
    found = []
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
                found.append((node.end_lineno - node.lineno + 1, count, f"{path.name}:{node.name}"))
    return sorted(found, reverse=True)


def files(root: pathlib.Path, folder: str, *suffixes: str) -> list[pathlib.Path]:
    return sorted(path for path in (root / folder).rglob("*") if path.suffix in suffixes and path.is_file())


def old_names(root: pathlib.Path) -> int:
    """How often OLD_NAMES occur in code, settings, tests and documents, READERS left out."""
    pattern = re.compile(r"(?<![\w.])(" + OLD_NAMES + r")(?!\w)")
    paths = [root / "README.md"]
    for folder in ("sora_jax", "tests", "configs", "docs", "launch"):
        paths += files(root, folder, ".py", ".md", ".sh", ".toml")
    return sum(
        len(pattern.findall(path.read_text())) for path in paths if path.name not in READERS and path.exists()
    )


def measures(root: pathlib.Path) -> dict[str, object]:
    """What the table of docs/notes/refactoring.md holds, by name."""
    library, tests = files(root, "sora_jax", ".py"), files(root, "tests", ".py")
    found = functions(library)
    folders = collections.Counter(path.parent.relative_to(root) for path in library)
    crowded = folders.most_common(1)[0]
    pages = files(root, "docs", ".md")
    lengths = {path: len(path.read_text().splitlines()) for path in [*library, *tests, *pages]}
    return {
        "files in sora_jax": len(library),
        "lines in sora_jax": sum(lengths[path] for path in library),
        "files in tests": len(tests),
        "lines in tests": sum(lengths[path] for path in tests),
        "pages in docs": len(pages),
        "lines in docs": sum(lengths[path] for path in pages),
        "longest page of docs, lines": max((lengths[path] for path in pages), default=0),
        "longest file of sora_jax, lines": max(lengths[path] for path in library),
        "files over 400 lines": sum(lengths[path] > 400 for path in library),
        "longest function": f"{found[0][2]}, {found[0][0]} lines",
        "functions over 60 lines": sum(lines > 60 for lines, _, _ in found),
        "most parameters": max((count, name) for _, count, name in found),
        "functions with more than 8 parameters": sum(count > 8 for _, count, _ in found),
        "folders in sora_jax": len(folders),
        "most files in a folder": f"{crowded[0]}, {crowded[1]}",
        "duplicated places in sora_jax": duplicated_places(library),
        "duplicated places in tests": duplicated_places(tests),
        "old names that remain": old_names(root),
    }


if __name__ == "__main__":
    start = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent.parent
    for name, value in measures(start.resolve()).items():
        value = f"{value[1]}, {value[0]}" if isinstance(value, tuple) else value
        print(f"| {name} | {value} |")
