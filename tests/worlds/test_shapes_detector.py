"""The detector: every attribute of a rendered scene, and nothing where there is no scene."""

import dataclasses
import itertools

import av
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sora_jax.data.media.video import count_frames, probe, read_clip, read_frames
from sora_jax.worlds.shapes.detector import ATTRIBUTES, compare, read_scene
from sora_jax.worlds.shapes.renderer import BACKGROUNDS, SHAPES, SIZES, Scene, Thing, render, sample_scene


def share_read(scenes, show):
    """Of how many scenes every attribute is read, of the videos that `show` makes of them."""
    return np.mean([all(compare(scene, read_scene(show(scene))).values()) for scene in scenes])


@pytest.mark.parametrize(
    ("size", "frames"), [((64, 64), 17), ((64, 64), 5), ((64, 64), 1), ((48, 112), 33), ((112, 64), 17)]
)
def test_rendered_scenes_are_read_exactly(size, frames):
    scenes = [sample_scene(11, i, held_out=i % 2 == 0) for i in range(60)]
    assert share_read(scenes, lambda scene: render(scene, frames=frames, size=size)) >= 0.995


def test_speed_is_read_at_any_frame_rate():
    scenes = [sample_scene(12, i) for i in range(40)]
    for fps in (8.0, 24.0):
        read = [read_scene(render(s, frames=int(fps), size=(64, 64), fps=fps), fps=fps) for s in scenes]
        assert all(all(compare(s, r).values()) for s, r in zip(scenes, read, strict=True))


def test_lossy_video_is_read_as_well(tmp_path):
    """Half the colour resolution and a strong quantiser, as a video from the internet has them."""

    def through_the_codec(scene):
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16, options={"crf": "26", "preset": "ultrafast"})
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            for frame in render(scene, frames=17, size=(64, 64)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return read_clip(probe(path), (64, 64), fps=16.0, frames=17)

    assert share_read([sample_scene(13, i) for i in range(80)], through_the_codec) >= 0.97


@pytest.mark.parametrize("blur", [0.7, 1.4, 1.8])
def test_shapes_without_sharp_corners_keep_their_names(blur):
    """As an autoencoder shows small ones; against sharp shapes a rounded square is nearly a circle."""

    def blurred(scene):
        video = gaussian_filter(render(scene, frames=5, size=(64, 64)).astype(np.float32), (0, blur, blur, 0))
        return video.round().astype(np.uint8)

    things = [Thing(*kind, "still", "none") for kind in itertools.product(SHAPES, ["green", "purple"], SIZES)]
    assert (
        share_read([Scene((thing,), background) for thing in things for background in ("black", "white")], blurred)
        == 1
    )


def test_noise_and_a_change_of_colour_are_forgiven():
    draw = np.random.default_rng(0)

    def worn(scene):
        video = render(scene, frames=17, size=(64, 64)) + draw.normal(0, 8, (17, 64, 64, 3)) + draw.normal(0, 8, 3)
        return np.clip(video, 0, 255).astype(np.uint8)

    assert share_read([sample_scene(14, i) for i in range(80)], worn) >= 0.97


def test_a_wrong_attribute_is_named():
    for i in range(40):
        scene = sample_scene(15, i, things=1)
        (thing,) = scene.things
        other = {
            "shape": "circle" if thing.shape != "circle" else "square",
            "colour": "yellow" if thing.colour != "yellow" else "red",
            "size": "small" if thing.size == "large" else "large",
            "motion": "left" if thing.motion == "right" else "right",
        }
        if thing.motion == "still":
            del other["motion"]
        for field, value in other.items():
            wrong = Scene((dataclasses.replace(thing, **{field: value}),), scene.background)
            found = compare(scene, read_scene(render(wrong, frames=17, size=(64, 64))))
            assert [name for name in ATTRIBUTES if not found[name]] == [field]
    two = sample_scene(15, 0, things=2)
    found = compare(
        two, read_scene(render(dataclasses.replace(two, things=two.things[:1]), frames=17, size=(64, 64)))
    )
    assert not found["count"]
    assert found["background"]


def test_nothing_is_read_where_there_is_no_scene():
    draw = np.random.default_rng(1)
    shape = (17, 64, 64, 3)
    for video in [
        *(draw.integers(0, 256, shape) for _ in range(10)),
        *(np.clip(draw.normal(128, sigma, shape), 0, 255) for sigma in (2, 10, 40, 80)),
        *(np.full(shape, level) for level in range(0, 256, 15)),
        *(render(Scene((), name), frames=17, size=(64, 64)) for name in BACKGROUNDS),
    ]:
        read = read_scene(video.astype(np.uint8))
        assert read is None
        assert not any(compare(sample_scene(0, 0), read).values())


def test_a_thing_that_vanishes_or_changes_its_way_has_no_name():
    for i in range(20):
        scene = sample_scene(16, i, things=1)
        video = render(scene, frames=17, size=(64, 64))
        empty = render(dataclasses.replace(scene, things=()), frames=8, size=(64, 64))
        assert read_scene(np.concatenate([video[:9], empty])) is None
        still = dataclasses.replace(scene.things[0], motion="still", speed="none", place=(0.1, 0.1))
        frame = render(Scene((still,), "black"), frames=1, size=(64, 64))[0]
        slanted = np.stack([np.roll(frame, (k, k), (0, 1)) for k in range(17)])
        assert read_scene(slanted) is None


def test_real_clips_are_not_scenes(clips):
    read = []
    for path in [*sorted(clips.glob("*.mp4")), clips / "pancake.mkv"]:
        video = probe(path)
        frames = min(count_frames(video, 16.0), 68)
        whole = np.stack([made for (made,) in read_frames(video, [(64, 96)], fps=16.0, frames=frames)])
        read += [read_scene(whole[start : start + 17]) for start in range(0, len(whole) - 16, 6)]
        read += [read_scene(frame[None]) for frame in whole[::6]]
    assert len(read) > 90
    assert read == [None] * len(read)
