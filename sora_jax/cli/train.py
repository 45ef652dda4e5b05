"""The command `train`."""

from sora_jax.cli.flags import CACHE, CACHE_GB, LORA, NO_COMPILE_CACHE, Command, Flag, settings_of


def run(values, console):
    from sora_jax.api import train

    train(settings_of(values), values.workdir, lora=values.lora or (), console=console, trackers=values.tracker)


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
            Flag(
                "tracker",
                "Where numbers and sample videos go besides metrics.jsonl and samples/: tensorboard, wandb, "
                "mlflow, several with commas, or jsonl for nowhere else.",
                default="tensorboard",
                commas=True,
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
