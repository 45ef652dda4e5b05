"""Our tokens against transformers' tokenizer of one model with UMT5's ids, after the cleaning of diffusers."""

import io
import random

import pytest

pytest.importorskip("transformers", reason="parity needs transformers: pip install sora_jax[parity]")
pytest.importorskip("diffusers", reason="parity needs diffusers: pip install sora_jax[parity]")

import sentencepiece
import transformers
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors

from sora_jax.data.tokenizer import Tokenizer, clean

pytestmark = pytest.mark.parity
EXTRA_IDS = 300  # that tokenizer.json has beside the pieces of spiece.model
WORDS = {
    "latin": "a red fox runs over snow, naïve café Ñandú tiếng Việt có dấu İstanbul",
    "cyrillic": "вода течёт по камням и снег идёт",
    "greek": "η αλεπού τρέχει στο χιόνι γρήγορα",
    "han": "一只狐狸 在雪地里 奔跑 背景人很多",
    "kana": "キツネが 雪の上を 走る ひらがな ｶﾅ",
    "hangul": "여우가 눈 위를 달린다 한국어",
    "arabic": "ثعلب يركض على الثلج بسرعة",
    "hebrew": "שועל רץ על השלג מהר",
    "devanagari": "लोमड़ी बर्फ पर दौड़ती है",
    "thai": "สุนัขจิ้งจอก วิ่ง บนหิมะ",
    "georgian": "მელა გარბის თოვლზე",
    "armenian": "աղվեսը վազում է ձյան վրա",
}
OTHER = [
    "🦊",
    "❄️",
    "👩‍👩‍👧",
    "\x00",
    "\x07",
    "\x1b[31m",
    "\u200b",
    "\ufeff",
    "ﬁne",
    "ｆｕｌｌ",
    "&amp;lt;b&amp;gt;",
    "Â©",
    "𝔘",
    "\t\n",
    "½",
    "&#0;",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small sentencepiece model with the ids of UMT5: pad 0, eos 1, bos 2, unk 3."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*WORDS.values()] * 20),
        model_writer=written,
        vocab_size=900,
        hard_vocab_limit=False,
        model_type="unigram",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    path.write_bytes(written.getvalue())
    return path


def their_tokenizer(path):
    """transformers' tokenizer of a sentencepiece model's pieces and the extra ids, as in tokenizer.json."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    extra = [f"<extra_id_{n}>" for n in reversed(range(EXTRA_IDS))]
    fast = FastTokenizer(models.Unigram([*pieces, *((e, 0.0) for e in extra)], unk_id=3, byte_fallback=True))
    fast.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", bos_token="<s>"
    )


def strings() -> list[str]:
    """Two hundred texts: words of each script, alone and mixed, with emoji, control characters and entities."""
    draw, found = random.Random(0), [*WORDS.values(), "", " ", " ".join(WORDS["latin"].split() * 200)]
    every = [word for words in WORDS.values() for word in words.split()]
    for n in range(200 - len(found)):
        words = every if n % 3 else list(WORDS.values())[n % len(WORDS)].split()
        parts = draw.choices([*words, *OTHER], k=draw.randint(1, 30))
        found.append(draw.choice([" ", "  ", "\n"]).join(parts))
    return found


def test_tokens_equal_transformers_on_twelve_scripts(model):
    ours, theirs = Tokenizer(model), their_tokenizer(model)
    assert (ours.eos, ours.unknown) == (1, 3) and len(theirs) == ours.vocabulary + EXTRA_IDS
    for text in strings():
        assert clean(text) == prompt_clean(text)
        wanted = theirs(prompt_clean(text), max_length=512, truncation=True).input_ids
        assert ours.encode(text, 512) == wanted, repr(text)
