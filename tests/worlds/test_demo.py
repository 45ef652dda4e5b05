"""The demo's drawings and measures. The whole demo runs in test_shipped.py."""

import numpy as np
import pytest

from sora_jax.worlds.shapes import demo
from sora_jax.worlds.shapes.drawings import DRAWINGS, GROUNDS, draw_all
from sora_jax.worlds.shapes.renderer import BACKGROUNDS


@pytest.fixture(scope="module")
def clips():
    drawings = draw_all(frames=demo.FRAMES, size=demo.SIDE)
    return [demo.CaptionedVideo(drawing.caption, drawing.video, drawing.shown) for drawing in drawings]


def test_every_drawing_moves_and_is_kept_from_training_on_one_background(clips):
    assert len({clip.caption for clip in clips}) == len(clips) == len(DRAWINGS) * len(GROUNDS)
    unseen = [clip.caption.split(" on a ")[0] for clip in clips if not clip.trained_on]
    assert sorted(unseen) == sorted(DRAWINGS)
    assert all(len(np.unique(clip.video, axis=0)) > 1 for clip in clips)


def test_the_prompts_are_of_clips_that_training_does_not_see(clips):
    asked = demo.choose(clips)
    assert len(asked) == demo.PROMPTS and not any(clip.trained_on for clip in asked)
    own = [demo.CaptionedVideo(caption, clips[0].video) for caption in "abacdefghi"]
    assert [clip.caption for clip in demo.choose(own)] == list("abcdefg")


def test_a_background_alone_is_no_sample_of_its_caption(clips):
    asked = demo.choose(clips)
    exact = demo.measure(asked, clips, [clip.video for clip in asked])
    assert exact["nearest"] == len(asked) and exact["psnr"] > 60
    empty = [np.empty_like(clip.video) for clip in asked]
    for video, clip in zip(empty, asked, strict=True):
        video[:] = BACKGROUNDS[clip.caption.split()[-2]][0]
    blank = demo.measure(asked, clips, empty)
    # At most the smallest drawing on each background.
    assert blank["nearest"] <= len(GROUNDS) and blank["psnr"] < 20
