"""The recipe of the shapes model, and of the comparisons of its settings.

    sora-jax recipe shapes --workdir=runs/shapes

Devices: two CPU cores with AVX-512.
Time: 5 hours by plan; not yet run in full.
Result: not yet run. docs/notes/recipes.md has what was measured so far.

The order is that of docs/notes/shapes_training.md: the meaning of words is learned from pictures, directions from
clips of five frames with the first frame given, the rest from everything. Then the learning rate falls.
"""

from sora_jax.worlds.recipe import FALLING, Recipe, Stage, mixture, timed
from sora_jax.worlds.shapes.sets import SETS

LATENTS = {  # set -> what `prepare` cuts
    "pictures": "--config.data.frames='(1,)'",
    "short": "--config.data.frames='(5,)'",
    "clips": "--config.data.frames='(17,)'",
    "aspects": "--config.data.frames='(17,)' --config.data.sizes='(\"96x64\",\"64x96\")'",
    "long": "--config.data.frames='(33,)'",
}
PREPARE_MINUTES = {"pictures": 3, "short": 6, "clips": 12, "aspects": 3, "long": 1}
# Room for videos of other sizes and of 33 frames.
LARGE = (
    "--config.data.batch=16 --config.data.sequence_length=288 --config.data.clips_per_sequence=18 "
    "--config.data.text_length=256 --config.transformer.attention=xla"
)


def transformer(*flags: str, workdir: str = "transformer") -> str:
    """The command that trains a transformer."""
    return " ".join(
        (
            f"train --config={{configs}}/shapes.py --workdir={{work}}/{workdir} --config.data.text_length=192",
            *flags,
        )
    )


def autoencoder(*flags: str) -> str:
    """The command that trains the autoencoder."""
    fixed = "--config.data.path={work}/pixels --workdir={work}/autoencoder"
    return " ".join((f"train --config={{configs}}/autoencoder_shapes.py {fixed}", *flags))


DATA = (
    Stage("videos", "data shapes --out={work}/videos --share={share}", 9),
    Stage(
        "pixels",
        "prepare --config={configs}/autoencoder_shapes.py --videos={work}/videos/autoencoder --out={work}/pixels "
        "--config.data.frames='(17,1)'",
        2,
    ),
    Stage("autoencoder", autoencoder(timed(34)), 34),
    Stage("autoencoder-decay", autoencoder(FALLING), 11, decay=("autoencoder", 0.33)),
    Stage("reconstruction", "evaluate --checkpoint={work}/autoencoder --out={work}/reconstruction", 2),
    *(
        Stage(
            f"latents-{name}",
            f"prepare --config={{configs}}/shapes.py --videos={{work}}/videos/{name} {cut} "
            f"--out={{work}}/latents/{name} --autoencoder={{work}}/autoencoder "
            "--tokenizer={work}/pixels/tokenizer.model",
            PREPARE_MINUTES[name],
        )
        for name, cut in LATENTS.items()
    ),
)
assert set(LATENTS) < set(SETS)
EVERYTHING = mixture(pictures=3, short=2.5, clips=4)
FIRST_FRAME = "--config.masks.text=20 --config.masks.first_frame=14"  # a third of the clips are given it

SHAPES = Recipe(
    "shapes",
    "the model of the shapes world. Two cores with AVX-512, 5 hours. Not yet run in full.",
    hours=5.0,
    gigabytes=5.0,
    stages=(
        *DATA,
        Stage("pictures", transformer(mixture(pictures=1), timed(25)), 25),
        Stage("short", transformer(mixture(pictures=3, short=10), FIRST_FRAME, timed(80)), 55),
        Stage(
            "everything",
            transformer(EVERYTHING, "--config.masks.text=30 --config.masks.first_frame=8", timed(155)),
            75,
        ),
        Stage(
            "decay",
            transformer(mixture(pictures=3, short=2, clips=5, aspects=0.3, long=0.15), FALLING, LARGE),
            40,
            decay=("transformer", 0.25),
        ),
        Stage("release", "checkpoint release --workdir={work}/transformer --out={work}/release", 1),
        Stage(
            "evaluate",
            "evaluate --suite=shapes --checkpoint={work}/release --out={work}/evaluation --samples={count:500}",
            17,
            verdict=True,
        ),
    ),
)

# Each differs in one thing from the first.
VARIANTS = {
    "baseline": (EVERYTHING,),
    "adamw": (EVERYTHING, "--config.optimizer.name=adamw", "--config.optimizer.learning_rate=1e-3"),
    "shift-1": (EVERYTHING, "--config.flow.shift_scale=1.0"),
    "no-ghosts": (EVERYTHING, "--config.flow.ghosts=0.0"),
    "clips-only": (mixture(clips=1),),
}
ABLATIONS = Recipe(
    "shapes-ablations",
    "settings of the shapes model compared, with the data and autoencoder of `recipe shapes` if --workdir has "
    "them. Two cores with AVX-512, 5 hours beside these. Not yet run.",
    hours=5.0,
    gigabytes=5.0,
    stages=(
        *DATA,
        *(
            Stage(
                name,
                transformer(mix, FIRST_FRAME, *flags, timed(45), workdir=f"ablations/{name}"),
                45,
            )
            for name, (mix, *flags) in VARIANTS.items()
        ),
        Stage(
            "compare",
            "evaluate --suite=loss,shapes --samples={count:200} --data={work}/latents/clips "
            "--out={work}/ablations/report "
            + " ".join(f"--checkpoint={{work}}/ablations/{name}" for name in VARIANTS),
            40,
            verdict=True,
        ),
    ),
)
