"""The demo's drawings and measures. The whole demo runs in test_shipped.py."""

import numpy as np
import pytest

from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.worlds.shapes import demo
from sora_jax.worlds.shapes.drawings import DRAWINGS, GROUNDS, Drawing, draw_all, write_drawings
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


@pytest.mark.slow
def test_clips_of_ones_own_are_learned_from_and_asked_for_by_their_captions(tmp_path, clips):
    folder = tmp_path / "mine"
    write_drawings(folder, (Drawing(clip.caption, clip.video, True) for clip in clips[:3]), fps=demo.FPS)
    next(folder.glob("*star*.txt")).unlink()  # a file without a caption is left out
    found = demo.make_clips(tmp_path / "out", folder, Console(stderr=True))
    captions = {clip.caption for clip in found}
    assert captions == {path.read_text().strip() for path in folder.glob("*.txt")} and len(captions) == 2
    assert all(clip.trained_on and clip.video.shape == (demo.FRAMES, demo.SIDE, demo.SIDE, 3) for clip in found)
    with pytest.raises(InputError, match="--videos: none of 3 files can be used"):
        for path in folder.glob("*.txt"):
            path.unlink()
        demo.make_clips(tmp_path / "none", folder, Console(stderr=True))
