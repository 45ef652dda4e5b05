"""The command `prepare`."""

import pathlib

from sora_jax.cli.flags import Command, Flag, settings_of


def run(values, console):
    from sora_jax.data.prepare.prepare import prepare

    prepare(
        settings_of(values),
        pathlib.Path(values.videos),
        pathlib.Path(values.out),
        captions=values.captions,
        autoencoder=values.autoencoder,
        tokenizer=values.tokenizer,
        text_encoder=values.text_encoder,
        console=console,
    )


COMMAND = Command(
    "videos and captions -> a data set",
    {
        "Input": (
            Flag("videos", "Folder of videos and pictures, searched with its subfolders.", example="clips"),
            Flag("captions", "File of captions, .jsonl or .csv; default: captions.jsonl or .csv in the folder."),
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
        "Output": (Flag("out", "Folder for the data set.", example="data/clips"),),
    },
    run,
    about="A file that can't be read is skipped, and named with the reason at the end. If `prepare` was stopped, "
    "the same command continues.",
    examples=(
        "--videos=clips --config=configs/clips.py --out=data/pixels",
        "--videos=clips --config=configs/clips.py --autoencoder=runs/autoencoder --out=data/latents",
    ),
    config=True,
    joins=True,
)
