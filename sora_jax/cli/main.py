"""The command line: a verb each for preparing data, training, sampling, evaluating, planning, and a demo."""

import contextlib
import dataclasses
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence

import rich.console
from absl import flags
from ml_collections import ConfigDict, config_flags

import sora_jax
from sora_jax.cli import checkpoint as upkeep
from sora_jax.cli import commands as verbs
from sora_jax.cli import sample as verbs_sample
from sora_jax.cli import serve as verbs_serve
from sora_jax.config.load import from_json, to_config
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import read_object

SWITCH = "--"


@dataclasses.dataclass(frozen=True)
class Verb:
    """What follows `sora-jax`: its flags, and what it does with them."""

    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues, rich.console.Console], None]
    config: bool = False  # takes --config and --config.KEY
    joins: bool = False  # the other processes, if there are any
    saves: bool = False  # and ends when SIGTERM comes; others die of it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0, or 2 for a mistake of input, told in one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    console = rich.console.Console(stderr=True)
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        show(overview())
        return 0
    if arguments[0] == "--version":
        show(f"sora_jax {sora_jax.__version__}")
        return 0
    name, *rest = arguments
    if rest and any(verb.startswith(f"{name} ") for verb in VERBS) and not rest[0].startswith(SWITCH):
        name, rest = f"{name} {rest[0]}", rest[1:]  # such as `data verify`
    try:
        if name not in VERBS:
            raise InputError(f"{name}: no such verb, {did_you_mean(name, VERBS)}; `sora-jax --help` lists them")
        values = flags.FlagValues()
        verb = VERBS[name]
        rest = [underscored(argument) for argument in rest]
        verb.define(values)
        if {"--help", "-h"} & set(rest):
            show(help_text(name, verb, values))
            return 0
        parse(verb, values, [f"sora-jax {name}", *rest])
        # Grain and TFDS ask absl whether the program has read its flags.
        flags.FLAGS.mark_as_parsed()
        with joined(verb, values, console):
            verb.run(values, console)
    except InputError as error:
        print(f"sora-jax {name}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print(f"sora-jax {name}: stopped; the same command goes on from what is complete", file=sys.stderr)
        return 130
    return 0


def joined(verb: Verb, values: flags.FlagValues, console: rich.console.Console):
    """The other processes, if there are any, for a verb that computes with them; a context manager."""
    if not verb.joins:
        return contextlib.nullcontext()
    from sora_jax.cluster.join import joined_processes

    return joined_processes(values.flag_values_dict(), console, handles_sigterm=verb.saves)


def show(text: str):
    """Print to a reader who may have seen enough, as in `sora-jax train --help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end, and would complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def underscored(argument: str) -> str:
    """--negative-prompt=x-y -> --negative_prompt=x-y: flags may be written either way."""
    if not argument.startswith(SWITCH):
        return argument
    flag, equals, value = argument.partition("=")
    return SWITCH + flag.removeprefix(SWITCH).replace("-", "_") + equals + value


def parse(verb: Verb, values: flags.FlagValues, argv: list[str]):
    """Read the flags. Raises: InputError for one that is unknown, has no value or a bad one."""
    try:
        if verb.config:
            argv = define_config(values, argv)
        left = values(argv)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(one_line(error)) from error
    if len(left) > 1:
        raise InputError(f"{left[1]!r}: flags begin with --; quote a value with blanks in it")


def define_config(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Define --config.KEY for every key of the file that --config names, or of the defaults if it names none.

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


def read_config(named: str) -> ConfigDict:
    """The config of a Python file or of a workdir's settings.json.

    What follows a colon in the file's name is the argument of its get_config().
    Raises: InputError for a file that is absent or in error; it names the line.
    """
    name, _, argument = named.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        there = [str(path) for path in file.parent.glob("*.py")]
        raise InputError(f"--config: no file {file}" + (f", {did_you_mean(str(file), there)}" if there else ""))
    if file.suffix == ".json":
        if argument:
            raise InputError(f"--config={named}: settings take no argument {argument!r}, a Python file does")
        return to_config(from_json(Settings, read_object(file), str(file)))
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        config = get_config(*([argument] if argument else [])) if get_config else None
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        # The file is the user's own program: whatever it raises is for its author to mend.
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
        ]
        where = f"{file}:{lines[-1]}" if lines else f"{file}"
        raise InputError(f"{where}: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{file}: get_config(), which returns a ConfigDict, is needed; see configs/ for examples")
    return config


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


def one_line(error: Exception) -> str:
    """What went wrong in reading flags or a config file, without the lists that ml_collections adds."""
    text = str(error.args[0] if error.args else error).replace("\\n", "\n")
    if text[:1] in ("'", '"') and text[0] == text[-1]:
        text = text[1:-1]
    lines = [line.strip() for line in text.splitlines()] or [type(error).__name__]
    first = lines[0].split("Other fields present")[0].strip()
    hints = [line for line in lines[1:] if line.startswith("Did you mean")]
    return " ".join([first, *hints])


VERBS = {
    "caption": Verb("videos or prompts, and a chat model -> captions", verbs.define_caption, verbs.run_caption),
    "prepare": Verb(
        "videos and captions -> a data set", verbs.define_prepare, verbs.run_prepare, config=True, joins=True
    ),
    "data verify": Verb("a data set -> what of it is broken", verbs.define_verify, verbs.run_verify),
    "train": Verb(
        "a data set -> a trained model", verbs.define_train, verbs.run_train, config=True, joins=True, saves=True
    ),
    "convert": Verb("published weights -> a workdir, and back", verbs.define_convert, verbs.run_convert),
    "sample": Verb(
        "a trained model and prompts -> videos", verbs_sample.define_sample, verbs_sample.run_sample, joins=True
    ),
    "serve": Verb("a trained model -> a page in the browser", verbs_serve.define, verbs_serve.run),
    "evaluate": Verb(
        "a trained model -> numbers, a table, a report", verbs.define_evaluate, verbs.run_evaluate, joins=True
    ),
    "plan": Verb(
        "a config and chips that are not here -> what fits, what moves, how long",
        verbs.define_plan,
        verbs.run_plan,
        config=True,
    ),
    "checkpoint inspect": Verb("a workdir -> its steps, and what they are of", upkeep.define, upkeep.run_inspect),
    "checkpoint verify": Verb("a workdir -> which steps are whole", upkeep.define, upkeep.run_verify),
    "checkpoint prune": Verb("a workdir -> fewer steps", upkeep.define_prune, upkeep.run_prune),
    "checkpoint release": Verb(
        "workdirs -> their model, or the mean of them, in a file, for others",
        upkeep.define_release,
        upkeep.run_release,
    ),
    "demo": Verb("all of it on this machine, in a few minutes", verbs.define_demo, verbs.run_demo),
}


def overview() -> str:
    width = max(len(name) for name in VERBS)
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return f"usage: sora-jax VERB [--flag=value ...]\n\n{verbs}\n\n`sora-jax VERB --help` tells more of each."


def help_text(name: str, verb: Verb, values: flags.FlagValues) -> str:
    """What a verb does, its flags, and the keys of its config."""
    lines = [f"usage: sora-jax {name} [--flag=value ...]", "", f"{verb.summary}", ""]
    for flag in sorted(values):
        default = values[flag].default
        shown = f" [{default}]" if default not in (None, "") else ""
        lines.append(f"  --{flag.replace('_', '-'):<18}{values[flag].help}{shown}")
    if verb.config:
        lines += ["  --config            A file of configs/, e.g. --config=configs/clips.py", ""]
        lines += ["Keys of the config, and what they are where the file says nothing:", ""]
        for group, keys in dataclasses.asdict(Settings()).items():
            if not isinstance(keys, dict):
                lines.append(f"  --config.{group}={keys}")
                continue
            lines += [f"  --config.{group}.{key}={value}" for key, value in keys.items()]
    return "\n".join(lines)
