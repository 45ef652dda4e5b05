"""Files, functions and argument lists of the package stay short enough to read in one go."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent.parent / "sora_jax"
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8


def functions():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def test_files_are_short():
    assert [path for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > FILE_LINES] == []


def test_functions_are_short():
    assert [name for name, node in functions() if node.end_lineno - node.lineno + 1 > FUNCTION_LINES] == []


def test_functions_have_few_parameters():
    long = []
    for name, node in functions():
        given = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if len([arg for arg in given if arg not in ("self", "cls")]) > PARAMETERS:
            long.append(name)
    assert long == []
