"""Videos of different sizes in one run of the solver are those that each prompt gets alone."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tiny
from test_sampling import SETTINGS, alone, generator_of, tokenizer  # noqa: F401, fixtures

from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.sampling.clips import Clip, Layout, Noise, one_a_row, pack
from sora_jax.generate.sampling.pipeline import sample_clips

SIZES = (("32x32", 5), ("48x32", 9), ("32x64", 1), ("32x32", 5))


def clips_of(**changes):
    """Four clips with prompts, sizes, seeds and numbers of noise of their own."""
    prompts = ("a bird", "a rabbit", "a bird", "a rabbit")
    return [
        Clip(
            prompt,
            dataclasses.replace(SETTINGS.sample, size=size, frames=frames, shift=0.0, **changes),
            Noise(seed, first),
            negative_prompt="a bird" if first else "",
        )
        for prompt, (size, frames), seed, first in zip(prompts, SIZES, (3, 4, 3, 2**63), (0, 2, 1, 0), strict=True)
    ]


def sizes_of(generator, clips):
    return [int(np.prod(clip.grid(generator))) for clip in clips]


def by_itself(generator, clip):
    (size,) = sizes_of(generator, [clip])
    return sample_clips(generator, [clip], one_a_row(1, size))[0]


@pytest.mark.parametrize("solver", ["euler", "ancestral", "unipc"])
def test_a_clip_is_the_same_whatever_shares_its_run(alone, solver):  # noqa: F811
    generator, _ = alone
    clips = clips_of(solver=solver, guidance_min=0.4, guidance_max=0.8)
    layout = Layout(((1, 0), (3, 2)), 64, 4, max(sizes_of(generator, clips)))
    for clip, made in zip(clips, sample_clips(generator, clips, layout), strict=True):
        np.testing.assert_allclose(made, by_itself(generator, clip), atol=2e-5)


def test_given_latents_stay_and_steer_their_own_clip_alone(alone):  # noqa: F811
    generator, _ = alone
    clips = clips_of()
    draw = np.random.default_rng(1)
    plain = by_itself(generator, clips[1])
    mask = np.zeros(clips[1].grid(generator), bool)
    mask[0] = True
    latents = draw.normal(size=plain.shape).astype(np.float32)
    clips[1] = dataclasses.replace(clips[1], conditioning=ConditioningFrames(latents, mask))
    (layout,) = pack(sizes_of(generator, clips), 1, alike=False)
    made = sample_clips(generator, clips, layout)
    np.testing.assert_array_equal(made[1][0], latents[0])
    np.testing.assert_allclose(made[1], by_itself(generator, clips[1]), atol=2e-5)
    assert np.abs(made[1][1:] - plain[1:]).max() > 1e-3
    np.testing.assert_allclose(made[0], by_itself(generator, clips[0]), atol=2e-5)


def test_packed_clips_are_the_same_on_two_chips(alone, tokenizer):  # noqa: F811
    generator, _ = alone
    clips = clips_of(solver="ancestral")
    wanted = [by_itself(generator, clip) for clip in clips]
    with jax.set_mesh(tiny.mesh_of(2)):
        there = generator_of(tokenizer)
        (layout,) = pack(sizes_of(there, clips), 2, alike=False)
        assert len(layout.rows) == 4
        for made, alone_ in zip(sample_clips(there, clips, layout), wanted, strict=True):
            np.testing.assert_allclose(made, alone_, atol=2e-5)


def test_clips_of_all_sizes_fit_into_rows_of_one_program():
    sizes = [int(n) for n in np.random.default_rng(0).choice([32, 144, 250, 408], 100)]
    layouts = pack(sizes, 2, alike=False)
    assert sorted(n for layout in layouts for row in layout.rows for n in row) == list(range(100))
    assert len({(layout.length, layout.slots, layout.longest, len(layout.rows)) for layout in layouts}) == 1
    for layout in layouts:
        spans = [(row, start, start + sizes[n]) for n, row, _, start in layout.places(sizes)]
        assert all(end <= layout.length for _, _, end in spans)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(spans))
    filled = sum(sizes) / sum(len(layout.rows) * layout.length for layout in layouts)
    assert filled > 0.85
    assert [layout.rows for layout in pack([5000, 100], 1, alike=False)] == [((0,),), ((1,),)]


def test_clips_of_one_size_get_a_row_each_and_a_run_holds_as_many_as_help():
    runs = pack([144] * 19, 1, alike=True)
    assert [len(layout.rows) for layout in runs] == [8, 8, 8] and not runs[0].packed
    assert runs[2].rows == ((16,), (17,), (18,), (18,), (18,), (18,), (18,), (18,))
    assert [len(layout.rows) for layout in pack([144] * 5, 1, alike=True)] == [6]
    assert [len(layout.rows) for layout in pack([40_000] * 3, 2, alike=True)] == [2, 2]
