"""Flags of a chat model, which captions videos and expands prompts."""

import os

from sora_jax.cli.flags import Flag, missing
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path

FLAGS = (
    Flag("chat-model", "Name of the model at that address."),
    Flag(
        "key-variable",
        "Environment variable with the API key, if one is needed; keys are read from nowhere else.",
        default="OPENAI_API_KEY",
        advanced=True,
    ),
    Flag(
        "budget", "Most that this run may use: 500requests (failed ones included) or 2000000tokens.", advanced=True
    ),
    Flag("parallel", "Requests sent at the same time.", int, 4, min=1, advanced=True),
    Flag("retries", "Further tries after an error that may pass.", int, 5, min=0, advanced=True),
    Flag("rate", "Maximum requests per minute; 0: no limit.", float, 0.0, min=0.0, advanced=True),
    Flag(
        "timeout",
        "Seconds without a byte of an answer before a request fails.",
        float,
        120.0,
        min=0.1,
        advanced=True,
    ),
)


SHAPES = "shapes"  # in place of an address: the rules of the shapes world


def chat_of(values, key: str):
    """The chat model whose address the flag `key` has."""
    from sora_jax.captioning.chat import Budget, Chat, Endpoint

    url, budget = values[key].value, values.budget
    if not values.chat_model:
        raise missing("chat-model", "Qwen3-VL-8B-Instruct")
    endpoint = Endpoint(
        url,
        values.chat_model,
        key=os.environ.get(values.key_variable, "").strip(),
        flag=key,
        timeout=values.timeout,
        retries=values.retries,
        rate=values.rate,
    )
    return Chat(endpoint, Budget.read(budget) if budget else None)


def expander_of(values, key: str, console):
    """A function that expands a list of prompts: with the chat model of the flag `key`, or by rules."""
    from sora_jax.captioning.cache import Cache, cache_beside
    from sora_jax.captioning.expand import expand
    from sora_jax.worlds.shapes.prompts import expand_by_rules

    if values[key].value == SHAPES:
        return lambda prompts: [expand_by_rules(prompt) for prompt in prompts]
    chat = chat_of(values, key)

    def ask(prompts):
        # Answers are kept: the same command has the same result, and continues after an interruption.
        with Cache(cache_beside(as_path(values.out))) as cache:
            return expand(prompts, chat, cache=cache, parallel=values.parallel, console=console)

    return ask


def check_unused(values, key: str):
    """Raise InputError if a flag of the chat model was given, but not its address."""
    for flag in FLAGS:
        if values[flag.key].present and not values[key].value:
            raise InputError(f"--{flag.name}: is for a chat model; name its address, --{key}")
