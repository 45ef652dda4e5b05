"""Config files: Python with a get_config(), or a workdir's settings.json."""

import pathlib
import runpy
import traceback

from ml_collections import ConfigDict

from sora_jax.config.load import anchored, from_json, to_config
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import read_object


def read_config(named: str) -> ConfigDict:
    """The config of a Python file or of a workdir's settings.json.

    Args:
      named: a path; after ".py" can follow ":ARGUMENT", the argument of the file's get_config().
    Raises: InputError for a file that is absent or in error; it names the line.
    """
    file, argument = pathlib.Path(named), ""
    if ".py:" in named and not file.is_file():  # a folder's name can have a colon, too
        name, _, argument = named.rpartition(".py:")
        file = pathlib.Path(f"{name}.py")
    if not file.is_file():
        there = [str(path) for path in file.parent.glob("*.py")]
        raise InputError(f"--config: no file {file}" + (f", {did_you_mean(str(file), there)}" if there else ""))
    if file.suffix == ".json":
        return to_config(anchored(from_json(Settings, read_object(file), str(file)), file.parent))
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        config = get_config(*([argument] if argument else [])) if get_config else None
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        # The file is the user's own program, so any exception is an error in the input.
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"{file}:{lines[-1]}" if lines else f"{file}"
        raise InputError(f"{where}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{file}: get_config(), which returns a ConfigDict, is needed; see configs/ for examples")
    return config


def one_line(error: Exception) -> str:
    """The message of an error of flags or a config file, without the lists that ml_collections adds."""
    text = str(error.args[0] if error.args else error).replace("\\n", "\n")
    if text[:1] in ("'", '"') and text[0] == text[-1]:
        text = text[1:-1]
    lines = [line.strip() for line in text.splitlines()] or [type(error).__name__]
    first = lines[0].split("Other fields present")[0].strip()
    hints = [line for line in lines[1:] if line.startswith("Did you mean")]
    return " ".join([first, *hints])
