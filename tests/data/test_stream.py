"""The streams: a batch is a function of (seed, step), whatever the hosts; rows hold what the records hold."""

import collections
import contextlib
import dataclasses
import threading
import time

import ml_dtypes
import numpy as np
import pytest

from sora_jax.config.schema import (
    AutoencoderSettings,
    DataSettings,
    FlowSettings,
    MaskSettings,
    Settings,
    TextSettings,
    TransformerSettings,
)
from sora_jax.core.errors import InputError
from sora_jax.core.patches import unpatchify
from sora_jax.data.loader.stream import train_crops, train_sequences, validation_crops, validation_sequences
from sora_jax.data.records.records import Clip, Records
from sora_jax.data.records.write import finish, write_shard
from sora_jax.data.tokenizer import EOS, Tokenizer, train_tokenizer

SHAPES = {
    "latents": [(5, 4, 6), (2, 8, 8), (1, 6, 6), (3, 4, 4)],
    "pixels": [(17, 40, 48), (9, 64, 32), (1, 40, 40)],
}
PATCH = (1, 2, 2)
MASKS, FLOW = MaskSettings(), FlowSettings()


def array_of(kind, index):
    """Record `index`: its first channel is its number everywhere, the others are noise."""
    shape = SHAPES[kind][index % len(SHAPES[kind])]
    draw = np.random.default_rng(index)
    if kind == "pixels":
        array = draw.integers(0, 256, (*shape, 3)).astype(np.uint8)
    else:
        array = draw.normal(size=(*shape, 4)).astype(ml_dtypes.bfloat16)
    array[..., 0] = index
    return array


def write_data_set(out, kind, counts, first=0):
    """A data set whose records are numbered from `first`."""
    out.mkdir()
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    captions = [(f"clip {words[i // 10]} {words[i % 10]}", f"number {words[i % 10]}") for i in range(100)]
    tokenizer = train_tokenizer([c for two in captions for c in two], out / "tokenizer.model", vocabulary=600)
    shards, index = {}, first
    for split, count in counts.items():
        pairs = []
        for i in range(index, index + count):
            array = array_of(kind, i)
            clip = Clip(
                split=split,
                source=f"{i}.mp4",
                start=0.0,
                end=1.0,
                fps=16.0,
                frames=array.shape[0],
                height=array.shape[1],
                width=array.shape[2],
                shape=array.shape,
                captions=captions[i],
                tokens=tuple(len(tokenizer.encode(text)) for text in captions[i]),
            )
            pairs.append((clip, {kind: array}))
        index += count
        arrays = {kind: (None, None, None, array.shape[-1])}
        shards[split] = [(out / split, *write_shard(out / split, arrays, pairs))]
    finish(out, arrays, shards, {"kind": kind, "generation": 1}, {})


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for kind in SHAPES:
        write_data_set(folder / kind, kind, {"train": 40, "validation": 7})
    return folder


def settings_of(folder, kind, *, masks=MASKS, flow=FLOW, **changes):
    data = DataSettings(
        path=str(folder / kind),
        batch=4,
        sequence_length=64,
        text_length=32,
        clips_per_sequence=4,
        caption_dropout=0.25,
        crop_frames=9,
        crop_size="32x40",
        threads=2,
        shuffle_seed=5,
    )
    return Settings(
        data=dataclasses.replace(data, **changes),
        text=TextSettings(vocabulary=600, max_tokens=16),
        autoencoder=AutoencoderSettings(latent_channels=4),
        transformer=TransformerSettings(patch=PATCH, channels=4),
        masks=masks,
        flow=flow,
    )


def arrays(batch):
    """By name, those that there are."""
    held = dataclasses.asdict(batch) if dataclasses.is_dataclass(batch) else {"pixels": batch}
    return {name: array for name, array in held.items() if array is not None}


def assert_same(a, b):
    for (name, left), right in zip(arrays(a).items(), arrays(b).values(), strict=True):
        assert np.array_equal(left, right), name


def take(stream, count, start=0):
    with contextlib.closing(stream.iterate(start)) as batches:
        return [next(batches) for _ in range(count)]


STREAMS = [(train_sequences, "latents"), (train_crops, "pixels")]


@pytest.mark.parametrize(("open_stream", "kind"), STREAMS)
def test_a_batch_is_a_function_of_seed_and_step(data_sets, open_stream, kind):
    settings = settings_of(data_sets, kind)
    batches = take(open_stream(settings), 8)
    assert_same(open_stream(settings).batch_at(6), batches[6])
    resumed = take(open_stream(settings), 3, start=5)
    for a, b in zip(resumed, batches[5:], strict=True):
        assert_same(a, b)
    other = open_stream(settings_of(data_sets, kind, shuffle_seed=6)).batch_at(0)
    name = "patches" if kind == "latents" else "pixels"
    assert not np.array_equal(arrays(other)[name], arrays(batches[0])[name])


@pytest.mark.parametrize(
    ("open_stream", "kind"), [*STREAMS, (validation_sequences, "latents"), (validation_crops, "pixels")]
)
@pytest.mark.parametrize("parts", [([0, 1], [2, 3]), ([0], [1], [2], [3]), ([0, 2], [1, 3]), ([1, 2, 3], [0, 3])])
def test_processes_make_their_rows_of_the_global_batch(data_sets, open_stream, kind, parts):
    settings = settings_of(data_sets, kind)
    whole = open_stream(settings)
    streams = [open_stream(settings, rows=rows) for rows in parts]
    for step in range(min(whole.batches, 5)):
        for rows, stream in zip(parts, streams, strict=True):
            made = arrays(stream.batch_at(step))
            for name, value in arrays(whole.batch_at(step)).items():
                assert np.array_equal(made[name], value[rows])


def test_masks_and_echoes_are_those_of_the_row_and_of_training_alone(data_sets):
    masks = MaskSettings(first_frame=1, prefix_suffix=1, inpaint=1, forcing=0.5, times_per_sequence=8)
    settings = settings_of(data_sets, "latents", masks=masks, flow=FlowSettings(ghosts=0.5))
    whole, plain = train_sequences(settings), train_sequences(settings_of(data_sets, "latents"))
    halves = [train_sequences(settings, rows=rows) for rows in ([0, 1], [2, 3])]
    for step in range(4):
        batch = whole.batch_at(step)
        for name in ("conditioning_mask", "time_index", "ghosts"):
            parts = [getattr(half.batch_at(step), name) for half in halves]
            assert np.array_equal(np.concatenate(parts), getattr(batch, name))
        assert batch.conditioning_mask.any() and not batch.conditioning_mask[batch.segment_ids == 0].any()
        assert batch.ghosts.any() and batch.ghosts.dtype == batch.patches.dtype
        bare = batch.replace(
            conditioning_mask=np.zeros_like(batch.conditioning_mask), time_index=None, ghosts=None
        )
        assert_same(bare, plain.batch_at(step))
    held_out = validation_sequences(settings).batch_at(0)
    assert not held_out.conditioning_mask.any() and held_out.time_index is None and held_out.ghosts is None
    masks = dataclasses.replace(masks, times_per_sequence=4)
    with pytest.raises(InputError, match="times_per_sequence: 4, but the longest clip has 5 frames of patches"):
        train_sequences(settings_of(data_sets, "latents", masks=masks))


def test_rows_hold_the_clips_and_captions_of_the_records(data_sets):
    settings = settings_of(data_sets, "latents")
    tokenizer = Tokenizer(data_sets / "latents/tokenizer.model")
    seen, dropped = collections.Counter(), 0
    for batch in take(train_sequences(settings), 20):
        assert not batch.conditioning_mask.any()
        assert batch.patches.dtype == ml_dtypes.bfloat16
        assert batch.text.max() < 600
        for b in range(4):
            last = batch.segment_ids[b].max()
            assert 1 <= last <= 4
            for segment in range(1, last + 1):
                mine = batch.segment_ids[b] == segment
                grid = tuple(batch.positions[b][mine].max(axis=0) + 1)
                latents = unpatchify(batch.patches[b][mine], grid, PATCH)
                index = int(latents[0, 0, 0, 0])
                assert np.array_equal(latents, array_of("latents", index))
                text = tokenizer.decode(batch.text[b][batch.text_segment_ids[b] == segment].tolist())
                if text:
                    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
                    tens, ones = words[index // 10], words[index % 10]
                    assert text in (f"clip {tens} {ones}", f"number {ones}")
                else:
                    assert batch.text[b][batch.text_segment_ids[b] == segment].tolist() == [EOS]
                    dropped += 1
                seen[index] += 1
            padding = batch.segment_ids[b] == 0
            assert not batch.patches[b][padding].any()
            assert not batch.text[b][batch.text_segment_ids[b] == 0].any()
    assert set(seen) <= set(range(40))
    assert dropped / sum(seen.values()) == pytest.approx(0.25, abs=0.08)


def test_only_the_records_of_its_own_rows_are_read(data_sets, monkeypatch):
    stream = train_sequences(settings_of(data_sets, "latents"), rows=[2])
    read, read_all = [], Records.read_all
    monkeypatch.setattr(Records, "read_all", lambda self, *which: read.append(which) or read_all(self, *which))
    batch = stream.batch_at(3)
    first = (batch.segment_ids[0] > 0) & ~batch.positions[0].any(axis=-1)
    held = batch.patches[0][first][:, 0].astype(int).tolist()  # a record's first channel is its number
    assert read == [("train", index) for index in held]
    assert len(held) == batch.segment_ids.max()


def test_the_fill_is_what_the_rows_show(data_sets):
    stream = train_sequences(settings_of(data_sets, "latents"))
    shown = np.mean([(batch.segment_ids > 0).mean() for batch in take(stream, 60)])
    assert stream.fill == pytest.approx(shown, abs=0.02)
    assert stream.fill > 0.8


def test_validation_rows_come_once_without_dropout_and_end(data_sets):
    stream = validation_sequences(settings_of(data_sets, "latents"))
    tokenizer = Tokenizer(data_sets / "latents/tokenizer.model")
    with contextlib.closing(stream.iterate()) as batches:
        batches = list(batches)
    assert len(batches) == stream.batches
    found = []
    for batch in batches:
        assert batch.segment_ids.shape == (4, 64)
        for row, text, words in zip(batch.segment_ids, batch.text_segment_ids, batch.text, strict=True):
            found += [tokenizer.decode(words[text == segment].tolist()) for segment in range(1, row.max() + 1)]
    expected = ["four zero", "four one", "four two", "four three", "four four", "four five", "four six"]
    assert sorted(found) == sorted(f"clip {name}" for name in expected)


def test_crops_are_cut_from_clips_that_are_large_enough(data_sets):
    stream = train_crops(settings_of(data_sets, "pixels"))
    assert stream.notes == ("13 of 40 clips are smaller than 9 frames of 32x40: not used",)
    seen, places = collections.Counter(), set()
    for batch in take(stream, 54):
        assert batch.shape == (4, 9, 40, 32, 3)
        assert batch.dtype == np.uint8
        for crop in batch:
            index = int(crop[0, 0, 0, 0])
            assert index % 3 != 2
            whole = array_of("pixels", index)
            windows = np.argwhere((whole[:, :, :, 1:] == crop[0, 0, 0, 1:]).all(-1))
            place = next(
                (f, y, x) for f, y, x in windows if np.array_equal(whole[f : f + 9, y : y + 40, x : x + 32], crop)
            )
            seen[index] += 1
            places.add(tuple(int(p) for p in place))
    assert set(seen.values()) == {8}  # 54 x 4 crops of 27 clips: each comes once an epoch
    assert len(places) > 50
    assert {f for f, _, _ in places} == set(range(9))


def test_a_share_of_the_steps_has_single_frames_of_all_clips_instead(data_sets):
    stream = train_crops(settings_of(data_sets, "pixels", image_share=0.4))
    kinds, seen = [], set()
    for batch in take(stream, 40):
        kinds.append(batch.shape)
        if batch.shape[1] == 1:
            for crop in batch:
                index = int(crop[0, 0, 0, 0])
                seen.add(index % 3)
                frames = array_of("pixels", index)[:, :, :, 1:]
                assert (frames == crop[0, 0, 0, 1:]).all(-1).any()
    assert set(kinds) == {(4, 9, 40, 32, 3), (36, 1, 40, 32, 3)}
    assert 8 < kinds.count((36, 1, 40, 32, 3)) < 24
    assert seen == {0, 1, 2}  # the last are pictures, clips of one frame
    settings = settings_of(data_sets, "pixels", image_share=0.4)
    halves = [train_crops(settings, rows=rows) for rows in ([0, 1], [2, 3])]
    for step, kind in enumerate(kinds):
        parts = [half.batch_at(step) for half in halves]
        assert np.array_equal(np.concatenate(parts), stream.batch_at(step)), kind


def test_validation_crops_are_the_middle_and_fill_the_last_batch(data_sets):
    stream = validation_crops(settings_of(data_sets, "pixels"))
    with contextlib.closing(stream.iterate()) as batches:
        crops = np.concatenate(list(batches))
    indices = [int(crop[0, 0, 0, 0]) for crop in crops]
    fitting = [i for i in range(40, 47) if i % 3 != 2]
    assert indices == [*fitting, *fitting][: len(indices)]
    assert len(indices) == 4 * stream.batches
    assert np.array_equal(
        crops[0], array_of("pixels", 40)[:9, :40, 8:40] if 40 % 3 == 0 else array_of("pixels", 40)[:9, 12:52]
    )


def test_threads_end_with_the_iterator(data_sets):
    stream = train_sequences(settings_of(data_sets, "latents"))
    take(stream, 2)
    before = threading.active_count()
    for start in range(5):
        take(stream, 2, start)
    deadline = time.monotonic() + 20  # a closed pool's threads end soon, not at once
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_damaged_record_stops_the_run_with_its_shard(data_sets, tmp_path):
    write_data_set(tmp_path / "latents", "latents", {"train": 12})
    (shard,) = (tmp_path / "latents").glob("*.array_record-*")
    data = bytearray(shard.read_bytes())
    place = data.find(array_of("latents", 3)[1].tobytes())
    assert place > 0
    data[place : place + 64] = bytes(64)
    shard.write_bytes(data)
    with pytest.raises(InputError) as error:
        take(train_sequences(settings_of(tmp_path, "latents")), 6)
    text = str(error.value)
    assert f"{shard}: record 3 can't be read, Corrupted" in text
    assert f"`sora-jax data verify --data={tmp_path / 'latents'}` lists what is broken" in text
    assert "\n" not in text


def test_bad_settings_are_told(data_sets):
    for changes, kind, reason in [
        ({"sequence_length": 20}, "latents", "20 patches are too few .* needs 32"),
        ({"crop_size": "40"}, "pixels", "must be WIDTHxHEIGHT"),
        ({"crop_size": "36x40"}, "pixels", "must be a multiple of the autoencoder's 8"),
        ({"crop_frames": 8}, "pixels", r"8 must be 4 n \+ 1"),
        ({"crop_size": "128x128"}, "pixels", "none of 40 clips in the train split has 9 frames of 128x128"),
    ]:
        open_stream = train_sequences if kind == "latents" else train_crops
        with pytest.raises(InputError, match=reason):
            open_stream(settings_of(data_sets, kind, **changes))
    small = dataclasses.replace(
        settings_of(data_sets, "latents"), text=TextSettings(vocabulary=300, max_tokens=16)
    )
    with pytest.raises(InputError, match="vocabulary: 300 is less than the"):
        train_sequences(small)
    other = Settings(data=settings_of(data_sets, "latents").data)
    with pytest.raises(InputError, match=r"transformer.channels: 16, but the latents of .* have 4"):
        train_sequences(dataclasses.replace(other, text=TextSettings(vocabulary=600)))


def test_captions_longer_than_the_limit_are_cut_with_a_note(data_sets):
    settings = settings_of(data_sets, "latents")
    settings = dataclasses.replace(settings, text=TextSettings(vocabulary=600, max_tokens=3))
    stream = train_sequences(settings)
    assert stream.notes == ("40 captions of the train split are cut to 3 tokens",)
    batch = stream.batch_at(0)
    lengths = [np.sum(row == s) for row in batch.text_segment_ids for s in range(1, row.max() + 1)]
    assert set(lengths) <= {1, 3}


@pytest.mark.parametrize(("open_stream", "kind"), STREAMS)
def test_a_mix_has_the_shares_of_its_weights(data_sets, open_stream, kind, tmp_path):
    write_data_set(tmp_path / kind, kind, {"train": 9, "validation": 1}, first=60)
    settings = settings_of(data_sets, kind, path=f"{data_sets / kind}:3,{tmp_path / kind}:1", image_share=0.1)
    stream = open_stream(settings)
    halves = [open_stream(settings, rows=rows) for rows in ([0, 1], [2, 3])]
    seen = collections.Counter()
    for step, batch in enumerate(take(stream, 300 if kind == "pixels" else 150)):
        if step % 30 == 0:
            for rows, half in zip(([0, 1], [2, 3]), halves, strict=True):
                for name, value in arrays(half.batch_at(step)).items():
                    assert np.array_equal(value, arrays(batch)[name][rows[0] * len(value) // 2 :][: len(value)])
        if kind == "pixels":
            seen.update(int(crop[0, 0, 0, 0]) for crop in batch)
            continue
        for row, segment_ids, places in zip(batch.patches, batch.segment_ids, batch.positions, strict=True):
            first = (segment_ids > 0) & ~places.any(axis=-1)
            seen.update(int(patch[0]) for patch in row[first].astype(np.float32))
    of_second = {index: times for index, times in seen.items() if index >= 60}
    assert sum(of_second.values()) / seen.total() == pytest.approx(0.25, abs=0.02)
    assert len(seen) == 49
    for index, times in seen.items():  # within a data set all come equally often
        if kind == "latents":
            assert times == pytest.approx(seen.total() * (0.25 / 9 if index >= 60 else 0.75 / 40), rel=0.2, abs=3)


def test_a_mix_is_of_one_autoencoder_and_one_tokenizer(data_sets, tmp_path):
    write_data_set(tmp_path / "latents", "latents", {"train": 4})
    sums = tmp_path / "latents/SHA256SUMS"
    lines = sums.read_text().splitlines()
    settings = settings_of(data_sets, "latents", path=f"{data_sets / 'latents'},{tmp_path / 'latents'}")
    assert train_sequences(settings).clips == 44
    sums.write_text(
        "\n".join([*(line for line in lines if "tokenizer" not in line), f"{0:064x}  tokenizer.model"])
    )
    with pytest.raises(
        InputError, match=r"another tokenizer.model than .*; prepare it with --tokenizer=.*/tokenizer"
    ):
        train_sequences(settings)
    sums.write_text("\n".join([*lines, f"{0:064x}  autoencoder/model.safetensors"]))
    with pytest.raises(InputError, match=r"another autoencoder than .*; prepare it with --autoencoder="):
        train_sequences(settings)
    for path, reason in (
        ("a:3,a:1", "a is named twice"),
        ("a:0,b", "a:0: a weight above 0"),
        ("a:2,b:1", "no folder a"),
    ):
        with pytest.raises(InputError, match=reason):
            train_sequences(settings_of(data_sets, "latents", path=path))
