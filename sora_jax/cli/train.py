"""The command `train`."""

import dataclasses

from sora_jax.cli.flags import CACHE, CACHE_GB, LORA, NO_COMPILE_CACHE, Command, Flag, settings_of
from sora_jax.config.load import with_absolute_paths
from sora_jax.core.storage import as_path


def run(values, console):
    from sora_jax.interop.adapters.weights import absolute_choice
    from sora_jax.train.loop import train

    settings = with_absolute_paths(settings_of(values))
    base = tuple(map(absolute_choice, values.lora or settings.lora.base))
    settings = dataclasses.replace(settings, lora=dataclasses.replace(settings.lora, base=base))
    train(settings, as_path(values.workdir), console=console)


KEYS = (
    "objective",
    "mesh.data",
    "mesh.fsdp",
    "data.path",
    "data.batch",
    "data.sequence_length",
    "transformer.width",
    "transformer.layers",
    "transformer.remat",
    "lora.rank",
    "optimizer.learning_rate",
    "train.init_from",
    "train.steps",
    "train.minutes",
    "train.save_every",
    "train.log_every",
    "train.seed",
)

COMMAND = Command(
    "a data set -> a trained model",
    {
        "Input": (LORA, CACHE, CACHE_GB),
        "Output": (
            Flag(
                "workdir",
                "Folder for everything that the run writes; a run that it holds is continued.",
                example="runs/first",
            ),
        ),
        "Hardware": (NO_COMPILE_CACHE,),
    },
    run,
    about="SIGTERM makes the run save and end with exit code 0; the same command continues it.",
    examples=("--config=configs/clips.py --config.data.path=data/latents --workdir=runs/first",),
    config=True,
    keys=KEYS,
    joins=True,
    saves=True,
)
