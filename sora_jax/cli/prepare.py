"""The command `prepare`."""

from sora_jax.cli.flags import Command, Flag, missing, path_of, settings_of
from sora_jax.core.storage import as_path


def run(values, console):
    from sora_jax.data.prepare.dry_run import dry_run
    from sora_jax.data.prepare.prepare import Options, prepare

    settings, videos = settings_of(values), as_path(values.videos)
    options = Options(
        captions=path_of(values, "captions"),
        autoencoder=path_of(values, "autoencoder"),
        tokenizer=path_of(values, "tokenizer"),
        text_encoder=path_of(values, "text_encoder"),
        uncaptioned=values.uncaptioned,
    )
    if values.dry_run:
        dry_run(settings, videos, options, console)
    else:
        if not values.out:
            raise missing("out", "data/clips")
        prepare(settings, videos, as_path(values.out), options, console=console)


COMMAND = Command(
    "videos and captions -> a data set",
    {
        "Input": (
            Flag("videos", "Folder of videos and pictures, searched with its subfolders.", example="clips"),
            Flag(
                "captions",
                "Table of captions, .jsonl, .csv or .tsv; default: captions and metadata tables in the folder, "
                "else a .txt or .json beside each file.",
            ),
            Flag(
                "uncaptioned",
                "What to do with files without a caption: use or skip.",
                default="use",
                choices=("use", "skip"),
            ),
            Flag("dry-run", "Write nothing: show what would be read, cut and skipped.", bool, False),
        ),
        "Models": (
            Flag(
                "autoencoder",
                "Folder or workdir of a trained autoencoder: write latents; without it pixels are written.",
            ),
            Flag("tokenizer", "Sentencepiece model; default: one is learned from the captions."),
            Flag(
                "text-encoder",
                "Folder of a UMT5 in transformers' layout: also write the text embeddings of the captions.",
            ),
        ),
        "Output": (Flag("out", "Folder for the data set, which may hold an earlier state of it."),),
    },
    run,
    about="A file that can't be read is skipped, and named with the reason at the end. If `prepare` was stopped, "
    "the same command continues.",
    examples=(
        "--videos=clips --config=configs/clips.py --out=data/pixels",
        "--videos=clips --config=configs/clips.py --autoencoder=runs/autoencoder --out=data/latents",
    ),
    config=True,
    keys=("data.fps", "data.sizes", "data.frames", "data.validation", "data.background", "data.threads"),
    joins=True,
)
