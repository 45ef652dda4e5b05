"""Prompts expanded by a chat model into the long descriptions that video models are trained on."""

from collections.abc import Sequence

import rich.console

from sora_jax.captioning.ask import ask_all
from sora_jax.captioning.cache import Cache, key_of
from sora_jax.captioning.chat import Chat
from sora_jax.captioning.messages import EXPAND, expansion_messages, read_expansion


def expand(
    prompts: Sequence[str],
    chat: Chat,
    *,
    cache: Cache | None = None,
    parallel: int = 4,
    console: rich.console.Console,
) -> list[str]:
    """Expand prompts.

    Args:
      cache: of answers; None: each prompt is asked for.
      parallel: requests at the same time.
    Returns: as many prompts; one without an answer stays as it is, and the console says why.
    Raises: InputError if nothing can be asked.
    """
    keys = [key_of(prompt=prompt, model=chat.endpoint.model, text=EXPAND) for prompt in prompts]
    made = {key: cache.get(key) for key in keys} if cache else dict.fromkeys(keys)
    todo = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if made[key] is None}

    def keep(key, found):
        made[key] = found
        if cache:
            cache.put(key, found, prompt=todo[key], model=chat.endpoint.model)

    def answer(prompt):
        return chat.ask(expansion_messages(prompt), read_expansion)

    failed, left = ask_all(todo, answer, keep, chat, parallel=parallel, name="prompts", console=console)
    for key, reason in failed.items():
        console.print(f"not expanded: {todo[key]}: {reason}", highlight=False, soft_wrap=True)
    if left:
        console.print(f"{chat.budget_spent()}; {left} prompts are not expanded", highlight=False, soft_wrap=True)
    return [made[key] or prompt for key, prompt in zip(keys, prompts, strict=True)]
