"""Captions to tokens: sentencepiece, with UMT5's special tokens."""

import html
import io
import pathlib
from collections.abc import Iterable

import ftfy
import sentencepiece

from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write

PAD, EOS, UNKNOWN = 0, 1, 2

_BYTES = 256  # one token for each, so that no text is unknown
_LARGEST_SAMPLE = 1_000_000  # captions to learn from; more teach nothing new


class Tokenizer:
    """Text to tokens by a sentencepiece model: one that `train_tokenizer` wrote, or UMT5's own.

    Args:
      path: the .model file.
    Raises: InputError if it is absent, no sentencepiece model, or has other special tokens than UMT5.
    """

    def __init__(self, path: pathlib.Path):
        if not pathlib.Path(path).is_file():
            raise InputError(f"{path}: no such tokenizer; `prepare` writes tokenizer.model beside the records")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=pathlib.Path(path).read_bytes())
        except RuntimeError as error:
            raise InputError(f"{path}: no sentencepiece model") from error
        special = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if special != (PAD, EOS, UNKNOWN):
            raise InputError(f"{path}: pad, end, unknown are tokens {special}; UMT5 has {(PAD, EOS, UNKNOWN)}")

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        return self._processor.vocab_size()

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Tokens of a text, the last one EOS; what exceeds `max_tokens` is cut before it. "" gives only EOS."""
        tokens = self._processor.encode(clean(text))
        return [*(tokens if max_tokens is None else tokens[: max_tokens - 1]), EOS]

    def decode(self, tokens: list[int]) -> str:
        """The text that these tokens stand for."""
        return self._processor.decode([token for token in tokens if token not in (PAD, EOS)])


def clean(text: str) -> str:
    """The text as UMT5 has it: broken Unicode mended, HTML entities resolved, every run of blanks one."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def train_tokenizer(captions: Iterable[str], path: pathlib.Path, *, vocabulary: int) -> Tokenizer:
    """Learn a tokenizer from captions; the file appears whole or not at all.

    Merges of pairs (BPE) over whole words, bytes for whatever the captions never had. On small, repetitive sets
    of captions sentencepiece's unigram model keeps no whole word that is not part of another: 33 tokens for a
    caption of the shapes world, where merges need 15.

    Args:
      captions: texts.
      path: of the .model file.
      vocabulary: at most so many tokens; few captions do not fill it.
    Raises: InputError if the vocabulary has no room for single characters.
    """
    texts = sorted({clean(text) for text in captions} - {""})
    if not texts:
        raise InputError("no caption to learn a tokenizer from; give captions, or a tokenizer")
    least = _BYTES + 3 + len({character for text in texts for character in text}) + 1
    if vocabulary < least:
        raise InputError(f"config.text.vocabulary: {vocabulary} is too small; these captions need {least} or more")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        max_sentence_length=1 << 20,
        input_sentence_size=_LARGEST_SAMPLE,
        shuffle_input_sentence=False,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNKNOWN,
        bos_id=-1,
        minloglevel=2,
    )
    with atomic_write(path) as partial:
        partial.write_bytes(model.getvalue())
    return Tokenizer(path)
