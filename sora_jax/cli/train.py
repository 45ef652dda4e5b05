"""The command `train`."""

import pathlib

from sora_jax.cli.flags import Command, Flag, settings_of


def run(values, console):
    from sora_jax.train.loop import train

    train(settings_of(values), pathlib.Path(values.workdir), console=console)


COMMAND = Command(
    "a data set -> a trained model",
    {
        "Output": (
            Flag(
                "workdir",
                "Folder for everything that the run writes; a run that it holds is continued.",
                example="runs/first",
            ),
        )
    },
    run,
    about="SIGTERM makes the run save and end with exit code 0; the same command continues it.",
    examples=("--config=configs/clips.py --config.data.path=data/latents --workdir=runs/first",),
    config=True,
    joins=True,
    saves=True,
)
