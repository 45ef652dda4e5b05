"""Streams: frames while they are made, a few ahead of their reader."""

import dataclasses
import itertools
import time

import jax
import numpy as np
import pytest
import tiny

from sora_jax.core.errors import InputError
from sora_jax.generate import tasks
from sora_jax.generate.generator import load_generator
from sora_jax.generate.sampling import stream
from sora_jax.generate.sampling.long_videos import context_frames
from sora_jax.generate.sampling.pipeline import Noise, sample_latents
from sora_jax.generate.sampling.sampler import VideoSampler

FRAMES = 9


@pytest.fixture(scope="module")
def generator(home):
    with jax.set_mesh(tiny.mesh_of()):
        yield load_generator(home / "run")


@pytest.fixture
def settings(generator):
    return dataclasses.replace(generator.settings.sample, frames=FRAMES)


@pytest.fixture
def windows(monkeypatch):
    """(prompt, conditioning, latents) of every window that is sampled."""
    made, sample = [], VideoSampler.latents

    def latents(self, prompts, conditioning, **options):
        result = sample(self, prompts, conditioning, **options)
        made.append((prompts[0], conditioning, result[0]))
        return result

    monkeypatch.setattr(VideoSampler, "latents", latents)
    return made


def test_a_window_is_given_the_latents_before_it_and_one_frame_is_encoded(
    generator, settings, windows, monkeypatch
):
    encoded, encode = [], tasks.encode_stream

    def counting(params, settings, frames, **options):
        frames = list(frames)
        encoded.append(len(frames))
        return encode(params, settings, frames, **options)

    monkeypatch.setattr(tasks, "encode_stream", counting)
    with stream.VideoStream(generator, settings, "a bird") as video:
        chunks = iter(video)
        first = np.concatenate(list(itertools.islice(chunks, len_of_window(generator))))
        video.prompt = "a rabbit"
        list(itertools.islice(chunks, 2 * len_of_window(generator)))
    n, kept = len_of_window(generator), context_frames(len_of_window(generator)) - 1
    assert set(encoded) == {1}
    for (_, _, before), (_, conditioning, made) in itertools.pairwise(windows[:3]):
        np.testing.assert_array_equal(conditioning.latents[1 : 1 + kept], before[n - kept :])
        np.testing.assert_array_equal(made[: 1 + kept], conditioning.latents[: 1 + kept])
    assert windows[0][0] == "a bird" and windows[2][0] == "a rabbit"
    alone = sample_latents(generator, ["a bird"], settings, Noise(0))[0]
    coder = tasks.coder_of(generator)
    np.testing.assert_array_equal(first, coder.decode(alone))


def len_of_window(generator) -> int:
    """Latent frames of a window, which are its chunks."""
    return (FRAMES - 1) // generator.autoencoder.temporal_stride + 1


def test_the_sampler_waits_for_its_reader_and_ends_with_it(generator, settings, windows):
    with stream.VideoStream(generator, settings, "a bird", ahead=2) as video:
        next(iter(video))
        seen = -1
        while seen != len(windows):  # until nothing is made any more
            seen = len(windows)
            time.sleep(1.0)
        assert seen == 1 and video._chunks.full()
        thread = video._thread
    assert not thread.is_alive() and list(video) == []


def test_an_error_reaches_the_reader(generator, settings, monkeypatch):
    with pytest.raises(InputError, match="is empty"):
        stream.VideoStream(generator, settings, " ")
    short = dataclasses.replace(settings, frames=1)
    with stream.VideoStream(generator, short, "a bird") as video, pytest.raises(InputError, match="--frames=1"):
        next(iter(video))
