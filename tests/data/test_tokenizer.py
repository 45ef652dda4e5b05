"""The tokenizer: nothing is lost, nothing is unknown, EOS is always there."""

import io

import pytest
import sentencepiece

from sora_jax.core.errors import InputError
from sora_jax.data.tokenizer import EOS, PAD, UNKNOWN, Tokenizer, train_tokenizer
from sora_jax.worlds.shapes.captions import STYLES, caption
from sora_jax.worlds.shapes.renderer import bounces, sample_scene


def shapes_captions(count):
    size = {"frames": 17, "size": (64, 64), "fps": 16.0}
    scenes = [sample_scene(0, i) for i in range(count)]
    return [caption(s, style, moving=True, bounced=bounces(s, **size)) for s in scenes for style in STYLES]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(shapes_captions(300), tmp_path_factory.mktemp("t") / "t.model", vocabulary=1024)


def test_the_ids_of_umt5_are_read_from_its_model(tmp_path):
    """A published spiece.model has pad 0, eos 1, bos 2, unk 3."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red fox runs over snow"] * 9), model_writer=written, vocab_size=300,
        hard_vocab_limit=False, model_type="unigram", byte_fallback=True, minloglevel=2,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(written.getvalue())
    published = Tokenizer(tmp_path / "spiece.model")
    assert (published.eos, published.unknown) == (1, 3)
    tokens = published.encode("a red fox &amp;amp; \x00 snow")
    assert tokens[-1] == 1 and published.decode(tokens) == "a red fox & snow"


def test_text_survives_the_round_trip(tokenizer):
    for text in [*shapes_captions(20), "Ünseen wörds, 漢字 and 🎈!", "UPPER  and\n lower"]:
        tokens = tokenizer.encode(text)
        assert tokens[-1] == EOS
        assert not {PAD, EOS, UNKNOWN} & set(tokens[:-1])
        assert tokenizer.decode(tokens) == " ".join(text.split())


def test_frequent_words_are_one_token(tokenizer):
    assert len(tokenizer.encode("a small red circle moves left on a blue background")) == 10 + 1


def test_special_tokens_are_those_of_umt5(tokenizer):
    assert (PAD, EOS, UNKNOWN) == (0, 1, 2)
    assert tokenizer.encode("") == tokenizer.encode(" \n ") == [EOS]


def test_long_text_is_cut_before_the_end_token(tokenizer):
    whole = tokenizer.encode("red " * 1000)
    assert len(whole) == 1001
    assert tokenizer.encode("red " * 1000, 16) == [*whole[:15], EOS]
    assert tokenizer.encode("red", 16) == tokenizer.encode("red")


def test_html_entities_are_resolved(tokenizer):
    assert tokenizer.encode("red &amp;amp; blue") == tokenizer.encode("red & blue")


def test_broken_unicode_is_mended(tokenizer):
    assert tokenizer.encode("schÃ¶n") == tokenizer.encode("schön")


def test_training_works_on_one_caption_and_again_gives_the_same(tmp_path):
    first = train_tokenizer(["A cat."], tmp_path / "a.model", vocabulary=100_000)
    train_tokenizer(["A cat.", "A  cat."], tmp_path / "b.model", vocabulary=100_000)
    assert first.decode(first.encode("A cat.")) == "A cat."
    assert 259 < first.vocabulary < 300
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_bad_input_is_told(tmp_path):
    with pytest.raises(InputError, match="100 is too small; these captions need 26"):
        train_tokenizer(["A cat."], tmp_path / "t.model", vocabulary=100)
    with pytest.raises(InputError, match="no caption"):
        train_tokenizer(["", " "], tmp_path / "t.model", vocabulary=1000)
    with pytest.raises(InputError, match="no such tokenizer"):
        Tokenizer(tmp_path / "absent.model")
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(InputError, match="no sentencepiece model"):
        Tokenizer(tmp_path / "text.model")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_prefix=str(tmp_path / "other"),
        vocab_size=20,
        hard_vocab_limit=False,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(InputError, match="has no token for the end of a text"):
        Tokenizer(tmp_path / "other.model")
