"""The shapes world: what is rendered is what the caption says."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest

from sora_jax.core.errors import InputError
from sora_jax.data.media.video import count_frames, probe, read_clip
from sora_jax.worlds.shapes.captions import STYLES, caption
from sora_jax.worlds.shapes.renderer import (
    BACKGROUNDS,
    CAMOUFLAGE,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    Scene,
    Thing,
    World,
    bounces,
    is_held_out,
    render,
    sample_scene,
    trajectories,
    write_world,
)


def combinations():
    return [
        (Thing(shape, colour, size, motion, speed), background)
        for shape in SHAPES
        for colour in COLOURS
        for size in SIZES
        for motion in MOTIONS
        for speed in (["none"] if motion == "still" else SPEEDS)
        for background in BACKGROUNDS
        if (colour, background) not in CAMOUFLAGE
    ]


def test_scenes_are_a_function_of_seed_and_index():
    assert sample_scene(3, 5) == sample_scene(3, 5)
    assert len({sample_scene(3, i) for i in range(50)} | {sample_scene(4, i) for i in range(50)}) == 100
    scene = sample_scene(0, 0)  # golden: a change of the sampler makes every shipped world another one
    assert [dataclasses.astuple(thing)[:5] for thing in scene.things] == [
        ("circle", "red", "small", "down", "slow"),
        ("square", "purple", "large", "up", "fast"),
    ]
    assert scene.background == "sky"


def test_a_tenth_of_the_combinations_is_held_out():
    everything = combinations()
    share = sum(is_held_out(*one) for one in everything) / len(everything)
    assert 0.08 < share < 0.13
    for held_out in (False, True):
        scenes = [sample_scene(1, i, held_out=held_out) for i in range(300)]
        assert all(is_held_out(thing, s.background) == held_out for s in scenes for thing in s.things)


def test_every_attribute_is_drawn_and_none_too_often():
    scenes = [sample_scene(0, i) for i in range(3000)]
    things = [thing for scene in scenes for thing in scene.things]
    for field, options in {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "motion": MOTIONS}.items():
        counts = collections.Counter(getattr(thing, field) for thing in things)
        assert set(counts) == set(options)
        assert min(counts.values()) > 0.5 * len(things) / len(options)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert 0.25 < np.mean([len(scene.things) == 2 for scene in scenes]) < 0.42
    assert not any((thing.colour, s.background) in CAMOUFLAGE for s in scenes for thing in s.things)


@pytest.mark.parametrize("size", [(64, 64), (64, 112), (96, 48)])
def test_things_stay_inside_and_apart(size):
    H, W = size
    for i in range(100):
        scene = sample_scene(2, i, things=2)
        for path in trajectories(scene, frames=81, size=size, fps=16.0):
            assert (path > 0).all()
            assert (path < (W, H)).all()
        red = [dataclasses.replace(thing, colour="red") for thing in scene.things]
        video = render(dataclasses.replace(scene, things=tuple(red), background="black"), frames=17, size=size)
        covered = (video[..., 0].astype(float) - 16).sum((1, 2)) / (COLOURS["red"][0] - 16)
        area = sum(np.pi * (SIZES[thing.size] * min(size)) ** 2 for thing in red)
        assert covered == pytest.approx(area, rel=0.03)  # an overlap or a cut by the edge would lose area


def test_motion_is_what_the_attribute_says():
    for motion, (x, y) in MOTIONS.items():
        for speed in ["none"] if motion == "still" else SPEEDS:
            for place in [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]:
                thing = Thing("square", "red", "small", motion, speed, place)
                video = render(Scene((thing,), "black"), frames=11, size=(64, 64)).astype(float)[..., 0] - 16
                weight = video / video.sum((1, 2), keepdims=True)
                rows, columns = np.mgrid[:64, :64]
                moved = np.array([(weight[10] - weight[0]).ravel() @ grid.ravel() for grid in (columns, rows)])
                expected = SPEEDS.get(speed, 0) * 64 * 10 / 16 * np.array([x, y])
                assert moved == pytest.approx(expected, abs=0.2)


def test_fast_things_bounce_and_turn_round():
    thing = Thing("circle", "red", "large", "right", "fast", (1.0, 0.5))
    scene = Scene((thing,), "black")
    (path,) = trajectories(scene, frames=49, size=(64, 64), fps=16.0)
    assert bounces(scene, frames=49, size=(64, 64), fps=16.0) == [True]
    assert bounces(scene, frames=9, size=(64, 64), fps=16.0) == [False]
    assert path[8, 0] > path[0, 0]
    assert path[20, 0] < path[11, 0]


def test_edges_are_anti_aliased():
    video = render(Scene((Thing("circle", "red", "large", "still", "none"),), "black"), frames=1, size=(64, 64))
    reds = video[0, ..., 0]
    between = (reds > 40) & (reds < 200)
    assert 10 < between.sum() < 100


def test_captions_name_every_attribute():
    for i in range(300):
        scene = sample_scene(5, i)
        for style in STYLES:
            text = caption(scene, style, moving=True, bounced=[False] * len(scene.things)).lower()
            for thing in scene.things:
                assert thing.colour in text
                assert thing.shape in text
            assert scene.background in text
            words = set(re.findall(r"[a-z]+", text.replace("brightens downwards", "")))
            sideways, upright = {"left", "leftwards", "right", "rightwards"}, {"top", "bottom"}
            ways = {
                "left": sideways,
                "right": sideways,
                "up": upright | {"up", "upwards"},
                "down": upright | {"down", "downwards"},
                "still": set(),
            }
            allowed = set().union(*(ways[thing.motion] for thing in scene.things))
            assert words & set().union(*ways.values()) <= allowed  # no direction that is not there
            assert all(words & ways[thing.motion] for thing in scene.things if thing.motion != "still")
    scene = dataclasses.replace(sample_scene(5, 0), things=sample_scene(5, 0).things[:1])
    assert "moves" not in caption(scene, "plain", moving=False, bounced=[False])


def test_long_captions_vary_in_their_words():
    texts = {caption(sample_scene(5, i, things=1), "long", moving=True, bounced=[False]) for i in range(200)}
    assert len(texts) == 200


def test_the_plain_caption_is_the_prompt_of_the_docs():
    thing = Thing("circle", "red", "small", "left", "slow")
    texts = {caption(Scene((thing,), "blue", wording=w), "plain", moving=True, bounced=[False]) for w in range(9)}
    assert texts == {
        "a small red circle moves left on a blue background",
        "a small red circle moves slowly left on a blue background",
    }


def test_a_world_is_a_folder_of_real_videos(tmp_path):
    options = {"seed": 7, "sizes": ("64x64", "96x48"), "lengths": (17, 1)}
    write_world(tmp_path / "w", 8, World(**options))
    lines = [json.loads(line) for line in (tmp_path / "w/captions.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    shapes = collections.Counter()
    for index, line in enumerate(lines):
        video = probe(tmp_path / "w" / line["video"])
        frames = count_frames(video, 16.0)
        size = (video.height, video.width)
        shapes[frames, *size] += 1
        read = read_clip(video, size, fps=16.0, frames=frames)
        drawn = render(sample_scene(7, index), frames=frames, size=size)
        assert np.abs(read.astype(int) - drawn).mean() < 1.5
        assert ("moves" in line["caption"] or "still" in line["caption"]) == (frames > 1)
    assert shapes == {(17, 64, 64): 2, (17, 48, 96): 2, (1, 64, 64): 2, (1, 48, 96): 2}


def test_a_world_can_keep_to_one_thing_and_one_style(tmp_path):
    write_world(tmp_path, 9, World(lengths=(1,), things=1, styles=("terse",)))
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"video", "caption"}] * 9
    scenes = [sample_scene(0, index, things=1) for index in range(9)]
    texts = [caption(scene, "terse", moving=False, bounced=[False]) for scene in scenes]
    assert [line["caption"] for line in lines] == texts


def test_videos_of_a_world_can_be_windows_captioned_as_the_whole(tmp_path):
    drawn = {"things": 2, "colours": ("red", "orange"), "motions": ("left", "right")}
    write_world(tmp_path, 6, World(seed=3, lengths=(5,), lead_in=40, **drawn))
    begun, bounced = [], []
    for index, line in enumerate((tmp_path / "captions.jsonl").read_text().splitlines()):
        line = json.loads(line)
        scene = sample_scene(3, index, **drawn)
        assert {thing.motion for thing in scene.things} <= {"left", "right"}
        assert {thing.colour for thing in scene.things} == {"red", "orange"}
        video = probe(tmp_path / line["video"])
        made = read_clip(video, (64, 64), fps=16.0, frames=5).astype(int)
        whole = render(scene, frames=45, size=(64, 64)).astype(int)
        apart = [np.abs(made - whole[n : n + 5]).mean() for n in range(41)]
        begun.append(int(np.argmin(apart)))
        assert min(apart) < 2  # what the codec costs
        bounced.append(bounces(scene, frames=begun[-1] + 5, size=(64, 64), fps=16.0))
        assert line["long_caption"] == caption(scene, "long", moving=True, bounced=bounced[-1])
    assert max(begun) > 20 and len(set(begun)) > 3 and np.any(bounced)


def test_a_world_is_finished_after_a_stop_and_never_mixed(tmp_path):
    write_world(tmp_path, 3, World(seed=1))
    before = (tmp_path / "000001.mp4").stat().st_mtime_ns
    (tmp_path / "000002.mp4").unlink()
    write_world(tmp_path, 4, World(seed=1))
    assert (tmp_path / "000001.mp4").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == [f"{i:06d}.mp4" for i in range(4)]
    with pytest.raises(InputError, match="holds another shapes world"):
        write_world(tmp_path, 4, World(seed=2))
