"""The command `demo`."""

import os

from sora_jax.cli.flags import Command, Flag, path_of
from sora_jax.core.storage import as_path


def run(values, console):
    import jax

    from sora_jax.worlds.shapes.demo import demo

    # Models this small leave a core idle; two devices with half a batch each use both.
    jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
    demo(
        as_path(values.out),
        console=console,
        minutes=values.minutes,
        videos=path_of(values, "videos"),
        since=values.since,
    )


COMMAND = Command(
    "a handful of captioned clips -> a model that knows them, and a page with samples before and after",
    {
        "Input": (
            Flag("videos", "Folder of captioned videos of a second or more; default: drawings made by code."),
        ),
        "Output": (
            Flag("out", "Folder for everything that the demo makes.", default="demo"),
            Flag("minutes", "Budget of time for the whole demo.", float, 10.0, min=0.1),
            Flag(
                "since", "Start of the budget, in seconds since 1970; default: now.", float, min=0.0, advanced=True
            ),
        ),
    },
    run,
    about="Training gets the time that the other parts leave. launch/demo.sh sets --since, so that installing "
    "counts.",
    examples=("", "--videos=clips --minutes=20 --out=mine"),
)
