"""The command `caption`."""

from sora_jax.cli import chat
from sora_jax.cli.flags import Command, Flag
from sora_jax.cli.prompt_files import read_lines
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write


def run(values, console):
    if bool(values.videos) == bool(values.prompts):
        raise InputError("--videos, a folder to describe, or --prompts, a file to expand: give one of them")
    if values.prompts:
        expand_file(values, console)
    elif values.endpoint == chat.SHAPES:
        raise InputError("--endpoint=shapes: expands prompts, and can't see videos; name the address of a model")
    else:
        from sora_jax.captioning.caption import caption

        caption(
            as_path(values.videos),
            as_path(values.out),
            chat.chat_of(values, "endpoint"),
            frames=values.frames,
            side=values.side,
            parallel=values.parallel,
            console=console,
        )


def expand_file(values, console):
    """Expand the lines of --prompts into --out, for `sample --prompts`."""
    out, expander = as_path(values.out), chat.expander_of(values, "endpoint", console)
    made = expander(read_lines(values, "prompts", console))
    with atomic_write(out) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in made), encoding="utf-8")
    console.print(f"{out}: {len(made)} prompts", highlight=False, soft_wrap=True)


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
        "--videos=clips --out=captions.jsonl --endpoint=http://localhost:8000/v1 --chat-model=Qwen3-VL-8B",
        "--prompts=prompts.txt --out=long.txt --endpoint=https://api.openai.com/v1 --chat-model=gpt-4.1-mini",
        "--prompts=prompts.txt --out=long.txt --endpoint=shapes",
    ),
)
