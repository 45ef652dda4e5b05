"""--config and --config.KEY: a Python file or settings.json, changed by flags."""

from absl import flags
from ml_collections import config_flags

from sora_jax.config.files import read_config
from sora_jax.config.load import to_config
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean


def define_config(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Define --config.KEY for every key, with the value of the file that --config names, or else the default.

    Returns: argv without --config itself.
    """
    rest, named = [], None
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag != "--config":
            rest.append(argument)
            if flag.startswith("--config."):
                check_key(flag.split(".")[1:], to_config(Settings()).to_dict(), "config")
        elif not (named := value if equals else next(arguments, "")):
            raise InputError("--config: name a file, for example --config=configs/clips.py")
    config = to_config(Settings()) if named is None else read_config(named)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
    return rest


def check_key(path: list[str], keys: dict, where: str):
    """Raise InputError if the path leads to no key, and name the nearest."""
    first, *rest = path
    if first not in keys:
        raise InputError(f"--{where}.{first}: no such key, {did_you_mean(first, keys)}")
    if isinstance(keys[first], dict):
        if not rest:
            raise InputError(f"--{where}.{first}: a group; its keys are {', '.join(keys[first])}")
        check_key(rest, keys[first], f"{where}.{first}")
    elif rest:
        raise InputError(f"--{where}.{first}.{rest[0]}: no such key, {where}.{first} is one itself")
