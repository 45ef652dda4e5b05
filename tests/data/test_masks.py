"""What is given of a clip in training, and at which times its frames are."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.config.schema import FlowSettings, MaskSettings
from sora_jax.config.training import CONDITIONING_TASKS
from sora_jax.core.errors import InputError
from sora_jax.data.loader.conditioning_masks import (
    conditioning_tasks,
    draw_conditioning_mask,
    draw_conditioning_masks,
    drawn_task,
)
from sora_jax.diffusion.flow import clip_shifts, flow_errors, sample_times, time_shifts
from sora_jax.train.objectives.registry import make_objective

GRID = (5, 4, 6)


def drawn(kind, grid=GRID, count=40):
    return [draw_conditioning_mask(np.random.default_rng(i), grid, kind) for i in range(count)]


def is_prefix(frames):
    return frames.any() and not frames.all() and np.array_equal(frames, np.sort(frames)[::-1])


HOLDS = {
    "text": lambda frames: not frames.any(),
    "first_frame": lambda frames: frames.tolist() == [True] + [False] * 4,
    "last_frame": lambda frames: frames.tolist() == [False] * 4 + [True],
    "first_last": lambda frames: frames.tolist() == [True, False, False, False, True],
    "prefix": is_prefix,
    "suffix": lambda frames: is_prefix(frames[::-1]),
    "prefix_suffix": lambda frames: frames[0] and frames[-1] and np.abs(np.diff(frames.astype(int))).sum() == 2,
    "random_frames": lambda frames: 0 < frames.sum() < 5,
}


@pytest.mark.parametrize("kind", HOLDS)
def test_a_kind_gives_the_frames_that_it_names(kind):
    masks = drawn(kind)
    frames = [mask.any(axis=(1, 2)) for mask in masks]
    assert all(np.array_equal(mask.all(axis=(1, 2)), one) for mask, one in zip(masks, frames, strict=True))
    assert all(HOLDS[kind](one) for one in frames)
    lengths = {int(one.sum()) for one in frames}
    assert lengths == {
        "prefix": {1, 2, 3, 4},
        "suffix": {1, 2, 3, 4},
        "random_frames": {1, 2, 3, 4},
        "prefix_suffix": {2, 3, 4},
    }.get(kind, lengths)


def test_a_region_is_a_rectangle_in_all_frames():
    for kind, rectangle in (("outpaint", lambda mask: mask), ("inpaint", lambda mask: ~mask)):
        places = set()
        for mask in drawn(kind):
            assert (mask == mask[:1]).all()
            inside = rectangle(mask[0])
            rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
            assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            places.add((rows[0], columns[0], len(rows), len(columns)))
        assert len(places) > 10
        assert {h for _, _, h, _ in places} == {1, 2, 3}


@pytest.mark.parametrize("kind", CONDITIONING_TASKS)
@pytest.mark.parametrize("grid", [(1, 4, 6), (2, 1, 1), (2, 2, 2), (3, 1, 4)])
def test_something_is_left_to_make_and_pictures_come_from_text_alone(kind, grid):
    for mask in drawn(kind, grid, 20):
        assert not mask.all()
        if grid[0] == 1:
            assert not mask.any()


def test_kinds_are_drawn_by_their_weights():
    settings = MaskSettings(text=2, first_frame=1, outpaint=1)
    assert conditioning_tasks(settings) == {"text": 0.5, "first_frame": 0.25, "outpaint": 0.25}
    settings = tiny.change(tiny.SETTINGS, masks=dataclasses.asdict(settings))
    counts = collections.Counter(
        drawn_task(number, segment, settings) for number in range(500) for segment in (1, 2)
    )
    assert counts["text"] == pytest.approx(500, abs=60) and counts["first_frame"] == pytest.approx(250, abs=60)


def test_what_is_given_depends_on_seed_row_and_place_alone():
    settings = tiny.change(tiny.SETTINGS, masks={"random_frames": 1.0, "inpaint": 1.0})
    batch = tiny.random_batch(0, settings)
    whole = draw_conditioning_masks(batch, range(8, 16), settings)
    part = draw_conditioning_masks(jax.tree.map(lambda x: x[[5, 2]], batch), [13, 10], settings)
    np.testing.assert_array_equal(part.conditioning_mask, whole.conditioning_mask[[5, 2]])
    assert (
        whole.conditioning_mask.any()
        and not whole.conditioning_mask[batch.segment_ids == 0].any()
        and whole.time_index is None
    )
    later = draw_conditioning_masks(batch, range(16, 24), settings)
    other = draw_conditioning_masks(batch, range(8, 16), tiny.change(settings, data={"shuffle_seed": 1}))
    for changed in (later, other):
        assert not np.array_equal(changed.conditioning_mask, whole.conditioning_mask)
    assert not draw_conditioning_masks(batch, range(8), tiny.SETTINGS).conditioning_mask.any()


FORCED = tiny.change(tiny.SETTINGS, masks={"forcing": 1.0, "times_per_sequence": 3})


def test_with_forcing_each_frame_of_a_clip_has_a_time_as_far_as_there_are_some():
    batch = tiny.random_batch(0, FORCED)
    time_index = draw_conditioning_masks(batch, range(8), FORCED).time_index
    clips = FORCED.data.clips_per_sequence
    for b in range(8):
        used = 0
        for segment in range(1, batch.segment_ids[b].max() + 1):
            mine = batch.segment_ids[b] == segment
            frames = batch.positions[b, mine, 0]
            count = frames.max() + 1
            if 1 < count <= 3 - used:
                np.testing.assert_array_equal(time_index[b, mine], clips + 1 + used + frames)
                used += count
            else:
                assert set(time_index[b, mine]) == {segment}
        assert not time_index[b][batch.segment_ids[b] == 0].any()
    half = tiny.change(FORCED, masks={"forcing": 0.5})
    forced = [
        draw_conditioning_masks(batch, range(8 * i, 8 * i + 8), half).time_index[0].max() > clips
        for i in range(100)
    ]
    assert 0.3 < np.mean(forced) < 0.7


def test_times_of_frames_are_independent_and_shifted_as_their_clip_is(one_device):
    batch = tiny.on_mesh(draw_conditioning_masks(tiny.random_batch(0, FORCED), range(8), FORCED))
    shifts = time_shifts(batch, 3, 3, FlowSettings())
    np.testing.assert_array_equal(shifts[:, :3], clip_shifts(batch, 3, FlowSettings()))
    np.testing.assert_array_equal(shifts[0, 3:], jnp.repeat(shifts[0, 0], 3))  # three frames of its only clip
    np.testing.assert_array_equal(shifts[1, 3:], jnp.asarray([shifts[1, 1], shifts[1, 1], 1]))
    keys = jax.random.split(jax.random.key(0), 500)
    times = jax.jit(jax.vmap(lambda key: sample_times(key, batch, 3, FlowSettings(), frame_times=3)[0]))(keys)
    correlation = np.corrcoef(np.asarray(times).T)
    assert np.abs(correlation - np.eye(6)).max() < 0.2


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "ulysses": 2}])
def test_patches_are_noised_at_their_own_time_and_known_ones_a_little(mesh):
    settings = tiny.change(FORCED, masks={"first_frame": 1.0, "noise": 0.125})
    batch = draw_conditioning_masks(tiny.random_batch(0, settings), range(8), settings)
    assert batch.conditioning_mask.any()
    with jax.set_mesh(tiny.mesh_of(**mesh)):
        batch = tiny.on_mesh(batch)
        objective = make_objective(settings)
        noise, times = jax.jit(objective.draw, static_argnums=2)(jax.random.key(0), batch, 0)
        seen = {}

        def velocity(patches, table, time_index):
            seen.update(patches=patches, table=table, time_index=time_index)
            return jnp.zeros_like(patches)

        _, counts = flow_errors(velocity, batch, noise, times, conditioning_time=0.125)
    data, noise, conditioning_mask, segment_ids = (
        np.asarray(x) for x in (batch.patches, noise, batch.conditioning_mask, batch.segment_ids)
    )
    own = np.take_along_axis(np.asarray(times), np.maximum(np.asarray(batch.time_index) - 1, 0), axis=1)
    t = np.where(conditioning_mask | (segment_ids == 0), 0.125, own)[..., None]
    np.testing.assert_allclose(seen["patches"], (1 - t) * data + t * noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(counts, (segment_ids > 0) & ~conditioning_mask)
    distinct = {len(set(row[row > 3])) for row in np.asarray(seen["time_index"])}
    assert max(distinct) > 1


def test_forcing_without_enough_times_is_told():
    with pytest.raises(
        InputError, match=r"masks.forcing: needs times for the frames, config.masks.times_per_sequence"
    ):
        MaskSettings(forcing=0.5)
    with pytest.raises(InputError, match="masks: all weights are 0"):
        MaskSettings(text=0.0)
    with pytest.raises(InputError, match=r"masks.first_frame: -1\.0 must be at least 0"):
        dataclasses.replace(tiny.SETTINGS, masks=MaskSettings(first_frame=-1.0))
