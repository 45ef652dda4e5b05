"""Distances between sets of videos, and the networks behind them, without torch."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg
import tiny
from test_evaluate import Model, asked, checkpoint, never_denoised, run

from sora_jax.core.errors import InputError
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.metrics.frechet import frechet_distance
from sora_jax.evaluate.suites.fvd import features, warning
from sora_jax.interop.metric_backbones import HEADS, load_video_encoder, video_table
from sora_jax.interop.tables import foreign_shapes
from sora_jax.models.metric_backbones import VideoEncoder, VideoEncoderSettings
from sora_jax.worlds.shapes.renderer import render


def gaussian(mean, covariance, count=400):
    """Vectors whose mean and covariance are exactly these."""
    x = np.random.default_rng(0).normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def test_the_frechet_distance_is_that_of_its_closed_form():
    """Of covariances that commute: the distance of the means and of the deviations."""
    turn = scipy.linalg.expm(np.array([[0, 1, 0], [-1, 0, 2], [0, -2, 0]]))
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 0.04, 1.0])
    first = gaussian(np.array([1.0, 2.0, 3.0]), turn @ np.diag(a) @ turn.T)
    second = gaussian(np.array([0.0, 2.0, 5.0]), turn @ np.diag(b) @ turn.T)
    expected = 1 + 4 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_that_of_scipy():
    draw = np.random.default_rng(0)
    a = draw.normal(size=(300, 24)) @ draw.normal(size=(24, 24))
    b = draw.normal(size=(200, 24)) @ draw.normal(size=(24, 24)) + 1
    A, B = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(A @ B).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(A + B - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(a[:1], b)


def test_few_videos_are_warned_of():
    assert "singular" in warning(256, 5000, 1408) and "too large" in warning(1500, 5000, 1408)
    assert warning(2048, 2048, 1408) == ""


def test_few_vectors_make_the_distance_too_long():
    """What the warning says: two halves of one distribution seem further apart the fewer there are."""
    x = np.random.default_rng(0).normal(size=(4000, 64))
    distances = [frechet_distance(x[:n], x[n : 2 * n]) for n in (32, 200, 2000)]
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> pathlib.Path:
    """A folder with a small VideoMAE of random weights."""
    folder = tmp_path_factory.mktemp("videomae")
    settings = VideoEncoderSettings(32, 4, 48, 2, patch=(2, 16), frames=4, size=32)
    draw = np.random.default_rng(0)
    with jax.set_mesh(tiny.mesh_of()):
        shapes = foreign_shapes(video_table(settings), VideoEncoder, settings)
    tensors = {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("key.bias")}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_attention_heads": 4, "num_frames": 4, "image_size": 32}')
    return folder


def test_features_are_those_of_each_video_alone(encoder):
    videos = np.random.default_rng(1).integers(0, 256, (6, 5, 24, 40, 3), np.uint8)
    counts = []
    with jax.set_mesh(tiny.mesh_of()):
        settings, params = load_video_encoder(str(encoder))
        together = features(settings, params, list(videos), counts.append)
        alone = features(settings, params, [videos[4]], counts.append)
        with pytest.raises(InputError, match="FVD needs 4 frames, not 3"):
            features(settings, params, [videos[0][:3]], counts.append)
    assert together.shape == (6, 32) and counts == [4, 2, 1]
    np.testing.assert_allclose(together[4], alone[0], atol=1e-5)
    assert np.abs(together[4] - together[5]).max() > 1e-3


def test_weights_of_another_model_are_refused(encoder, tmp_path):
    tensors = safetensors.numpy.load_file(encoder / "model.safetensors")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"32 wide. Known are those of {', '.join(map(str, HEADS))}"):
        load_video_encoder(str(tmp_path))
    del tensors["fc_norm.weight"]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"'fc_norm\.weight' is missing"):
        load_video_encoder(str(tmp_path))
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no fine-tuned VideoMAE"):
        load_video_encoder(str(tmp_path))


def test_the_suite_tells_videos_of_another_kind_apart(encoder, tmp_path):
    """Samples that show what the real videos show are at almost no distance; features are not made twice."""
    real = tmp_path / "real"
    for number in range(8):
        write_clip(real / f"{number}.mp4", render(asked(number), frames=5, size=(32, 32)), fps=16.0)
    wishes = {"samples": 8, "prompts": ("a",), "sizes": ("32x32",), "frames": (5,)}
    wishes |= {"videos": str(real), "videomae": str(encoder)}
    found = []
    for step, (name, change) in enumerate((("good", lambda video: video), ("noise", never_denoised))):
        folder = checkpoint(tmp_path / name, step)
        values = run(folder, tmp_path / "out", Model(asked, change), "fvd", **wishes)
        found += values["checkpoints"][0]["fvd"]["by_cell"].values()
    assert found[0]["fvd"] < 0.1 * found[1]["fvd"] and found[0]["real"] == 8
    assert "singular" in found[0]["warning"]
    page = (tmp_path / "out/index.html").read_text()
    assert "FVD" in page and "covariance is singular" in page
    kept = list((tmp_path / "out").glob("step-0-*/fvd-*.npy"))
    assert len(kept) == 2
    next((tmp_path / "out").glob("step-0-*/fvd-*.json")).unlink()
    times = [path.stat().st_mtime_ns for path in kept]
    run(tmp_path / "good", tmp_path / "out", Model(asked), "fvd", **wishes)
    assert [path.stat().st_mtime_ns for path in kept] == times
