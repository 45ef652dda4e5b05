"""The command `caption`."""

import pathlib

from sora_jax.cli import chat
from sora_jax.cli.flags import Command, Flag, lines_of
from sora_jax.core.errors import InputError


def run(values, console):
    from sora_jax.captioning.caption import caption, expand_file

    if bool(values.videos) == bool(values.prompts):
        raise InputError("--videos, a folder to describe, or --prompts, a file to expand: give one of them")
    out, model = pathlib.Path(values.out), chat.chat_of(values, "endpoint")
    if values.prompts:
        expand_file(lines_of(values, "prompts"), out, model, parallel=values.parallel, console=console)
    elif model is None:
        raise InputError("--endpoint=shapes: expands prompts, and can't see videos; name the address of a model")
    else:
        caption(
            pathlib.Path(values.videos),
            out,
            model,
            frames=values.frames,
            side=values.side,
            parallel=values.parallel,
            console=console,
        )


COMMAND = Command(
    "videos or prompts, and a chat model -> captions",
    {
        "Input": (
            Flag("videos", "Folder of videos and pictures to describe."),
            Flag("prompts", "File with a prompt on each line, to be expanded instead of describing videos."),
        ),
        "Output": (
            Flag(
                "out",
                "A .jsonl for `prepare --captions`; of prompts a text file for `sample --prompts`.",
                example="captions.jsonl",
            ),
        ),
        "Frames": (
            Flag("frames", "Maximum number of frames sent to the captioning model per video.", int, 8, min=1),
            Flag("side", "Maximum of the longer side of a frame, in pixels.", int, 512, min=16),
        ),
        "Chat model": (
            Flag(
                "endpoint",
                "Address of an OpenAI-compatible API up to /v1; `shapes` expands prompts by the rules of the "
                "shapes world, with no network.",
                example="http://localhost:8000/v1",
            ),
            *chat.FLAGS,
        ),
    },
    run,
    about="Answers are kept beside the output, so the same command continues after an interruption.",
    examples=(
        "--videos=clips --out=captions.jsonl --endpoint=http://localhost:8000/v1 --model=Qwen3-VL-8B-Instruct",
        "--prompts=prompts.txt --out=long.txt --endpoint=https://api.openai.com/v1 --model=gpt-4.1-mini",
        "--prompts=prompts.txt --out=long.txt --endpoint=shapes",
    ),
)
