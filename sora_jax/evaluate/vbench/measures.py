"""VBench's dimensions of one video, from frames [F, H, W, 3] uint8; None where a video has too few frames.

Source: Huang et al. 2023 (arXiv 2311.17982).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from sora_jax.evaluate.vbench.networks import (
    clip_features,
    dino_features,
    in_batches,
    interpolation_errors,
    long_vectors,
    musiq_scores,
    viclip_features,
    viclip_text,
)

MOVES_PER_SECOND = 8  # frames that the dynamic degree looks at
PICTURES, PAIRS = 8, 1  # per device at a time


def subject_consistency(frames: np.ndarray, settings, params) -> float | None:
    """How alike all frames are to the first and to the one before, by DINO's features; 1 is best."""
    return _consistency(in_batches(lambda x: dino_features(settings, params, x), [frames], rows=PICTURES))


def background_consistency(frames: np.ndarray, settings, params) -> float | None:
    """The same by CLIP's features."""
    return _consistency(in_batches(lambda x: clip_features(settings, params, x), [frames], rows=PICTURES))


def _consistency(features: np.ndarray) -> float | None:
    if len(features) < 2:
        return None
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    before = np.sum(features[1:] * features[:-1], axis=1)
    return float(np.mean(np.maximum(before, 0) + np.maximum(features[1:] @ features[0], 0)) / 2)


def temporal_flickering(frames: np.ndarray) -> float | None:
    """1 - mean absolute difference of successive frames; meant for videos in which nothing moves."""
    if len(frames) < 2:
        return None
    pairs = itertools.pairwise(frames.astype(np.int16))
    return float(1 - np.mean([np.mean(np.abs(after - before)) for before, after in pairs]) / 255)


def motion_smoothness(frames: np.ndarray, settings, params) -> float | None:
    """1 - mean absolute difference of every second frame and the one that AMT makes of its neighbours."""
    if len(frames) < 3:
        return None
    kept = frames[::2]
    middle = frames[1::2][: len(kept) - 1]
    errors = in_batches(
        lambda *x: interpolation_errors(settings, params, *x), [kept[:-1], middle, kept[1:]], rows=PAIRS
    )
    return float(1 - np.mean(errors) / 255)


def dynamic_degree(frames: np.ndarray, fps: float, settings, params) -> float | None:
    """1 if the video moves, else 0, by RAFT's flow at about 8 frames a second."""
    chosen = frames[:: max(1, round(fps / MOVES_PER_SECOND))]
    if len(chosen) < 2:
        return None
    lengths = in_batches(lambda *x: long_vectors(settings, params, *x), [chosen[:-1], chosen[1:]], rows=PAIRS)
    return float(moves(lengths[:, 0], len(chosen), min(frames.shape[1:3])))


def moves(lengths: np.ndarray, count: int, short_side: int) -> bool:
    """Whether enough pairs of `count` frames have long vectors; lengths: of the longest 5 % of each pair."""
    return int(np.sum(lengths > 6 * short_side / 256)) >= round(4 * count / 16)


def is_static(frames: np.ndarray, settings, params) -> bool:
    """VBench's filter for temporal flickering: almost nothing moves, also from the first frame to the last."""
    if len(frames) < 2:
        return False
    first = np.concatenate([frames[:-1], frames[:1], frames[-1:]])
    second = np.concatenate([frames[1:], frames[-1:], frames[:1]])
    lengths = in_batches(lambda *x: long_vectors(settings, params, *x), [first, second], rows=PAIRS)[:, 1]
    return rests(lengths, len(frames), min(frames.shape[1:3]))


def rests(lengths: np.ndarray, count: int, short_side: int) -> bool:
    """Whether few pairs of `count` frames have long vectors.

    Args:
      lengths: of the longest 2 % of each pair, the two closing pairs last.
    """
    threshold, allowed = 3 * short_side / 256, round(2 * count / 16)
    exceeding = int(np.sum(lengths[:-2] > threshold))
    return exceeding <= allowed and bool(np.all(lengths[-2:] <= threshold * allowed * 2))


def aesthetic_quality(frames: np.ndarray, settings, params, head) -> float:
    """The mean score of frames by LAION's linear layer on CLIP's features, over 10."""
    features = in_batches(lambda x: clip_features(settings, params, x), [frames], rows=PICTURES)
    return float(np.mean(features @ head["kernel"] + head["bias"]) / 10)


def imaging_quality(frames: np.ndarray, settings, params) -> float:
    """The mean score of frames by MUSIQ, over 100."""
    return float(np.mean(in_batches(lambda x: musiq_scores(settings, params, x), [frames], rows=PICTURES)) / 100)


def overall_consistency(frames: np.ndarray, tokens: Sequence[int], settings, params) -> float:
    """The cosine of a video and its prompt by ViCLIP.

    Args:
      tokens: of the prompt, its end token last.
    """
    chosen = frames[middle_frames(len(frames), settings.frames)]
    seen = in_batches(lambda x: viclip_features(settings, params, x), [chosen], rows=settings.frames)
    padded = np.zeros((1, settings.text.tokens), np.int32)
    padded[0, : len(tokens)] = tokens
    ends = np.array([len(tokens) - 1], np.int32)
    read = in_batches(lambda *x: viclip_text(settings, params, *x), [padded, ends], rows=1)
    return float(seen[0] @ read[0])


def middle_frames(frames: int, count: int) -> np.ndarray:
    """Indices of the middles of `count` equal parts of a video; a shorter video's last frame is repeated."""
    borders = np.linspace(0, frames, min(count, frames) + 1).astype(int)
    chosen = (borders[:-1] + borders[1:] - 1) // 2
    return np.concatenate([chosen, np.repeat(chosen[-1:], count - len(chosen))])
