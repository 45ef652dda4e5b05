"""The compiler flags of each chip: launchers set them, `plan` and the tests compile with them."""

import functools
import pathlib
import tomllib

KINDS = {"tpu7x": "v7x"}  # a topology's name of a chip, where the table has another


@functools.cache
def flag_table() -> list[dict]:
    """The entries of xla_flags.toml."""
    return tomllib.loads(pathlib.Path(__file__).with_name("xla_flags.toml").read_text())["flags"]


def compiler_flags(chip: str, slices: int = 1) -> list[str]:
    """The flags for a chip, as LIBTPU_INIT_ARGS or XLA_FLAGS take them."""
    chip = KINDS.get(chip, chip)
    return [
        entry["flag"]
        for entry in flag_table()
        if chip in entry["chips"] and (slices > 1 or not entry.get("several_slices", False))
    ]


def compiler_options(chip: str, slices: int = 1) -> dict[str, str]:
    """The same flags as `jax.stages.Lowered.compile` takes them."""
    return dict(flag.removeprefix("--").split("=", 1) for flag in compiler_flags(chip, slices))
