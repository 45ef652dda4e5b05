"""What a model can't take from a prompt: tokens beyond its limit, words that it was never trained on."""

import re

from sora_jax.data.tokenizer import Tokenizer
from sora_jax.generate.generator import Generator

SMALL_VOCABULARY = (
    4096  # tokens; one learned from the captions of a small world, in which each of their words is one
)
SHOWN = 40  # characters of a prompt in a note


def prompt_notes(generator: Generator, prompt: str) -> list[str]:
    """What to print of a prompt, one line each."""
    notes, limit = [], generator.settings.text.max_tokens
    if (length := len(generator.tokenizer.encode(prompt))) > limit:
        notes.append(f"{length - limit} of {length} tokens are cut from the prompt {prompt[:SHOWN]!r}...")
    if words := unseen_words(generator.tokenizer, prompt):
        notes.append(f"this model has never seen the words {', '.join(words)} of the prompt {prompt[:SHOWN]!r}")
    return notes


def unseen_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words that a small tokenizer cuts into pieces; a large one cuts many words that it has seen."""
    if tokenizer.vocabulary > SMALL_VOCABULARY:
        return []
    words = dict.fromkeys(re.findall(r"[^\W_]+", text))
    return [word for word in words if len(tokenizer.encode(word)) > 2]  # a piece and the end
