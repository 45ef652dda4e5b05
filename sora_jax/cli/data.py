"""The command `data verify`."""

import pathlib

from sora_jax.cli.flags import Command, Flag


def run(values, console):
    from sora_jax.data.records.verify import verify

    verify(pathlib.Path(values.data), console)


VERIFY = Command(
    "a data set -> its broken files and records",
    {"Input": (Flag("data", "Data set made by `prepare`.", example="data/clips"),)},
    run,
    about="The exit code is 2 if anything is broken.",
    examples=("--data=data/latents",),
)
