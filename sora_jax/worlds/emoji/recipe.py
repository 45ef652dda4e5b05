"""The recipe of the emoji model.

    sora-jax recipe emoji --workdir=runs/emoji

Devices: two CPU cores with AVX-512.
Time: 10 hours by plan; not yet run.
Result: not yet run.
"""

from sora_jax.worlds.recipe import FALLING, Recipe, Stage, mixture, timed

LATENTS = ("videos", "pictures", "short")


def autoencoder(*flags: str) -> str:
    """The command that trains the autoencoder."""
    fixed = "--config.data.path={work}/pixels --workdir={work}/autoencoder"
    return " ".join((f"train --config={{configs}}/autoencoder_emoji.py {fixed}", *flags))


def transformer(*flags: str) -> str:
    """The command that trains the transformer."""
    return " ".join(("train --config={configs}/emoji.py --workdir={work}/transformer", *flags))


def latents(name: str) -> Stage:
    """The stage that encodes a set; the tokenizer is learned from the first."""
    tokenizer = "" if name == LATENTS[0] else f" --tokenizer={{work}}/latents/{LATENTS[0]}/tokenizer.model"
    return Stage(
        f"latents-{name}",
        f"prepare --config={{configs}}/emoji.py --videos={{work}}/videos/{name} --out={{work}}/latents/{name} "
        f"--autoencoder={{work}}/autoencoder --config.data.validation=0.01{tokenizer}",
        10,
    )


EMOJI = Recipe(
    "emoji",
    "the model of the emoji world. Two cores with AVX-512, 10 hours. Not yet run.",
    hours=10.0,
    gigabytes=12.0,
    stages=(
        Stage("data", "data emoji --out={work}", 30),
        Stage(
            "pixels",
            "prepare --config={configs}/autoencoder_emoji.py --videos={work}/videos/autoencoder "
            "--out={work}/pixels --config.data.validation=0.01",
            5,
        ),
        Stage("autoencoder", autoencoder(timed(120)), 120),
        Stage("autoencoder-decay", autoencoder(FALLING), 40, decay=("autoencoder", 0.33)),
        *(latents(name) for name in LATENTS),
        Stage("pictures", transformer(mixture(pictures=10, short=2, videos=2), timed(60)), 60, devices=1),
        Stage("everything", transformer(mixture(pictures=7, short=2, videos=6), timed(220)), 160, devices=1),
        Stage(
            "decay",
            transformer(mixture(pictures=7, short=2, videos=6), FALLING),
            60,
            decay=("transformer", 0.25),
            devices=1,
        ),
        Stage("release", "checkpoint release --workdir={work}/transformer --out={work}/release", 1),
        Stage(
            "evaluate",
            "evaluate --suite=emoji --videos={work}/animations --checkpoint={work}/release "
            "--out={work}/evaluation",
            40,
            verdict=True,
        ),
    ),
)
