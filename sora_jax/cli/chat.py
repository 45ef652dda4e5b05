"""Flags of a chat model, which captions videos and expands prompts."""

import os

from sora_jax.cli.flags import Flag, missing
from sora_jax.core.errors import InputError

FLAGS = (
    Flag("model", "Name of the model at that address."),
    Flag(
        "key-variable",
        "Environment variable with the API key, if one is needed; keys are read from nowhere else.",
        default="OPENAI_API_KEY",
    ),
    Flag("budget", "Most that this run may use: 500requests (failed ones included) or 2000000tokens."),
    Flag("parallel", "Requests sent at the same time.", int, 4, min=1),
    Flag("retries", "Further tries after an error that may pass.", int, 5, min=0),
    Flag("rate", "Maximum requests per minute; 0: no limit.", float, 0.0, min=0.0),
    Flag("timeout", "Seconds without a byte of an answer before a request fails.", float, 120.0, min=0.1),
)


def chat_of(values, key: str):
    """The chat model whose address the flag `key` has; None for "shapes", the rules of the shapes world."""
    from sora_jax.captioning.chat import Budget, Chat, Endpoint

    url, budget = values[key].value, values.budget
    if url == "shapes":
        return None
    if not values.model:
        raise missing("model", "Qwen3-VL-8B-Instruct")
    endpoint = Endpoint(
        url,
        values.model,
        key=os.environ.get(values.key_variable, "").strip(),
        flag=key,
        timeout=values.timeout,
        retries=values.retries,
        rate=values.rate,
    )
    return Chat(endpoint, Budget.read(budget) if budget else None)


def check_unused(values, key: str):
    """Raise InputError if a flag of the chat model was given, but not its address."""
    for flag in FLAGS:
        if values[flag.key].present and not values[key].value:
            raise InputError(f"--{flag.name}: is for a chat model; name its address, --{key}")
