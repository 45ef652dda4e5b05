"""The verb `caption`: a folder of videos described, or prompts written out, by a chat model.

What has been answered is kept beside the output, and never asked for again: see `cache`.
"""

import concurrent.futures
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import rich.console

from sora_jax.captioning.cache import Cache, key_of
from sora_jax.captioning.chat import BudgetSpentError, Chat, NoAnswerError
from sora_jax.captioning.questions import DESCRIBE, EXPAND, describe, expansion, read_captions, read_expansion
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import atomic_write
from sora_jax.data.prepare.captions import CAPTION_FILES, find_sources
from sora_jax.worlds.shapes.prompts import write_out

HOPELESS = 5  # questions without one answer in the beginning: then something is wrong with all of them


class _UnreadableError(Exception):
    """This file can't be shown to anybody."""


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
    """Describe every video of a folder, in three lengths; what people wrote is kept as another wording.

    Args:
      videos: as `prepare` takes it.
      out: a .jsonl, for `prepare --captions`; answers are kept in a .cache.jsonl beside it.
      frames, side: how many frames of each video the model is shown, and their longer side in pixels.
      parallel: questions on their way at a time.
    Returns: {"captioned": in out, "asked": by this run, "failed": {name: reason}, "left": for the budget}.
    Raises: InputError if nothing can be asked or written.
    """
    if out.suffix != ".jsonl":
        raise InputError(f"--out={out}: captions are written as .jsonl")
    if out.resolve() in [(videos / name).resolve() for name in CAPTION_FILES]:
        raise InputError(
            f"--out={out}: is where people's captions stand; name another file for `prepare --captions`"
        )
    sources = find_sources(videos)
    keys, captions = {}, {}

    def answer(source):
        try:
            messages = describe(source.path, frames=frames, side=side)
        except InputError as error:
            raise _UnreadableError(str(error)) from error
        return chat.ask(messages, read_captions)

    with Cache(cache_beside(out)) as cache:
        for source in sources:
            with source.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            asked = {"model": chat.endpoint.model, "text": DESCRIBE, "frames": frames, "side": side}
            keys[source.name] = key_of(content=content, **asked)
        # Of copies one is asked about.
        todo = {keys[s.name]: s for s in sources if cache.get(keys[s.name]) is None}

        def keep(key, found):
            cache.put(key, found, video=todo[key].name, model=chat.endpoint.model)

        try:
            failed, left = _ask_all(todo, answer, keep, chat, parallel, "captions", console)
        finally:
            for source in sources:
                if (found := cache.get(keys[source.name])) is not None:
                    captions[source.name] = {"video": source.name, **found, **_people(source)}
            if captions:
                _write_lines(out, [json.dumps(row, ensure_ascii=False) for row in captions.values()])
    result = {
        "captioned": len(captions),
        "asked": len(todo) - len(failed) - left,
        "failed": {todo[key].name: reason for key, reason in failed.items()},
        "left": left,
    }
    _tell(result, len(sources), out, chat, console)
    return result


def _people(source) -> dict[str, str]:
    """What is said about it already, under names by which `prepare` takes it as further wordings."""
    names = ["original_caption", *(f"original_{n}_caption" for n in range(2, len(source.captions) + 1))]
    return dict(zip(names, source.captions, strict=False))


def expand(
    prompts: Sequence[str],
    chat: Chat | None,
    *,
    cache: Cache | None = None,
    parallel: int = 4,
    console: rich.console.Console,
) -> list[str]:
    """Write out each prompt as the long description that a video model was trained on.

    Args:
      chat: None: the template of the shapes world, without any network.
      cache: of answers; None: each is asked for.
      parallel: questions on their way at a time.
    Returns: as many; where there is no answer, the prompt as it is, and the console says why.
    Raises: InputError if nothing can be asked, or the template is given what is not of its world.
    """
    if chat is None:
        return [write_out(prompt) for prompt in prompts]
    keys = [key_of(prompt=prompt, model=chat.endpoint.model, text=EXPAND) for prompt in prompts]
    made = {key: cache.get(key) for key in keys} if cache else dict.fromkeys(keys)
    todo = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if made[key] is None}

    def keep(key, found):
        made[key] = found
        if cache:
            cache.put(key, found, prompt=todo[key], model=chat.endpoint.model)

    def answer(prompt):
        return chat.ask(expansion(prompt), read_expansion)

    failed, left = _ask_all(todo, answer, keep, chat, parallel, "prompts", console)
    for key, reason in failed.items():
        console.print(f"as it is: {todo[key]}: {reason}", highlight=False, soft_wrap=True)
    if left:
        console.print(f"{_spent(chat)}; {left} prompts stay as they are", highlight=False, soft_wrap=True)
    return [made[key] or prompt for key, prompt in zip(keys, prompts, strict=True)]


def expand_file(
    prompts: Sequence[str], out: pathlib.Path, chat: Chat | None, *, parallel: int, console: rich.console.Console
) -> list[str]:
    """Write out prompts into a file for `sample --prompts`, a line each; arguments are those of `expand`."""
    if chat is None:
        made = expand(prompts, None, console=console)
    else:
        with Cache(cache_beside(out)) as cache:
            made = expand(prompts, chat, cache=cache, parallel=parallel, console=console)
    _write_lines(out, made)
    console.print(f"{out}: {len(made)} prompts", highlight=False, soft_wrap=True)
    return made


def cache_beside(out: pathlib.Path) -> pathlib.Path:
    return out.with_name(f"{out.stem}.cache.jsonl")


def _ask_all(
    todo: dict, answer: Callable, keep: Callable, chat: Chat, parallel: int, name: str, console
) -> tuple[dict[str, str], int]:
    """Ask all questions, some at a time.

    Args:
      todo: key -> what `answer` takes.
      keep: called with each (key, answer) as it comes.
    Returns: (key -> why there is no answer, how many were not asked for the budget).
    Raises: InputError if that concerns all of them.
    """
    failed: dict[str, str] = {}
    left = answered = unanswered = 0
    with (
        progress_bar(console) as bar,
        concurrent.futures.ThreadPoolExecutor(parallel, thread_name_prefix="chat") as pool,
    ):
        task = bar.add_task(name, total=len(todo), numbers="")

        def work(key, question):
            keep(key, answer(question))  # here, so that what was paid for is kept whatever comes

        waiting = {pool.submit(work, key, question): key for key, question in todo.items()}
        try:
            for future in concurrent.futures.as_completed(waiting):
                key = waiting[future]
                try:
                    future.result()
                    answered += 1
                except BudgetSpentError:
                    left += 1
                except _UnreadableError as error:
                    failed[key] = str(error)
                except NoAnswerError as error:
                    failed[key] = str(error)
                    unanswered += 1
                    if not answered and unanswered >= min(HOPELESS, len(todo)):
                        raise InputError(
                            f"no answer to any of the first {unanswered} questions: {error}"
                        ) from None
                bar.update(task, completed=answered + len(failed), numbers=f"{chat.tokens:,} tokens")
        except BaseException:
            chat.close()
            for future in waiting:
                future.cancel()
            raise
    return failed, left


def _write_lines(out, lines):
    with atomic_write(out) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _spent(chat):
    return f"the budget of {chat.budget.amount:,} {chat.budget.unit} is spent"


def _tell(result, total, out, chat, console):
    for name, reason in result["failed"].items():
        console.print(f"left out: {name}: {reason}", highlight=False, soft_wrap=True)
    if result["left"]:
        line = f"{_spent(chat)}; {result['left']} videos are left, the same command goes on with them"
        console.print(line, highlight=False, soft_wrap=True)
    line = f"{out}: {result['captioned']} of {total} videos, {chat.requests:,} requests, {chat.tokens:,} tokens"
    console.print(line, highlight=False, soft_wrap=True)
