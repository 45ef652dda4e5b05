"""The command `demo`."""

import os

from sora_jax.cli.flags import Command, Flag
from sora_jax.core.storage import as_path


def run(values, console):
    import jax

    from sora_jax.worlds.shapes.demo import demo

    # Models this small leave a core idle; two devices with half a batch each use both.
    jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
    demo(as_path(values.out), console=console)


COMMAND = Command(
    "nothing -> videos, data sets, trained models and samples, in a few minutes on this machine",
    {"Output": (Flag("out", "Folder for everything that the demo makes.", default="demo"),)},
    run,
    examples=("",),
)
