"""The video autoencoder: recorded outputs, streaming, causality, and mistakes told before anything compiles."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from wan_cases import CASES, autoencoder_params, random_latents, random_video

from sora_jax.config.schema import AutoencoderSettings, MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh, spec
from sora_jax.interop.wan.tables import WAN21_AUTOENCODER, WAN22_AUTOENCODER
from sora_jax.models.autoencoder import conv, streaming
from sora_jax.models.autoencoder.blocks import FrameAttention
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.autoencoder.pixels import frame_axes
from sora_jax.models.autoencoder.streaming import decode_stream, encode_stream
from sora_jax.models.layers.params import abstract_params, bind, init_params

GOLDENS = pathlib.Path(__file__).parent.parent / "goldens" / "autoencoder.safetensors"

# Two levels, one block each: every layer is there, and it compiles in a second.
SMALL = AutoencoderSettings(
    width=8,
    decoder_width=8,
    multipliers=(1, 2),
    blocks=1,
    temporal=(True,),
    latent_channels=4,
    latent_mean=(0.1, 0.2, 0.3, 0.4),
    latent_std=(1.0, 2.0, 3.0, 4.0),
    dtype="float32",
)
SMALL_FOLDED = AutoencoderSettings(
    width=8,
    decoder_width=12,
    multipliers=(1, 2, 2),
    blocks=1,
    temporal=(False, True),
    latent_channels=4,
    patch=2,
    shortcuts=True,
    dtype="float32",
)


@functools.partial(jax.jit, static_argnums=(0, 3))
def encode(settings, params, video, chunk=0):
    return bind(Autoencoder, settings, params).encode(video, chunk=chunk)


@functools.partial(jax.jit, static_argnums=(0, 3))
def decode(settings, params, latents, chunk=0):
    return bind(Autoencoder, settings, params).decode(latents, chunk=chunk)


@functools.cache
def params_of(settings):
    return jax.jit(lambda: init_params(Autoencoder, settings, jax.random.key(0)))()


def golden(name):
    with safetensors.safe_open(GOLDENS, framework="numpy") as file:
        return file.get_tensor(name)


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("case", list(CASES))
def test_outputs_equal_those_recorded_from_diffusers(case, frames):
    settings, params = CASES[case], autoencoder_params(CASES[case])
    mean, logvar = encode(settings, params, random_video(frames))
    video = decode(settings, params, random_latents(frames, settings))
    for name, ours in (("mean", mean), ("logvar", logvar), ("video", video)):
        theirs = golden(f"{case}.{frames}.{name}")
        assert np.std(theirs) > 0.05
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0, err_msg=name)


@pytest.mark.parametrize(
    ("settings", "encoder", "decoder"), [(WAN21_AUTOENCODER, 53.6, 73.3), (WAN22_AUTOENCODER, 149.6, 555.0)]
)
def test_published_sizes_have_the_published_number_of_parameters(settings, encoder, decoder):
    params = abstract_params(Autoencoder, settings)
    for half, millions in (("encoder", encoder), ("decoder", decoder)):
        assert sum(a.size for a in jax.tree.leaves(params[half])) / 1e6 == pytest.approx(millions, abs=0.06)
    assert settings.temporal_stride == 4
    assert settings.spatial_stride == (8 if settings is WAN21_AUTOENCODER else 16)


@pytest.mark.parametrize(("settings", "chunk"), [(SMALL, 3), (SMALL_FOLDED, 1)])
def test_a_scan_over_chunks_equals_the_whole(settings, chunk):
    params, video = params_of(settings), random_video(17)
    whole, chunks = encode(settings, params, video), encode(settings, params, video, chunk)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), chunks, whole)
    latents = whole[0]
    np.testing.assert_allclose(
        decode(settings, params, latents, chunk), decode(settings, params, latents), atol=1e-5
    )


def test_streams_equal_the_whole_and_one_program_serves_every_length():
    params = params_of(SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), np.uint8)
    model = bind(Autoencoder, SMALL, params)
    whole = model.to_latents(encode(SMALL, params, pixels[None] / np.float32(127.5) - 1)[0])
    chunks = list(encode_stream(params, SMALL, iter(pixels)))
    assert [chunk.shape for chunk in chunks] == [(1, 8, 12, 4)] * 5
    latents = np.concatenate(chunks)
    np.testing.assert_allclose(latents, whole[0], atol=1e-5)
    video = np.concatenate(list(decode_stream(params, SMALL, latents)))
    again = decode(SMALL, params, model.from_latents(latents[None]))[0]
    again = np.rint(np.clip(again * 127.5 + 127.5, 0, 255))
    assert video.dtype == np.uint8
    assert video.shape == pixels.shape
    assert np.abs(video - again).max() <= 1  # a value half way may round either way
    assert np.mean(video != again) < 1e-3

    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    try:
        for length in (1, 2, 40):
            made = list(decode_stream(params, SMALL, np.resize(latents, (length, *latents.shape[1:]))))
            assert sum(map(len, made)) == 2 * length - 1
        assert [name for name in compiled if "compile" in name] == []
        list(decode_stream(params, SMALL, latents[:1, :4]))  # fewer rows are another program
        assert [name for name in compiled if "compile" in name]
    finally:
        jax.monitoring.clear_event_listeners()


def test_tiles_blend_into_the_whole(monkeypatch):
    params, latents = params_of(SMALL), random_latents(5, SMALL)[0]
    pixels = np.concatenate(list(decode_stream(params, SMALL, latents)))
    for stream, x in ((encode_stream, pixels), (decode_stream, latents)):

        def run(tile, stream=stream, x=x):
            return np.concatenate(list(stream(params, SMALL, x, tile=tile)))

        whole, tiles = run(0), run(12)
        np.testing.assert_array_equal(run(64), whole)  # a single tile
        assert tiles.dtype == whole.dtype
        # A corner is further from every seam than the network sees.
        np.testing.assert_allclose(tiles[:, :2, :2], whole[:, :2, :2], atol=1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(streaming, "fade", lambda *args, fade=streaming.fade: np.ones_like(fade(*args)))
            averaged = run(12)
        errors = [np.abs(made.astype(np.float32) - whole).mean() for made in (tiles, averaged)]
        assert 0 < errors[0] < 0.9 * errors[1]
        assert errors[0] < 0.15 * np.std(whole)


def test_a_tile_too_small_to_blend_is_refused():
    with pytest.raises(InputError, match="tile: 3 latents are too few"):
        list(decode_stream(params_of(SMALL), SMALL, random_latents(5, SMALL)[0], tile=3))


def test_memory_of_a_scan_does_not_grow_with_the_length():
    params = abstract_params(Autoencoder, SMALL)

    def temporary(half, frames, *shape):
        x = jax.ShapeDtypeStruct((1, frames, *shape), jnp.float32)
        return half.lower(SMALL, params, x, 1).compile().memory_analysis().temp_size_in_bytes

    assert temporary(decode, 721, 16, 16, 4) < 1.05 * temporary(decode, 9, 16, 16, 4)
    assert temporary(encode, 1441, 32, 32, 3) < 1.05 * temporary(encode, 17, 32, 32, 3)


def on_mesh(settings, function, video, layout="height .", **axes):
    """function(params, video) on a mesh, clips over data and fsdp, frames over context; and the params there."""
    with jax.set_mesh(make_mesh(MeshSettings(**{"data": 1, **axes}), jax.devices()[: math.prod(axes.values())])):
        params = jax.jit(lambda: init_params(Autoencoder, settings, jax.random.key(0)))()
        return function(params, jax.device_put(video, spec(f"batch . {layout} ."))), params


def both_ways(settings, params, video):
    model = bind(Autoencoder, settings, params)
    mean, logvar = model.encode(video)
    return mean, logvar, model.decode(mean)


@pytest.mark.parametrize("dimension", ["height", "width"])
def test_many_devices_equal_one(dimension, monkeypatch):
    monkeypatch.setattr(FrameAttention, "MAX_LOGITS", 2 * 4 * 3 * 2 * 4)  # so that queries go in two chunks
    layout, sides, place = (". width", (8, 16), 3) if dimension == "width" else ("height .", (16, 8), 2)
    video = np.random.default_rng(0).uniform(-1, 1, (4, 3, *sides, 3)).astype(np.float32)
    run = jax.jit(functools.partial(both_ways, SMALL_FOLDED))
    made, _ = on_mesh(SMALL_FOLDED, run, video, layout, fsdp=2, ulysses=2)
    assert {array.sharding.spec[0] for array in made} == {"fsdp"}
    assert {array.sharding.spec[place] for array in made} == {"ulysses"}
    for ours, expected in zip(made, run(params_of(SMALL_FOLDED), video), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(("latents", "axes"), [((4, 6), "height ."), ((3, 4), ". width"), ((3, 5), ". .")])
def test_frames_are_split_by_rows_else_by_columns_else_not(latents, axes):
    with jax.set_mesh(make_mesh(MeshSettings(data=1, ulysses=2), jax.devices()[:2])):
        assert frame_axes(*latents) == axes
        params = jax.jit(lambda: init_params(Autoencoder, SMALL, jax.random.key(0)))()
        z = random_latents(5, SMALL)[0, :, : latents[0], : latents[1]]
        split = np.concatenate(list(decode_stream(params, SMALL, z)))
    whole = np.concatenate(list(decode_stream(params_of(SMALL), SMALL, z)))
    assert np.abs(split - whole.astype(int)).max() <= 1  # a value half way may round either way


def test_gradients_on_many_devices_equal_those_on_one(monkeypatch):
    monkeypatch.setattr(conv, "SHARD_FROM", 2**9)  # so that weights of this size are split over fsdp
    video = np.random.default_rng(0).uniform(-1, 1, (4, 3, 16, 8, 3)).astype(np.float32)

    @jax.jit
    @jax.grad
    def slopes(params, video):
        mean, logvar, made = both_ways(SMALL, params, video)
        return jnp.mean(jnp.square(made - video)) + jnp.mean(mean * logvar)

    made, params = on_mesh(SMALL, slopes, video, data=2, fsdp=2, ulysses=2)
    layouts = [leaf.sharding.spec for leaf in jax.tree.leaves(params)]
    assert sum(any(axes and "fsdp" in axes for axes in layout) for layout in layouts) > 10
    assert [leaf.sharding.spec for leaf in jax.tree.leaves(made)] == layouts
    expected = slopes(params_of(SMALL), video)
    for ours, theirs in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.abs(theirs).max() + 1e-7)


def test_normalised_latents_have_the_mean_and_deviation_of_the_settings():
    model = bind(Autoencoder, SMALL, params_of(SMALL))
    raw = np.random.default_rng(0).normal(SMALL.latent_mean, SMALL.latent_std, (10000, 4))
    latents = model.to_latents(raw)
    np.testing.assert_allclose(np.mean(latents, axis=0), 0, atol=0.05)
    np.testing.assert_allclose(np.std(latents, axis=0), 1, atol=0.05)
    np.testing.assert_allclose(model.from_latents(latents), raw, atol=1e-6)


@pytest.mark.parametrize("settings", [SMALL, SMALL_FOLDED])
def test_decoder_ignores_future_frames(settings):
    params = params_of(settings)
    latents = np.random.default_rng(0).normal(size=(1, 4, 4, 4, 4)).astype(np.float32)

    @jax.jit
    def slope(latents):  # of the frames that latent frames 0 to 2 make
        return jax.grad(lambda z: jnp.sum(jnp.sin(3 * decode(settings, params, z)[:, :5])))(latents)

    by_frame = np.abs(slope(latents)).max(axis=(0, 2, 3, 4))
    assert by_frame[3] == 0
    assert (by_frame[:3] > 0).all()


def test_encoder_ignores_future_frames():
    settings, params = SMALL_FOLDED, params_of(SMALL_FOLDED)

    @jax.jit
    def slope(video):  # of latent frames 0 to 2
        return jax.grad(lambda x: jnp.sum(jnp.sin(3 * encode(settings, params, x)[0][:, :3])))(video)

    by_frame = np.abs(slope(random_video(9))).max(axis=(0, 2, 3, 4))
    assert (by_frame[5:] == 0).all()
    assert (by_frame[:5] > 0).all()


def test_bfloat16_is_float32_rounded():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    params, video = params_of(SMALL), random_video(5)
    mean, _ = encode(SMALL, params, video)
    rounded, _ = encode(half, params, video)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - mean).max() < 0.1
    error = np.abs(decode(half, params, mean) - decode(SMALL, params, mean))
    assert 0 < error.max() < 0.1


def test_attention_in_columns_equals_attention_at_once(monkeypatch):
    params, latents = params_of(SMALL), random_latents(5, SMALL)
    whole = decode(SMALL, params, latents)
    B, F, H, W, _ = latents.shape
    monkeypatch.setattr(FrameAttention, "MAX_LOGITS", 3 * B * F * H * H * W)
    # A fresh jit: the number of scores is not among its arguments.
    chunks = jax.jit(lambda z: bind(Autoencoder, SMALL, params).decode(z))(latents)
    np.testing.assert_allclose(chunks, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 16, 32, 32, 3), "float32", "video of 16 frames: 4 * n + 1 are needed, the nearest: 13 or 17"),
        ((1, 0, 32, 32, 3), "float32", "video of 0 frames: 4 * n + 1 are needed, the nearest: 1"),
        ((1, 5, 30, 32, 3), "float32", "video of 30 rows: a multiple of 8 is needed, the nearest: 24 or 32"),
        ((1, 5, 32, 4, 3), "float32", "video of 4 columns: a multiple of 8 is needed, the nearest: 8"),
        ((1, 5, 32, 32, 4), "float32", "[batch, frames, rows, columns, 3] is needed"),
        ((5, 32, 32, 3), "float32", "[batch, frames, rows, columns, 3] is needed"),
        ((1, 5, 32, 32, 3), "uint8", "float in [-1, 1] is needed; uint8 x is x / 127.5 - 1"),
    ],
)
def test_video_that_does_not_fit_is_refused_before_compiling(shape, dtype, message):
    with pytest.raises(InputError) as raised:
        encode.lower(CASES["wan21"], autoencoder_params(CASES["wan21"]), jax.ShapeDtypeStruct(shape, dtype))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((8, 32, 32, 3), np.uint8), "video of 8 frames: 2 * n + 1 are needed, the nearest: 7 or 9"),
        (np.zeros((1, 32, 31, 3), np.uint8), "video of 31 columns"),
        (np.full((1, 32, 32, 3), 255.0, np.float32), "frame 0: values beyond 2; float in [-1, 1] is needed"),
        (np.full((1, 32, 32, 3), np.nan, np.float32), "frame 0: holds NaN or infinity"),
        (np.zeros((0, 32, 32, 3), np.uint8), "a video of no frames"),
        ([np.zeros((32, n, 3), np.uint8) for n in (32, 32, 40)], "frame 2: of shape (32, 40, 3) after frames of"),
    ],
)
def test_frames_that_do_not_fit_end_a_stream_in_one_line(frames, message):
    with pytest.raises(InputError) as raised:
        list(encode_stream(params_of(SMALL), SMALL, frames))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
