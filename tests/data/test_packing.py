"""The pack plan: every clip, once an epoch, in rows that are full and never too full."""

import collections

import numpy as np
import pytest

from sora_jax.config.schema import DataSettings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.packing import PackPlan, first_fit, pack_in_order


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
