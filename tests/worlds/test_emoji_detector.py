"""The measures of the emoji suite on true clips, and on clips that are wrong in one way."""

import numpy as np
import pytest

from sora_jax.core.errors import InputError
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.benchmark import read_video
from sora_jax.worlds.emoji.animations import FPS, LOOP, over_colour, unpack
from sora_jax.worlds.emoji.captions import BACKGROUNDS
from sora_jax.worlds.emoji.detector import Gallery, background_of, motion_correlation
from sora_jax.worlds.emoji.suite import find_faults, make_prompts, summarize
from tests.worlds.test_emoji import FILES

pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="SORA_JAX_EMOJI names no folder of WebP files")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animations")
    unpack(FILES, folder)
    return Gallery(folder, [path.stem for path in sorted(folder.glob("*.npy"))])


def shown(gallery, code, background):
    loop = over_colour(gallery.loop(code), BACKGROUNDS[background])
    return np.concatenate([loop, loop[:1]])


def test_every_true_clip_is_recognised_even_from_a_file_and_in_another_phase(gallery, tmp_path):
    names = list(BACKGROUNDS)
    for number, code in enumerate(gallery.codes):
        background = names[number % len(names)]
        video = shown(gallery, code, background)
        path = tmp_path / f"{code}.mp4"
        write_clip(
            path, np.concatenate([np.roll(video[:LOOP], number, axis=0), video[number % LOOP][None]]), fps=FPS
        )
        found = gallery.measure(code, background, read_video(path))
        assert found["identity"] and found["nearest"] == code
        assert found["tone"] is not False and found["background"]
        assert found["motion"] > 0.95


def test_another_emoji_or_background_is_not_taken_for_the_one_asked_for(gallery):
    video = shown(gallery, "1f600", "green")
    found = gallery.measure("1f622", "blue", video)
    assert not found["identity"] and found["nearest"] == "1f600"
    assert not found["background"] and found["motion"] < 0.5
    assert background_of(video) == "green"
    assert background_of(np.full_like(video, 190)) is None  # a grey between those that have names


def test_another_tone_of_the_same_hand_is_told_apart(gallery):
    light, dark = "1f44b-1f3fb", "1f44b-1f3ff"
    video = shown(gallery, light, "blue")
    assert gallery.measure(light, "blue", video)["tone"] is True
    found = gallery.measure(dark, "blue", video)
    assert found["tone"] is False and not found["identity"]
    assert found["motion"] > 0.3  # it waves all the same


def test_motion_is_compared_at_the_best_time_shift_and_a_still_video_has_none(gallery):
    loop = shown(gallery, "1f680", "white")[:LOOP]
    assert motion_correlation(np.roll(loop, 7, axis=0), loop) == pytest.approx(1, abs=1e-5)
    assert motion_correlation(loop[:1].repeat(LOOP, axis=0), loop) == 0


def test_a_loop_that_is_cut_has_a_rough_seam(gallery):
    loop = shown(gallery, "1f680", "white")[:LOOP]
    whole = gallery.measure("1f680", "white", loop)
    broken = np.concatenate([loop[:-1], np.zeros_like(loop[:1])])
    assert whole["smooth"] and whole["seam"] < 3
    assert gallery.measure("1f680", "white", broken)["seam"] > 5


def test_an_absent_animation_says_how_to_get_it(gallery, tmp_path):
    with pytest.raises(InputError, match=r"lacks 2109 of 2109 animations.*sora-jax data emoji"):
        Gallery(tmp_path)


def test_prompts_are_of_both_groups_and_stay_when_more_are_asked_for():
    few, many = make_prompts(5), make_prompts(275)
    assert [group for group, *_ in few] == ["held out"] * 5 + ["seen"] * 5
    assert few[:5] == many[:5] and few[5:] == many[275:280]
    assert all(e.held_out == (group == "held out") for group, e, _ in many)
    assert {background for *_, background in many} == set(BACKGROUNDS)


def test_shares_count_what_can_be_said():
    found = [
        {"identity": True, "tone": None, "background": True, "smooth": True, "motion": 0.5, "seam": 1.0},
        {"identity": False, "tone": True, "background": True, "smooth": True, "motion": 1.0, "seam": 2.0},
    ]
    values = summarize(found)
    assert values["identity"]["share"] == 0.5 and values["tone"]["of"] == 1
    assert values["motion"] == 0.75 and values["seam"] == 1.5


def test_a_measure_at_chance_is_a_fault_from_thirty_samples_on():
    right = {"identity": True, "tone": True, "background": True, "smooth": True, "motion": 0.5, "seam": 1.0}
    guessed = [right | {"tone": number % 5 == 0} for number in range(40)]
    groups = {"held out": summarize(guessed), "seen": summarize([right] * 40)}
    assert find_faults(groups) == ["emoji, held out: tone is no better than chance"]
    assert find_faults({"held out": summarize(guessed[:25])}) == []
