"""A refiner's training: it begins as the model that it starts from, and is given noised inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_refiner
from tiny_run import write_data

from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.model_folder import save_model
from sora_jax.core.errors import InputError
from sora_jax.core.patches import patchify
from sora_jax.core.storage import copy_files
from sora_jax.data.conditioning_frames import add_mask_channels
from sora_jax.data.loader.pairs import degraded
from sora_jax.data.loader.stream import train_sequences, validation_sequences
from sora_jax.data.media.resize import AREA, BICUBIC, resized
from sora_jax.diffusion.conditioning import refiner_condition
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel
from sora_jax.train.init_from import check_init_from, init_from
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.setup import open_records
from sora_jax.train.state import init_state
from sora_jax.train.step import make_step

CLEAN = {"blur": 0.0, "grain": 0.0, "compressed": 0.0, "slowed": 0.0}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A generator's workdir, an autoencoder, and pixels of clips."""
    folder = tmp_path_factory.mktemp("home")
    write_data(folder / "data", "pixels", tiny.CODER)
    settings = tiny_refiner.settings_of("flow", transformer={"condition_channels": 0}, data={"autoencoder": ""})
    with jax.set_mesh(tiny.mesh_of()):
        coder = tiny.random_params(Autoencoder, tiny.CODER)
        save_model(folder / "run" / "autoencoder", Autoencoder, tiny.CODER, coder)
        save_weights(folder / "run", tiny_refiner.as_arrays(tiny.random_params(VideoModel, settings)), settings)
    copy_files(folder / "run" / "autoencoder", folder / "autoencoder")
    (folder / "run" / "tokenizer.model").write_bytes((folder / "data" / "tokenizer.model").read_bytes())
    return folder


def settings_for(home, **refine):
    data = {"path": str(home / "data"), "autoencoder": str(home / "autoencoder"), "threads": 1}
    return tiny_refiner.settings_of(data=data, refine=refine, train={"init_from": str(home / "run")})


def start(settings):
    objective = make_objective(settings)
    optimizer = make_optimizer(settings.optimizer, settings.train.steps)
    return objective, optimizer, init_from(settings, init_state(objective, optimizer, jax.random.key(0)))


def test_a_refiner_begins_as_the_generator_to_the_bit(home):
    settings = settings_for(home)
    with jax.set_mesh(tiny.mesh_of()):
        check_init_from(settings, open_records(settings))
        _, _, state = start(settings)
        batch = tiny.on_mesh(tiny.random_batch(0, tiny.change(settings, data={"batch": 8, "text_length": 12})))
        shape = (*batch.segment_ids.shape, 4 * settings.transformer.condition_channels)
        condition = jax.random.normal(jax.random.key(1), shape)
        times, index = jnp.full((8, 4), 0.4), batch.segment_ids

        def velocity(settings, params, batch):
            model = bind(VideoModel, settings, params)
            return model.velocity(model.embed_text(batch), batch.patches, times, index)

        run = jax.jit(velocity, static_argnums=0)
        base = tiny_refiner.settings_of("flow", transformer={"condition_channels": 0}, data={"autoencoder": ""})
        params = dict(state.params, transformer=dict(state.params["transformer"]))
        refined = run(settings, params, batch.replace(condition=condition))
        params["transformer"].pop("condition_embedding")
        np.testing.assert_array_equal(refined, run(base, params, batch))


def test_updates_lower_the_loss_and_use_the_condition(home):
    settings = settings_for(home)
    with jax.set_mesh(tiny.mesh_of()):
        objective, optimizer, state = start(settings)
        step, frozen = make_step(objective, optimizer, settings), objective.frozen_params()
        stream, losses = train_sequences(settings), []
        for n in range(6):
            state, metrics = step(state, frozen, objective.place(stream.batch_at(n % 2)))
            losses.append(float(metrics["loss"]))
        assert np.isfinite(losses).all() and np.mean(losses[4:]) < np.mean(losses[:2])
        assert float(jnp.abs(state.params["transformer"]["condition_embedding"]["kernel"]).max()) > 0


def test_the_condition_is_the_layout_of_image_to_video(one_device):
    draw = np.random.default_rng(0)
    latents = draw.normal(size=(3, 4, 4, 5)).astype(np.float32)
    wanted = patchify(add_mask_channels(latents, (0, 1, 2, 3, 4), 2), (1, 2, 2))
    patches = patchify(latents, (1, 2, 2))[None]
    trust = np.ones((1, patches.shape[1], 2), np.float32)
    made = refiner_condition(patches, trust, np.zeros_like(patches), 0.0, 4)
    np.testing.assert_allclose(made[0], wanted, atol=1e-6)
    half = refiner_condition(patches, trust, np.ones_like(patches), 0.5, 4)[0].reshape(-1, 4, 7)
    np.testing.assert_allclose(half[..., :2], 0.5)
    np.testing.assert_allclose(half[..., 2:], (0.5 * patches[0] + 0.5).reshape(-1, 4, 5), atol=1e-6)


def test_a_pair_is_a_crop_and_the_same_crop_of_its_small_version(home):
    batch = train_sequences(settings_for(home, **CLEAN)).batch_at(0)
    assert batch.pixels.shape == batch.low.shape == (8, 1, 5, 16, 16, 3)
    read = open_records(settings_for(home))
    clips = [read.read("train", i) for i in range(8)]
    for truth, low in zip(batch.pixels[:, 0], batch.low[:, 0], strict=True):
        places = [
            (clip, y, x)
            for clip in clips
            for y in range(17)
            for x in range(17)
            if np.array_equal(clip[0, y : y + 16, x : x + 16], truth[0])
        ]
        ((clip, y, x),) = places
        up = resized(resized(clip, (16, 16), AREA), (32, 32), BICUBIC)
        np.testing.assert_array_equal(low, up[:, y : y + 16, x : x + 16])
    assert (batch.trust == 1).all()


def test_pairs_are_a_function_of_seed_and_number(home):
    settings = settings_for(home)
    whole = train_sequences(settings).batch_at(3)
    part = train_sequences(settings, rows=[2, 5]).batch_at(3)
    for name in ("pixels", "low", "trust"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[2, 5]])
    held = validation_sequences(settings)
    np.testing.assert_array_equal(held.batch_at(0).low, held.batch_at(0).low)


def test_inputs_are_slowed_blurred_compressed_and_noisy():
    settings = tiny_refiner.settings_of().refine
    low = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    same, trust = degraded(low, np.random.default_rng(0), dataclasses.replace(settings, **CLEAN))
    np.testing.assert_array_equal(same, low)
    slow, trust = degraded(low, np.random.default_rng(0), dataclasses.replace(settings, **CLEAN | {"slowed": 1.0}))
    real = np.flatnonzero(trust == 1)
    assert len(np.unique(np.diff(real))) == 1 and np.array_equal(slow[real], low[real])
    assert (trust[np.setdiff1d(np.arange(9), real)] == 0.5).all()
    for change in ({"compressed": 1.0}, {"blur": 3.0}, {"grain": 0.2}):
        made = [
            degraded(low, np.random.default_rng(seed), dataclasses.replace(settings, **CLEAN | change))[0]
            for seed in range(6)
        ]
        assert any(not np.array_equal(x, low) for x in made) and all(x.shape == low.shape for x in made)


def test_generated_inputs_are_found_by_name_and_checked(home):
    settings = settings_for(home, generated=str(home / "data"), scale=1.0, generated_share=1.0, **CLEAN)
    stream = train_sequences(settings)
    assert "8 of 8 train clips have a generated input" in stream.notes
    batch = stream.batch_at(0)
    np.testing.assert_array_equal(batch.low, batch.pixels)
    with pytest.raises(InputError, match=r"has 5 frames of 32x32, its truth asks for 5 of 16x16"):
        train_sequences(settings_for(home, generated=str(home / "data")))
    with pytest.raises(InputError, match="crop_size: 48x48 is larger than a clip of 32x32"):
        train_sequences(tiny.change(settings_for(home), data={"crop_size": "48x48"}))


def test_settings_that_a_refiner_can_not_use_are_told():
    for groups, words in (
        ({"transformer": {"condition_channels": 0}}, "condition_channels: must be 6 for a refiner"),
        ({"data": {"autoencoder": ""}}, "data.autoencoder: a refiner's pairs are encoded in the step"),
        ({"flow": {"ghosts": 0.3}}, "flow.ghosts: must be off for a refiner"),
    ):
        with pytest.raises(InputError, match=words):
            tiny_refiner.settings_of(**groups)
