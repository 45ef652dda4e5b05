"""Image to video, through the command line: small random models in Wan's published forms, and real clips."""

import json

import jax
import numpy as np
import pytest
import tiny
from PIL import Image
from wan_cases import IMAGE
from wan_published import write_published

from sora_jax.cli.main import main
from sora_jax.config.schema import SampleSettings, TransformerSettings
from sora_jax.data.conditioning_frames import (
    add_mask_channels,
    clip_preprocess,
    conditioning_frame_indices,
    grey_except,
)
from sora_jax.data.media.video import probe
from sora_jax.generate.generator import load_generator
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.generate.tasks import animate

CASES = ["i2v", *(pytest.param(case, marks=pytest.mark.slow) for case in ("flf2v", "i2v-a14b", "ti2v"))]


class Home:
    """A converted model and two pictures of 40x60."""

    def __init__(self, folder, case):
        self.folder, self.case = folder, case
        write_published(folder / "published", "bfloat16", case=case, boundary=0.9 if "a14b" in case else 0.0)
        assert main(["convert", f"--from={folder}/published", f"--to={folder}/wan"]) == 0
        for name, color in (("first", "red"), ("last", "blue")):
            Image.new("RGB", (60, 40), color).save(folder / f"{name}.png")

    def pictures(self, *names):
        return [
            f"--{flag}={self.folder}/{name}.png"
            for flag, name in zip(("image", "last-image"), names, strict=False)
        ]

    def sample(self, *flags):
        size = ("--size=64x64", "--frames=5", "--steps=2", "--prompt=a bird", f"--out={self.folder}/out.mp4")
        return main(["sample", f"--checkpoint={self.folder}/wan", *size, *flags])


def conditioning_of(generator, images):
    """The conditioning of 5 frames that begin (and end) with these."""
    return animate(generator, 5, dict(zip((0, 4), images, strict=False))).conditioning


@pytest.fixture(scope="module", params=CASES)
def home(tmp_path_factory, request):
    return Home(tmp_path_factory.mktemp(request.param), request.param)


def test_a_picture_becomes_a_video(home, capsys):
    names = ("first", "last") if home.case == "flf2v" else ("first",)
    assert home.sample(*home.pictures(*names)) == 0
    told = capsys.readouterr()
    assert "60x40, scaled to cover 64x64 and cropped around the centre" in told.out + told.err
    assert probe(home.folder / "out.mp4").frames == 5
    assert read_metadata(home.folder / "out.mp4")["image"].endswith("first.png")


@pytest.mark.slow
@pytest.mark.parametrize(
    "home",
    [pytest.param(case, marks=[] if case in ("i2v", "ti2v") else pytest.mark.exhaustive) for case in CASES],
    indirect=True,
)
def test_the_picture_matters_and_the_mesh_does_not(home):
    sample = SampleSettings(size="64x64", frames=5, steps=3, solver="unipc", guidance=5.0, shift=5.0)
    red, blue = (np.full((64, 64, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    split = {"data": 2, "fsdp": 2} if home.case == "ti2v" else {"data": 2, "ulysses": 2}  # of 3 heads, and of 4
    latents = []
    for mesh, images in (({}, [red]), (split, [red]), ({}, [blue])):
        images = [*images, blue] if home.case == "flf2v" else images
        with jax.set_mesh(tiny.mesh_of(**mesh)):
            generator = load_generator(home.folder / "wan", dtype="float32")
            conditioning = conditioning_of(generator, images)
            prompts = ["a bird"] * int(np.prod([mesh.get(axis, 1) for axis in ("data", "fsdp")]))
            latents.append(sample_latents(generator, prompts, sample, Noise(4), conditioning=conditioning)[0])
    assert np.abs(latents[0] - latents[2]).max() > 0.05
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-3)
    if home.case == "ti2v":  # held, but for the rounding of the solver's sums
        with jax.set_mesh(tiny.mesh_of()):
            first = conditioning_of(load_generator(home.folder / "wan", dtype="float32"), [red]).latents[:1]
        np.testing.assert_allclose(latents[0][:1], first, atol=1e-5)


def test_pictures_that_a_model_does_not_take_are_told(home, capsys):
    none, first, last, both = (home.pictures(*names) for names in ((), ("first",), (), ("first", "last")))
    last = [f"--last-image={home.folder}/last.png"]
    wrong = {
        "i2v": [(none, "--image: names the picture"), (both, "takes a first image, and no last one")],
        "flf2v": [(none, "--image: names the picture"), (first, "--last-image: names the picture")],
        "i2v-a14b": [(none, "--image: names the picture"), (last, "name the first one as well, with --image")],
        "ti2v": [],
    }
    missing = [f"--image={home.folder}/fist.png", *(both[1:] if home.case == "flf2v" else [])]
    (home.folder / "out.mp4").unlink(missing_ok=True)
    for flags, words in [*wrong[home.case], (missing, "fist.png: no such file, did you mean 'first.png'?")]:
        assert home.sample(*flags) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
    assert not (home.folder / "out.mp4").exists()


def test_weights_and_index_come_out_as_they_went_in(home):
    back, published = home.folder / "back", home.folder / "published"
    assert main(["convert", f"--from={home.folder}/wan", f"--to={back}"]) == 0
    for path in published.rglob("*.json"):
        if path.parent == published or path.parent.name.startswith("image"):
            assert (back / path.relative_to(published)).read_bytes() == path.read_bytes()
    config = json.loads((back / "transformer" / "config.json").read_text())
    assert config == json.loads((published / "transformer" / "config.json").read_text())


def test_the_mask_says_of_each_frame_whether_it_is_given():
    latents = np.ones((3, 1, 2, 5), np.float32)
    made = add_mask_channels(latents, (0, 8), 4)
    assert made.shape == (3, 1, 2, 9)
    # The first latent frame holds one frame, which counts four times.
    assert made[:, 0, 0, :4].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert np.array_equal(made[..., 4:], latents)


def test_frames_that_are_not_given_are_grey():
    white = np.full((2, 2, 3), 255, np.uint8)
    frames = list(grey_except({0: white, 2: white}, 3))
    assert [frame.mean() for frame in frames] == [1, 0, 1]


@pytest.mark.parametrize("positions, frames", [(0, (0,)), (514, (0, 16))])
def test_a_model_learns_to_be_given_the_frames_that_it_has_positions_for(positions, frames):
    settings = TransformerSettings(image_positions=positions, image_width=1280)
    assert conditioning_frame_indices(settings, 17) == frames


def test_an_image_encoder_is_shown_the_whole_frame_as_wan_does():
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:, :10] = 255
    square = clip_preprocess([picture], IMAGE.size, "squash")[0]
    bar = square[:, : IMAGE.size * 10 // 80 - 1]
    assert square.shape == (IMAGE.size, IMAGE.size, 3) and bar.min() > 1.5 and square[:, 8:].max() < 0


def test_an_image_encoder_is_shown_the_middle_square_as_diffusers_does():
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, 30:60] = 255
    square = clip_preprocess([picture], IMAGE.size, "crop")[0]
    assert square.shape == (IMAGE.size, IMAGE.size, 3) and square[:, 2:-2].min() > 1.5
