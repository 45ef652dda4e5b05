"""The metrics against trusted implementations, on a real picture and its distortions."""

import jax
import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import skimage.metrics

from sora_jax.core.errors import InputError
from sora_jax.evaluate.metrics.image_quality import SCALE_WEIGHTS, ms_ssim, psnr, ssim


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A real colour picture, [H, W, 3] uint8, with sides that are odd and differ."""
    return skimage.data.astronaut()[:203, 40:301]


def distortions(picture) -> np.ndarray:
    """The picture, [F, H, W, 3] uint8: noisy, blurred, dimmed, shifted, inverted."""
    noise = np.random.default_rng(0).normal(0, 20, picture.shape)
    blurred = scipy.ndimage.gaussian_filter(picture, (2, 2, 0))
    changed = [picture + noise, blurred, picture * 0.7, np.roll(picture, 3, axis=1), 255 - picture]
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


def test_ssim_is_that_of_scikit_image(picture):
    others = distortions(picture)
    expected = [
        skimage.metrics.structural_similarity(
            picture / 255,
            other / 255,
            channel_axis=-1,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for other in others
    ]
    assert min(expected) < 0.1 < 0.9 < max(expected)
    np.testing.assert_allclose(ssim(np.broadcast_to(picture, others.shape), others), expected, atol=2e-5)


def test_psnr_is_that_of_scikit_image(picture):
    others = distortions(picture)
    expected = [skimage.metrics.peak_signal_noise_ratio(picture, other, data_range=255) for other in others]
    np.testing.assert_allclose(psnr(np.broadcast_to(picture, others.shape), others), expected, rtol=1e-5)


def reference_ms_ssim(a, b) -> float:
    """Eq. 7 of Wang et al. 2003, channel by channel in float64 with scipy's filter."""

    def blur(x):
        return scipy.ndimage.gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    values = []
    for x, y in zip(np.moveaxis(a / 255, -1, 0), np.moveaxis(b / 255, -1, 0), strict=True):
        value = 1.0
        for scale, weight in enumerate(SCALE_WEIGHTS):
            m, n = blur(x), blur(y)
            structure = (2 * (blur(x * y) - m * n) + 9e-4) / (blur(x * x) - m * m + blur(y * y) - n * n + 9e-4)
            luminance = (2 * m * n + 1e-4) / (m * m + n * n + 1e-4)
            value *= max(np.mean(structure * luminance if scale == 4 else structure), 0) ** weight
            x, y = (
                sum(z[i : z.shape[0] // 2 * 2 : 2, j : z.shape[1] // 2 * 2 : 2] for i in (0, 1) for j in (0, 1))
                / 4
                for z in (x, y)
            )
        values.append(value)
    return np.mean(values)


def test_ms_ssim_is_that_of_its_equation(picture):
    others = distortions(picture)
    expected = [reference_ms_ssim(picture, other) for other in others]
    np.testing.assert_allclose(ms_ssim(np.broadcast_to(picture, others.shape), others), expected, atol=2e-5)


def test_a_video_is_measured_frame_by_frame(picture):
    others = distortions(picture)[:4].reshape(2, 2, *picture.shape)
    same = np.broadcast_to(picture, others.shape)
    for metric in (psnr, ssim, ms_ssim):
        values = metric(same, others)
        assert values.shape == (2, 2) and values.dtype == np.float32
        np.testing.assert_allclose(values[1, 0], metric(picture, others[1, 0]), rtol=1e-5)


def test_bytes_and_floats_measure_the_same(picture):
    other = distortions(picture)[0]
    for metric in (psnr, ssim, ms_ssim):
        mixed = metric(picture, (other / 255).astype(np.float32))
        np.testing.assert_allclose(mixed, metric(picture, other), rtol=1e-5)


def test_equal_frames_measure_best(picture):
    assert psnr(picture, picture) == np.inf
    np.testing.assert_allclose([ssim(picture, picture), ms_ssim(picture, picture)], 1, atol=1e-6)


def test_half_precision_is_measured_in_full(picture):
    half = jax.numpy.asarray(picture / 255, jax.numpy.bfloat16)
    assert psnr(half, half.astype(np.float32)) == np.inf


@pytest.mark.parametrize("metric", [psnr, ssim, ms_ssim])
def test_frames_that_can_not_be_compared_are_refused(metric):
    frames = np.zeros((2, 200, 200, 3), np.uint8)
    with pytest.raises(InputError, match="can't be compared"):
        metric(frames, frames[:1])
    with pytest.raises(InputError, match="type int32"):
        metric(frames, frames.astype(np.int32))


def test_frames_smaller_than_the_window_are_refused():
    with pytest.raises(InputError, match="SSIM needs frames of at least 11x11 pixels, not 64x10"):
        ssim(np.zeros((10, 64, 3), np.uint8), np.zeros((10, 64, 3), np.uint8))
    with pytest.raises(InputError, match="MS-SSIM needs frames of at least 176x176 pixels, not 832x64"):
        ms_ssim(np.zeros((64, 832, 3), np.uint8), np.zeros((64, 832, 3), np.uint8))
