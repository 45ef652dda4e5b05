"""The commands `data verify`, `data emoji` and `data shapes`."""

from sora_jax.cli.flags import Command, Flag
from sora_jax.core.storage import as_path


def run(values, console):
    from sora_jax.data.records.verify import verify

    verify(as_path(values.data), console)


VERIFY = Command(
    "a data set -> its broken files and records",
    {"Input": (Flag("data", "Data set made by `prepare`.", example="data/clips"),)},
    run,
    about="The exit code is 2 if anything is broken.",
    examples=("--data=data/latents",),
)


def run_emoji(values, console):
    from sora_jax.worlds.emoji.make import make_data

    files = as_path(values.files) if values.files else None
    make_data(as_path(values.out), [name.strip() for name in values.sets], files, console)


EMOJI = Command(
    "npm packages of animated emoji -> captioned videos",
    {
        "Input": (
            Flag(
                "files",
                "Folder that has the packages (.tgz) or their WebP files already; default: they are downloaded.",
            ),
        ),
        "Output": (
            Flag("out", "Folder for the packages, the animations and the videos.", default="data/emoji"),
            Flag(
                "sets",
                "Sets of videos to write: autoencoder, videos, pictures, short, held_out; default: all.",
                commas=True,
            ),
        ),
    },
    run_emoji,
    about="Downloads 0.7 GB from the registry that npm's settings name. What is there is kept; the same command "
    "continues a stopped one.",
    examples=("", "--files=downloads --out=data/emoji --sets=videos,held_out"),
)


def run_shapes(values, console):
    from sora_jax.worlds.shapes.sets import make_sets

    make_sets(as_path(values.out), [name.strip() for name in values.sets], values.share, console)


SHAPES = Command(
    "nothing -> captioned videos of the shapes world",
    {
        "Output": (
            Flag("out", "Folder for the sets, each in a folder of its name.", default="data/shapes"),
            Flag(
                "sets",
                "Sets to render: autoencoder, pictures, short, clips, aspects, long, refiner; default: all.",
                commas=True,
            ),
            Flag("share", "Share of the videos of each set.", float, 1.0, min=0.0),
        ),
    },
    run_shapes,
    about="Videos that are there are kept, and the same command continues a stopped one.",
    examples=("", "--out=data/shapes --sets=pictures,clips --share=0.1"),
)
