"""Captions embedded by `prepare`: the same loss, no text encoder in the step, a clear word where one is needed."""

import contextlib
import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from wan_published import write_component

from sora_jax.checkpoint.model_folder import save_model
from sora_jax.cli.main import main
from sora_jax.config.load import to_json
from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.stream import train_sequences, validation_sequences
from sora_jax.data.media.video import probe
from sora_jax.data.prepare.prepare import Options, prepare
from sora_jax.data.records.records import Records
from sora_jax.data.tokenizer import PAD, Tokenizer, train_tokenizer
from sora_jax.interop.encoders import load_encoder
from sora_jax.interop.wan.tables import text_table
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind
from sora_jax.models.text_encoder import TextEncoder
from sora_jax.train.objectives.flow import FlowObjective
from sora_jax.worlds.shapes.renderer import World, write_world

CODER = AutoencoderSettings(
    width=4, decoder_width=4, multipliers=(1, 1), blocks=1, temporal=(True,), latent_channels=4, dtype="float32"
)


class Home:
    """A data set of latents and embeddings, and the encoder that made these."""

    def __init__(self, folder):
        self.folder, self.encoder = folder, folder / "umt5"
        write_world(folder / "world", 6, World(seed=1, sizes=("16x16",), lengths=(5,)))
        captions = [json.loads(line) for line in (folder / "world/captions.jsonl").read_text().splitlines()]
        words = train_tokenizer([line["caption"] for line in captions], folder / "words.model", vocabulary=400)
        text = dataclasses.replace(tiny.SETTINGS.text, vocabulary=words.vocabulary, weights=str(self.encoder))
        write_component(self.encoder, text_table(text), TextEncoder, text, {})
        with jax.set_mesh(tiny.mesh_of()):
            save_model(folder / "autoencoder", Autoencoder, CODER, tiny.random_params(Autoencoder, CODER))
        self.settings = tiny.change(
            dataclasses.replace(tiny.SETTINGS, text=text, autoencoder=CODER),
            data={
                "path": str(folder / "data"),
                "embeddings": True,
                "sizes": ("16x16",),
                "frames": (5,),
                "validation": 0.3,
                "batch": 2,
                "sequence_length": 112,
                "text_length": 24,
                "caption_dropout": 0.3,
            },
            train={"steps": 2, "save_every": 2},
            sample={"size": "16x16", "frames": 5, "steps": 1},
        )
        self.made = {
            "autoencoder": folder / "autoencoder",
            "tokenizer": folder / "words.model",
            "text_encoder": self.encoder,
        }
        prepare(self.settings, folder / "world", folder / "data", Options(**self.made))
        (folder / "settings.json").write_text(to_json(self.settings))

    def tokens(self):
        return tiny.change(self.settings, data={"embeddings": False})

    def train(self, *flags):
        config = f"--config={self.folder}/settings.json"
        return main(["train", config, f"--workdir={self.folder}/run", "--config.data.batch=8", *flags])

    def sample(self):
        out = f"--out={self.folder}/out.mp4"
        return main(["sample", f"--checkpoint={self.folder}/run", "--prompt=a red circle", out])

    @contextlib.contextmanager
    def no_encoder(self):
        away = self.encoder.with_name("away")
        self.encoder.rename(away)
        yield
        away.rename(self.encoder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("embeddings"))


def test_records_hold_the_embeddings_of_true_tokens_alone(home, one_device):
    records, words = Records(home.folder / "data", "latents"), Tokenizer(home.folder / "data/tokenizer.model")
    text = home.settings.text
    params = load_encoder(text)
    encode = jax.jit(lambda tokens: bind(TextEncoder, text, params)(tokens, jax.numpy.ones_like(tokens)))
    clip, held = records.clips("train")[0], records.read_all("train", 0)["text"]
    assert max(clip.tokens) > text.max_tokens  # some are cut
    expected = [encode(np.int32([words.encode(caption, text.max_tokens)])) for caption in ("", *clip.captions)]
    expected = np.concatenate([np.asarray(made)[0] for made in expected])
    assert held.dtype == ml_dtypes.bfloat16
    assert len(held) == 1 + sum(min(n, text.max_tokens) for n in clip.tokens)
    np.testing.assert_allclose(held.astype(np.float32), expected, rtol=2**-8, atol=1e-5)


def test_the_loss_is_that_of_the_encoder_in_the_step(home, one_device):
    # Of what it reads of a caption a transformer in bfloat16 rounds as much as the records do.
    kinds = [tiny.change(kind, transformer={"dtype": "bfloat16"}) for kind in (home.tokens(), home.settings)]
    params = jax.jit(FlowObjective(kinds[0]).init)(jax.random.key(0))
    draw, drawn_of = np.random.default_rng(0), jax.jit(FlowObjective(kinds[0]).draw)
    # A fresh transformer's head is 0: it would not tell one caption from another.
    params = jax.tree.map(lambda x: x + draw.normal(0, 0.1, x.shape).astype(np.float32), params)
    losses = []
    for settings in kinds:
        objective = FlowObjective(settings)
        frozen, stream, held_out = (
            objective.frozen_params(),
            train_sequences(settings),
            validation_sequences(settings),
        )
        loss = jax.jit(objective.loss)
        for step, made in enumerate([stream.batch_at(0), stream.batch_at(1), held_out.batch_at(0)]):
            batch = tiny.on_mesh(made)
            drawn = drawn_of(jax.random.key(step), batch, 0)
            total, weight, _ = loss(params, frozen, batch, drawn)
            losses.append(float(total / weight))
        other = loss(params, frozen, batch.replace(text=batch.text[:, ::-1]), drawn)[0] / weight
        assert abs(float(other) / losses[-1] - 1) > 5e-4  # the captions count
    assert batch.text.shape == (2, 24, 16) and batch.text.dtype == ml_dtypes.bfloat16
    assert frozen == {}  # of what the step is given, nothing is an encoder's
    # In batches of another shape float32 is rounded elsewhere, and may be to another number of bfloat16 then.
    np.testing.assert_allclose(losses[3:], losses[:3], rtol=1e-4)


def test_captions_are_filled_up_and_dropped_as_tokens_are(home):
    settings = [tiny.change(kind, text={"padded": True}) for kind in (home.tokens(), home.settings)]
    dropped = 0
    for step in range(4):
        tokens, embedded = (train_sequences(kind).batch_at(step) for kind in settings)
        np.testing.assert_array_equal(tokens.text_segment_ids, embedded.text_segment_ids)
        np.testing.assert_array_equal(tokens.text == PAD, ~embedded.text.any(axis=-1))
        lengths = (tokens.text != PAD).reshape(2, 3, -1).sum(axis=-1)
        dropped += np.count_nonzero(lengths == 1)
    assert dropped


def test_what_does_not_fit_is_told(home, tmp_path):
    settings, made = home.settings, home.made
    with pytest.raises(InputError, match=r"made with another tokens .8. than config.text says .6."):
        train_sequences(tiny.change(settings, text={"max_tokens": 6}))
    with pytest.raises(InputError, match=r"config.data.embeddings: needs config.text.weights"):
        tiny.change(settings, text={"weights": ""})
    with pytest.raises(InputError, match="name its tokenizer with --tokenizer"):
        prepare(settings, home.folder / "world", tmp_path / "a", Options(text_encoder=made["text_encoder"]))
    with pytest.raises(InputError, match=r"made with another width .16. than config.text says .32."):
        train_sequences(tiny.change(settings, text={"width": 32}, transformer={"text_width": 32}))
    with pytest.raises(InputError, match="would train a text encoder of its own; set it, and"):
        train_sequences(tiny.change(home.tokens(), text={"weights": ""}))
    other = tmp_path / "other"
    write_component(other, text_table(settings.text), TextEncoder, settings.text, {}, scale=0.5)
    with pytest.raises(InputError, match="made with another text encoder"):
        train_sequences(tiny.change(settings, text={"weights": str(other)}))
    with pytest.raises(InputError, match="made of other text encoder"):
        prepare(settings, home.folder / "world", home.folder / "data", Options(**made | {"text_encoder": other}))
    plain = tmp_path / "c"
    prepare(
        settings, home.folder / "world", plain, Options(**{k: v for k, v in made.items() if k != "text_encoder"})
    )
    with pytest.raises(InputError, match="holds none; run `prepare` with --text-encoder=FOLDER"):
        train_sequences(tiny.change(settings, data={"path": str(plain)}))


@pytest.mark.slow
def test_training_needs_no_encoder_and_samples_need_it(home, capsys):
    with home.no_encoder():
        assert home.train() == 0
        capsys.readouterr()
        assert home.sample() == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and f"config.text.weights: {home.encoder}: no such folder; it holds the text" in told[0]
    flags = ["--config.train.sample_every=1", "--config.train.sample_prompts=('a red circle',)"]
    assert home.train("--config.train.steps=3", "--config.train.save_every=1", *flags) == 0
    assert (home.folder / "run/samples/3/000.mp4").exists()
    assert home.sample() == 0
    assert probe(home.folder / "out.mp4").frames == 5
    assert main(["evaluate", f"--checkpoint={home.folder}/run"]) == 0
