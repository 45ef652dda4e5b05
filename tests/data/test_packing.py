"""The pack plan: every clip, once an epoch, in rows that are full and never too full."""

import collections

import numpy as np
import pytest

from sora_jax.config.schema import DataSettings, TransformerSettings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.packing import PackPlan, clip_work, first_fit, group, pack_in_order, spread
from sora_jax.train.monitoring.flops import transformer_flops


def some_clips(count, seed=0):
    """Patches and caption lengths as a mixed data set has them: three sizes, three lengths, two captions."""
    draw = np.random.default_rng(seed)
    patches = draw.choice([24, 60, 135], count) * draw.choice([1, 5, 21], count)
    tokens = [tuple(draw.integers(8, 60, 2).tolist()) for _ in range(count)]
    return patches, tokens


def limits(*, dropout=0.0, seed=0, **changes):
    return DataSettings(caption_dropout=dropout, shuffle_seed=seed, **changes)


def test_every_clip_comes_once_in_each_epoch():
    patches, tokens = some_clips(3000)
    plan = PackPlan(patches, tokens, limits(sequence_length=4096, text_length=512, clips_per_sequence=12))
    assert plan.sequences_per_epoch == plan.sequences
    counts = collections.Counter(slot.clip for i in range(plan.sequences) for slot in plan[i])
    assert counts == dict.fromkeys(range(3000), 1)


def test_no_row_holds_more_than_it_may():
    patches, tokens = some_clips(700)
    plan = PackPlan(
        patches, tokens, limits(sequence_length=3000, text_length=100, clips_per_sequence=5, dropout=0.3)
    )
    full = collections.Counter()
    for i in range(plan.sequences):
        row = plan[i]
        length = sum(tokens[s.clip][s.caption] if s.caption >= 0 else 1 for s in row)
        assert sum(patches[slot.clip] for slot in row) <= 3000
        assert length <= 100
        assert 1 <= len(row) <= 5
        full[len(row) == 5] += 1
    assert min(full.values()) > 0


def test_first_fit_by_hand():
    rows = first_fit(np.array([[5], [6], [4], [3], [4], [1]]), np.array([10]))
    assert rows == [[0, 2, 5], [1, 3], [4]]


def test_the_largest_items_are_spread_first_by_hand():
    needs = np.array([[5], [6], [4], [3], [4], [1]])
    assert spread(needs, needs[:, 0] ** 2, np.array([10])) == [[1], [0, 3], [2, 4, 5]]
    assert spread(np.array([[6], [6], [6]]), np.ones(3), np.array([10])) == [[0], [1], [2]]  # one bin more


@pytest.mark.parametrize("batch", [1, 3, 8, 300])
def test_rows_of_a_batch_are_neighbours_in_work_across_plans(batch):
    """Work is a row's place in order, so that a batch of neighbours spans no more than itself."""
    n, draw = 50, np.random.default_rng(0)
    rows = [row for plan in range(12) for row in group(np.arange(n), batch, plan * n, draw)]
    for plan in range(12):
        assert sorted(rows[plan * n : (plan + 1) * n]) == list(range(n))
    batches = np.array(rows[: len(rows) // batch * batch]).reshape(-1, batch)
    if batch < n:  # one batch may lie around those that two plans share
        assert np.ptp(batches, axis=1).max() < 3 * batch
        assert np.median(np.ptp(batches, axis=1)) == batch - 1
        assert len(set(batches[:10].mean(axis=1))) > 5  # in no order


def test_no_device_waits_for_the_longest_clip():
    patches, tokens = some_clips(6000)
    data = limits(sequence_length=4096, text_length=1024, clips_per_sequence=64, batch=16)
    work = clip_work(TransformerSettings(), patches)
    plan = PackPlan(patches, tokens, data, work)
    per_row = [sum(work[slot.clip] for slot in plan[i]) for i in range(3 * plan.sequences // 16 * 16)]
    batches = np.reshape(per_row, (-1, 16))
    waiting = 1 - batches.mean(axis=1) / batches.max(axis=1)
    assert waiting.mean() < 0.01
    # Most rows mix long and short clips: batches do not differ much either.
    assert np.std(batches.mean(axis=1)) < 0.1 * batches.mean()


def test_the_work_of_a_clip_is_that_of_the_models_formulas():
    settings, patches = TransformerSettings(), np.array([256, 2000, 32760])
    flops = np.array([transformer_flops(settings, n, 0) for n in patches.tolist()])
    found = settings.layers * clip_work(settings, patches)
    np.testing.assert_allclose(found, flops, rtol=0.01)
    assert (found <= flops).all()  # the model's ends are left out


def test_rows_are_a_function_of_seed_and_index():
    patches, tokens = some_clips(500)
    options = {"sequence_length": 4096, "text_length": 512, "clips_per_sequence": 12, "dropout": 0.1}
    a, b = (PackPlan(patches, tokens, limits(seed=3, **options)) for _ in range(2))
    later = 7 * a.sequences + 3
    expected = [a[i] for i in range(5)] + [a[later]]
    assert [b[later], *(b[i] for i in range(5))] == [expected[-1], *expected[:5]]
    other = PackPlan(patches, tokens, limits(seed=4, **options))
    assert [other[i] for i in range(5)] != expected[:5]
    assert [a[i] for i in range(a.sequences)] != [a[a.sequences + i] for i in range(a.sequences)]


def test_rows_are_full():
    patches, tokens = some_clips(3000)
    plan = PackPlan(patches, tokens, limits(sequence_length=4096, text_length=1024, clips_per_sequence=64))
    filled = np.mean([sum(patches[slot.clip] for slot in plan[i]) / 4096 for i in range(3 * plan.sequences)])
    assert plan.fill == pytest.approx(filled, rel=0.02)
    assert plan.fill > 0.97


def test_a_handful_of_clips_still_fills_rows():
    patches, tokens = some_clips(9)
    plan = PackPlan(patches, tokens, limits(sequence_length=4096, text_length=1024, clips_per_sequence=64))
    assert plan.fill > 0.9
    counts = collections.Counter(slot.clip for i in range(plan.sequences) for slot in plan[i])
    assert len(set(counts.values())) == 1


def test_captions_take_turns_and_a_share_is_dropped():
    patches, tokens = some_clips(2000)
    plan = PackPlan(
        patches, tokens, limits(sequence_length=4096, text_length=1024, clips_per_sequence=64, dropout=0.2)
    )
    counts = collections.Counter(slot.caption for i in range(plan.sequences) for slot in plan[i])
    total = sum(counts.values())
    assert counts[-1] / total == pytest.approx(0.2, abs=0.03)
    assert counts[0] / total == pytest.approx(0.4, abs=0.04)
    assert set(counts) == {-1, 0, 1}


def test_clips_that_fit_no_row_are_told_with_the_size_that_would_do():
    options = {"text_length": 100, "clips_per_sequence": 8}
    with pytest.raises(InputError, match=r"sequence_length: 100 patches are too few for 2 of 3 .* needs 300"):
        PackPlan(np.array([300, 20, 200]), [(5,)] * 3, limits(sequence_length=100, **options))
    with pytest.raises(InputError, match=r"sequence_length: 100 .* needs 300"):
        pack_in_order(np.array([300, 20, 200]), np.array([5, 5, 5]), limits(sequence_length=100, **options))
    with pytest.raises(InputError, match=r"text_length: 100 tokens .* 101"):
        PackPlan(np.array([30, 20]), [(5, 101), (3,)], limits(sequence_length=100, **options))


def test_validation_rows_hold_every_clip_once():
    patches, tokens = some_clips(200)
    first = np.array([lengths[0] for lengths in tokens])
    rows = pack_in_order(patches, first, limits(sequence_length=4096, text_length=512, clips_per_sequence=12))
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert all(patches[row].sum() <= 4096 and first[row].sum() <= 512 and len(row) <= 12 for row in rows)
