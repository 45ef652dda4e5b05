"""Clips that show themselves twice through the noise: where, how strongly, and what the velocity then leads to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from sora_jax.core.patches import unpatchify
from sora_jax.data.loader.conditioning_masks import draw_conditioning_masks
from sora_jax.data.loader.ghosts import STRONGEST, add_ghosts, ghost_of
from sora_jax.diffusion.flow import flow_errors
from sora_jax.plan.programs import abstract_batch
from sora_jax.train.objectives.registry import make_objective

SETTINGS = tiny.change(tiny.SETTINGS, flow={"ghosts": 0.5})
ALL = tiny.change(tiny.SETTINGS, flow={"ghosts": 1.0})
KEY = jax.random.key(0)


def test_an_echo_is_what_stands_out_from_the_ground_at_one_other_place():
    latents = np.zeros((3, 4, 6, 2), np.float32)
    latents[...] = np.linspace(0, 1, 4)[None, :, None, None]  # a sky
    latents[:, 1, 2] += 5
    latents[2, 1, 3] += 7
    places = set()
    for moved in np.linspace(0, 1, 200, endpoint=False):
        ghost = ghost_of(latents, moved)
        rows, columns = np.nonzero(ghost[0, :, :, 0])
        down, across = rows[0] - 1, columns[0] - 2
        places.add((down % 4, across % 6))
        wanted = np.zeros_like(latents)
        wanted[:, (1 + down) % 4, (2 + across) % 6] = 5
        wanted[2, (1 + down) % 4, (3 + across) % 6] = 7
        np.testing.assert_allclose(ghost, wanted, atol=1e-6)
    assert places == {(r, c) for r in range(4) for c in range(6)} - {(0, 0)}


def test_ghosts_are_of_a_share_of_the_clips_and_of_nothing_else():
    batch = tiny.random_batch(0)
    assert add_ghosts(batch, range(8), tiny.SETTINGS) is batch
    echoed = clips = 0
    for first in range(0, 400, 8):
        ghosts = add_ghosts(batch, range(first, first + 8), SETTINGS).ghosts
        assert not ghosts[batch.segment_ids == 0].any()
        for b in range(8):
            for segment in range(1, batch.segment_ids[b].max() + 1):
                mine = batch.segment_ids[b] == segment
                clips += 1
                echoed += bool(ghosts[b, mine].any())
    assert 0.4 < echoed / clips < 0.6


def test_an_echo_is_moved_by_the_same_in_all_frames_and_weaker_than_its_clip():
    batch = tiny.random_batch(0)
    patch = ALL.transformer.patch
    ghosts = add_ghosts(batch, range(8), ALL).ghosts
    for b in range(8):
        for segment in range(1, batch.segment_ids[b].max() + 1):
            mine = batch.segment_ids[b] == segment
            grid = tuple(batch.positions[b, mine].max(axis=0) + 1)
            latents, ghost = (unpatchify(x[b, mine], grid, patch) for x in (batch.patches, ghosts))
            H, W = latents.shape[1:3]
            things = latents - np.median(latents, axis=2, keepdims=True)
            moved = [np.roll(things, divmod(place, W), axis=(1, 2)) for place in range(1, H * W)]
            strengths = [np.sum(ghost * x) / np.sum(x * x) for x in moved]
            errors = [np.abs(ghost - s * x).max() for s, x in zip(strengths, moved, strict=True)]
            assert min(errors) < 1e-5 and 0 <= strengths[int(np.argmin(errors))] <= STRONGEST


def test_ghosts_depend_on_seed_row_and_place_alone():
    batch = tiny.random_batch(0)
    whole = add_ghosts(batch, range(8, 16), SETTINGS).ghosts
    part = add_ghosts(jax.tree.map(lambda x: x[[5, 2]], batch), [13, 10], SETTINGS).ghosts
    np.testing.assert_array_equal(part, whole[[5, 2]])
    other = tiny.change(SETTINGS, data={"shuffle_seed": 1})
    for changed in (add_ghosts(batch, range(16, 24), SETTINGS), add_ghosts(batch, range(8, 16), other)):
        assert not np.array_equal(changed.ghosts, whole)


def test_what_is_given_has_no_echo():
    settings = tiny.change(ALL, masks={"first_frame": 1.0, "text": 0.0})
    batch = add_ghosts(
        draw_conditioning_masks(tiny.random_batch(0, settings), range(8), settings), range(8), settings
    )
    assert batch.conditioning_mask.any() and not batch.ghosts[batch.conditioning_mask].any() and batch.ghosts.any()


@pytest.mark.parametrize("time", [0.4, 0.8])
def test_the_velocity_leads_away_from_an_echo_at_times_when_places_are_decided(one_device, time):
    batch = tiny.on_mesh(add_ghosts(tiny.random_batch(1), range(8), ALL))
    noise = jax.random.normal(jax.random.key(1), batch.patches.shape)
    clean = (1 - time) * batch.patches + time * noise
    seen = {}

    def velocity(patches, table, time_index):
        seen["patches"] = patches
        return (patches - batch.patches) / time  # of a model that knows the data

    errors, counts = flow_errors(velocity, batch, noise, jnp.full((8, 3), time))
    assert jnp.max(errors) < 1e-8 and jnp.sum(counts) > 0
    added = (1 - time) * batch.ghosts if time > 0.5 else jnp.zeros_like(noise)
    np.testing.assert_allclose(seen["patches"] * counts[..., None], (clean + added) * counts[..., None], atol=1e-6)


def test_a_plan_counts_the_echoes(one_device):
    def types(batch):
        return jax.tree.map(lambda x: x.shape, batch)

    assert types(abstract_batch(ALL)) == types(add_ghosts(tiny.random_batch(0), range(8), ALL))


@pytest.mark.slow
def test_sharded_loss_with_echoes_equals_unsharded():
    batch = add_ghosts(tiny.random_batch(0), range(8), ALL)
    objective = make_objective(ALL)

    def loss(batch, **sizes):
        with jax.set_mesh(tiny.mesh_of(**sizes)):
            params, placed = jax.jit(objective.init)(KEY), objective.place(batch)
            total, weight, _ = jax.jit(objective.loss)(params, {}, placed, objective.draw(KEY, placed, 0))
            return float(total / weight)

    unsharded = loss(batch)
    for sizes in ({"data": 2, "ulysses": 2}, {"fsdp": 4}):
        assert loss(batch, **sizes) == pytest.approx(unsharded, rel=1e-5), sizes
    assert unsharded != pytest.approx(loss(batch.replace(ghosts=None)), rel=1e-4)
