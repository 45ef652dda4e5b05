"""Which animated emoji a video shows, on which background, and how it moves, read from the pixels.

The measures are defined in docs/explanation/emoji_measures.md.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from sora_jax.core.errors import InputError
from sora_jax.worlds.emoji.animations import LOOP, SIZE
from sora_jax.worlds.emoji.captions import BACKGROUNDS
from sora_jax.worlds.emoji.subjects import all_emoji

SIDE = 32  # pixels a side that are compared
EVERY = 3  # of so many frames of a loop one is compared
BORDER = 2  # pixels at the edges, whose median is the background
FARTHEST = 38.0  # from a background's colour to still be it: half the distance between the closest two


class Gallery:
    """True animations to compare with.

    Args:
      animations: folder of NAME.npy, as `unpack` writes it.
      codes: of the emoji; default: all.
    Raises: InputError if some are absent.
    """

    def __init__(self, animations: pathlib.Path, codes: Sequence[str] = ()):
        self.codes = list(codes or all_emoji())
        self._folder = animations
        absent = [code for code in self.codes if not (animations / f"{code}.npy").exists()]
        if absent:
            raise InputError(
                f"{animations}: lacks {len(absent)} of {len(self.codes)} animations, such as {absent[0]}; make "
                f"them with `sora-jax data emoji`, or name their folder with --videos"
            )
        self._small = np.stack([_shrunk(self.loop(code)[::EVERY]) for code in self.codes]).astype(np.uint8)
        self._composed: tuple = ()

    def loop(self, code: str) -> np.ndarray:
        """A true animation, colours multiplied by opacity, uint8 [LOOP, SIZE, SIZE, 4]."""
        return np.load(self._folder / f"{code}.npy")

    def distances(self, loop: np.ndarray) -> np.ndarray:
        """Mean squared difference of a loop to each animation on its own background, at the best time shift.

        Args:
          loop: uint8 [LOOP, H, W, 3], H and W multiples of SIDE.
        Returns: float [codes], in squared levels of 0 to 255.
        """
        references, squares = self._over(tuple(border_colour(loop)))
        frames = _shrunk(loop)
        shifts = np.stack([frames[(np.arange(0, LOOP, EVERY) + s) % LOOP].ravel() for s in range(LOOP)])
        found = squares[:, None] - 2 * references @ shifts.T + np.square(shifts).sum(1)
        return np.maximum(found.min(axis=1), 0) / shifts.shape[1]

    def _over(self, colour):
        """(the animations on a plain colour, [codes, elements] float32; the sums of their squares), kept."""
        if not self._composed or self._composed[0] != colour:
            made = np.empty((len(self.codes), self._small[0, ..., :3].size), np.float32)
            for row, small in zip(made, self._small, strict=True):
                row[:] = _over_colour(small.astype(np.float32), colour).ravel()
            self._composed = (colour, made, np.square(made).sum(1))
        return self._composed[1:]

    def measure(self, code: str, background: str, video: np.ndarray) -> dict:
        """What a video [F, H, W, 3] uint8 of LOOP frames or more is worth.

        Args:
          code, background: asked for.
        Returns: {"identity": bool, "nearest": code; "tone": bool, None for an emoji without; "background": bool;
          "motion": correlation; "seam": ratio; "smooth": bool}.
        """
        emoji, loop = all_emoji()[code], video[:LOOP]
        found = self.distances(loop)
        distance = dict(zip(self.codes, found, strict=True))
        values: dict = {"nearest": self.codes[int(found.argmin())], "tone": None}
        values["identity"] = bool(distance[code] <= found.min())
        if emoji.tone:
            tones = [c for c in self.codes if all_emoji()[c].subject == emoji.subject and all_emoji()[c].tone]
            values["tone"] = bool(distance[code] <= min(distance[c] for c in tones))
        values["background"] = background_of(loop) == background
        truth = _over_colour(self.loop(code).astype(np.float32), border_colour(loop))
        seam, others = seam_and_others(loop)
        values |= {"motion": motion_correlation(loop, truth), "seam": seam / max(float(np.mean(others)), 1e-6)}
        return values | {"smooth": bool(seam <= others.max())}


def border_colour(video: np.ndarray) -> np.ndarray:
    """The median colour of the pixels at the edges, float [3]."""
    edge = np.ones(video.shape[1:3], bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    return np.median(video[:, edge].reshape(-1, 3), axis=0)


def background_of(video: np.ndarray) -> str | None:
    """The name of a video's background; None if its edges have no colour of BACKGROUNDS."""
    colour = border_colour(video)
    distance = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in BACKGROUNDS.items()}
    name = min(distance, key=distance.get)
    return name if distance[name] < FARTHEST else None


def motion_correlation(loop: np.ndarray, truth: np.ndarray) -> float:
    """Pearson's correlation of the frame differences of two loops [LOOP, H, W, 3], at the best time shift."""
    a, b = (_differences(_shrunk(x)) for x in (loop, truth))
    scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
    best = max(float(np.vdot(np.roll(a, shift, axis=0), b)) for shift in range(LOOP))
    return best / max(float(scale), 1e-6)


def _differences(frames):
    """Of each frame to the next one around the loop; their mean is 0 at each pixel."""
    return np.roll(frames, -1, axis=0) - frames


def seam_and_others(loop: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean absolute change from the last frame to the first, and from each other frame to its next."""
    change = np.abs(_differences(loop.astype(np.float32))).mean(axis=(1, 2, 3))
    return float(change[-1]), change[:-1]


def _over_colour(animation, colour):
    return animation[..., :3] + (1 - animation[..., 3:] / 255) * np.asarray(colour, np.float32)


def _shrunk(video):
    """Means over squares of pixels, float32 [F, SIDE, SIDE, C]."""
    F, H, W, C = video.shape
    if H % SIDE or W % SIDE:
        raise InputError(f"a video of {W}x{H}: a multiple of {SIDE}x{SIDE} is needed, for example {SIZE}x{SIZE}")
    return video.astype(np.float32).reshape(F, SIDE, H // SIDE, SIDE, W // SIDE, C).mean((2, 4))
