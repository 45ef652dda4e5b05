"""Captions to tokens by a sentencepiece model, cleaned as Wan cleans them."""

import html
import io
import pathlib
from collections.abc import Iterable

import ftfy
import sentencepiece

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write

PAD, EOS, UNKNOWN = 0, 1, 2  # of the tokenizers that are learned here

_BYTES = 256  # one token for each, so that no text is unknown
_MAX_CAPTIONS = 1_000_000  # to learn from


class Tokenizer:
    """Text to tokens by a sentencepiece model: one of `train_tokenizer`, or a published one such as UMT5's.

    eos, unknown: the model's own tokens. Arrays of tokens are filled up with 0, which is UMT5's padding.

    Args:
      path: the .model file.
    Raises: InputError if it is absent, no sentencepiece model, or has no token for the end of a text.
    """

    def __init__(self, path: pathlib.Path):
        if not as_path(path).is_file():
            raise InputError(f"{path}: no such tokenizer; `prepare` writes tokenizer.model beside the records")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=as_path(path).read_bytes())
        except RuntimeError as error:
            raise InputError(f"{path}: no sentencepiece model") from error
        self.eos, self.unknown = self._processor.eos_id(), self._processor.unk_id()
        if self.eos < 0:
            raise InputError(f"{path}: has no token for the end of a text; take a T5's or UMT5's spiece.model")

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return self._processor.vocab_size()

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """Tokens of a text, the last one `eos`; a text that is too long is cut before it. "" gives only `eos`."""
        tokens = self._processor.encode(clean(text))
        return [*(tokens if max_tokens is None else tokens[: max_tokens - 1]), self.eos]

    def decode(self, tokens: list[int]) -> str:
        """The text of these tokens."""
        return self._processor.decode([token for token in tokens if token not in (PAD, self.eos)])


def clean(text: str) -> str:
    """The text as Wan cleans it: broken Unicode mended, HTML entities resolved twice, blanks merged."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def train_tokenizer(captions: Iterable[str], path: pathlib.Path, *, vocabulary: int) -> Tokenizer:
    """A tokenizer learned from captions; its file appears whole or not at all.

    Byte-pair merges over words, with bytes for characters that no caption has. Sentencepiece's unigram model drops
    whole words of small, repetitive sets of captions, and needs twice as many tokens for them.

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
        input_sentence_size=_MAX_CAPTIONS,
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
