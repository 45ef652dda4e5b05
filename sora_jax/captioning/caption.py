"""Captions of a folder of videos by a chat model; answers are kept in a cache beside the output."""

import hashlib
import json
import pathlib

import rich.console

from sora_jax.captioning.ask import UnreadableError, ask_all
from sora_jax.captioning.cache import Cache, cache_beside, key_of
from sora_jax.captioning.chat import Chat
from sora_jax.captioning.messages import DESCRIBE, caption_messages, read_captions
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write
from sora_jax.data.prepare.captions import TABLES
from sora_jax.data.prepare.sources import find_sources


def caption(
    videos: pathlib.Path,
    out: pathlib.Path,
    chat: Chat,
    *,
    frames: int,
    side: int,
    parallel: int,
    console: rich.console.Console,
) -> dict:
    """Describe every video of a folder in three lengths; captions by people are kept as further wordings.

    Args:
      videos: a folder, as `prepare` takes it.
      out: a .jsonl for `prepare --captions`.
      frames: maximum number of frames sent per video.
      side: maximum of their longer side, in pixels.
      parallel: requests at the same time.
    Returns: {"captioned": videos in `out`, "asked": answers of this run, "failed": {name: reason}, "left": videos
      left when the budget was spent}.
    Raises: InputError if nothing can be asked or written.
    """
    _check_out(videos, out)
    sources = find_sources(videos).sources
    asked = {"model": chat.endpoint.model, "text": DESCRIBE, "frames": frames, "side": side}
    keys = {source.name: key_of(content=_content_hash(source), **asked) for source in sources}

    def answer(source):
        try:
            with source.opened() as path:
                messages = caption_messages(path, frames=frames, side=side)
        except InputError as error:
            raise UnreadableError(str(error)) from error
        return chat.ask(messages, read_captions)

    with Cache(cache_beside(out)) as cache:
        # By key, so that of equal files one is asked about.
        todo = {keys[s.name]: s for s in sources if cache.get(keys[s.name]) is None}

        def keep(key, found):
            cache.put(key, found, video=todo[key].name, model=chat.endpoint.model)

        try:
            failed, left = ask_all(todo, answer, keep, chat, parallel=parallel, name="captions", console=console)
        finally:
            captioned = _write_captions(out, sources, keys, cache)
    result = {
        "captioned": captioned,
        "asked": len(todo) - len(failed) - left,
        "failed": {todo[key].name: reason for key, reason in failed.items()},
        "left": left,
    }
    _report(result, len(sources), out, chat, console)
    return result


def _check_out(videos, out):
    if out.suffix != ".jsonl":
        raise InputError(f"--out={out}: captions are written as .jsonl")
    if out.resolve() in [(videos / name).resolve() for name in TABLES]:
        raise InputError(f"--out={out}: has people's captions; name another file for `prepare --captions`")


def _content_hash(source) -> str:
    with source.opened() as path, path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_captions(out, sources, keys, cache) -> int:
    """Write the captions that the cache has; returns their number."""
    lines = []
    for source in sources:
        if (found := cache.get(keys[source.name])) is not None:
            line = {"video": source.name, **found, **_human_captions(source)}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    if lines:
        with atomic_write(out) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _human_captions(source) -> dict[str, str]:
    """The captions that a video has already, under keys that `prepare` reads as further wordings."""
    names = ["original_caption", *(f"original_{n}_caption" for n in range(2, len(source.captions) + 1))]
    return dict(zip(names, source.captions, strict=False))


def _report(result, total, out, chat, console):
    for name, reason in result["failed"].items():
        console.print(f"left out: {name}: {reason}", highlight=False, soft_wrap=True)
    if result["left"]:
        line = f"{chat.budget_spent()}; {result['left']} videos are left, the same command continues with them"
        console.print(line, highlight=False, soft_wrap=True)
    line = f"{out}: {result['captioned']} of {total} videos, {chat.requests:,} requests, {chat.tokens:,} tokens"
    console.print(line, highlight=False, soft_wrap=True)
