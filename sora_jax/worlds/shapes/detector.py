"""The scene of the shapes world that a video shows, read from its pixels by plain arithmetic.

Nothing in it is learned, so that its verdict on a generated video can be checked by hand.
"""

import itertools

import numpy as np
from scipy.ndimage import gaussian_filter

from sora_jax.worlds.shapes.renderer import (
    BACKGROUNDS,
    CAMOUFLAGE,
    COLOURS,
    SHAPES,
    SIZES,
    SPEEDS,
    Scene,
    Thing,
    coverage,
    half_sides,
)

ATTRIBUTES = ("count", "shape", "colour", "size", "motion", "speed", "background")

# Distances are Euclidean in RGB of 0 to 255; any two colours of the world are at least 90 apart.
_NEAR_BACKGROUND = 40.0
_NEAR_COLOUR = 60.0
_UNEXPLAINED = 60.0
_MIN_BACKGROUND = 0.5  # share of all pixels; two large triangles cover a quarter
_MAX_UNEXPLAINED = 0.02  # share of all pixels that are neither background nor thing nor a blend of both
_MIN_OVERLAP = 0.75  # intersection over union of a thing with the best shape
_BLURS = (0, 0.7, 1.0, 1.4)  # pixels; as much as an autoencoder rounds the corners of a small square
_MIN_PRESENT = 0.9  # share of the frames in which a thing must be visible
_MIN_AREA = 0.15  # of a small thing; less of a colour is a blend along an edge
_STRAIGHT_SECONDS = 9 / 16  # shorter than the time before the first bounce
_STILL = 0.1  # shorter sides per second; slower things are still
_MAX_SPEED = 1.2  # shorter sides per second
_MAX_SLANT = 0.4  # the smaller component of a velocity over the larger


def read_scene(video: np.ndarray, *, fps: float = 16.0) -> Scene | None:
    """The scene that a video shows; None if it is not a scene of this world.

    Args:
      video: [F, H, W, 3] uint8.
      fps: frames per second.
    Returns: a scene with its things from left to right and top to bottom; motion and speed of a single frame are
      "none".
    """
    return (read_paths(video, fps=fps) or (None,))[0]


def read_paths(video: np.ndarray, *, fps: float = 16.0) -> tuple[Scene, list[np.ndarray]] | None:
    """(scene, path of each thing) that a video shows; None if it is not a scene of this world.

    A path is the centre of mass in every frame, (x, y) in pixels, [F, 2], NaN where the thing is not visible.
    Arguments are those of `read_scene`.
    """
    pixels = video.astype(np.float32)
    found = _find_background(pixels)
    if found is None:
        return None
    background, canvas = found
    masks = _find_colours(pixels, canvas, background)
    if not 1 <= len(masks) <= 2:
        return None
    things, explained = [], _distance(pixels, canvas) < _UNEXPLAINED
    for colour, near in masks.items():
        alpha = _opacity(pixels, canvas, COLOURS[colour], near)
        blend = canvas + alpha[..., None] * (np.array(COLOURS[colour], np.float32) - canvas)
        explained |= (alpha > 0) & (_distance(pixels, blend) < _UNEXPLAINED)
        read = _read_thing(alpha, colour, fps)
        if read is None:
            return None
        things.append(read)
    if 1 - explained.mean() > _MAX_UNEXPLAINED:
        return None
    things.sort(key=lambda pair: tuple(np.nanmedian(pair[1], axis=0).tolist()))
    return Scene(tuple(thing for thing, _ in things), background), [centres for _, centres in things]


def compare(scene: Scene, read: Scene | None) -> dict[str, bool]:
    """For each of ATTRIBUTES, whether the scene that was read agrees; with two things, whether both do.

    Things are matched in the order with the most agreement. None agrees in nothing. Motion and speed of a picture
    are left out.
    """
    if read is None:
        return dict.fromkeys(ATTRIBUTES, False)
    fields = ["shape", "colour", "size"]
    if all(thing.motion != "none" for thing in read.things):
        fields += ["motion", "speed"]
    agree = {"count": len(scene.things) == len(read.things), "background": scene.background == read.background}
    best = dict.fromkeys(fields, False)
    if agree["count"]:
        for order in itertools.permutations(read.things):
            pairs = list(zip(scene.things, order, strict=True))
            matched = {field: all(getattr(a, field) == getattr(b, field) for a, b in pairs) for field in fields}
            best = max(best, matched, key=lambda m: sum(m.values()))
    return agree | best


def _distance(pixels, colour):
    apart = pixels - colour
    return np.sqrt(np.einsum("...c,...c->...", apart, apart))


def _find_background(pixels):
    """(name, colours [H, 1, 3]) of the background that most pixels are near to; None if too few are."""
    best, where = 0.0, None
    blend = np.linspace(0, 1, pixels.shape[1], dtype=np.float32)[:, None]
    for name, (top, bottom) in BACKGROUNDS.items():
        canvas = ((1 - blend) * np.array(top, np.float32) + blend * np.array(bottom, np.float32))[:, None]
        share = (_distance(pixels, canvas) < _NEAR_BACKGROUND).mean()
        if share > best:
            best, where = share, (name, canvas)
    return where if best >= _MIN_BACKGROUND else None


def _find_colours(pixels, canvas, background):
    """Colour -> its pixels, [F, H, W] bool, of the colours that are visible in at least half of the frames."""
    names = [name for name in COLOURS if (name, background) not in CAMOUFLAGE]
    distances = np.stack(
        [_distance(pixels, canvas)] + [_distance(pixels, np.array(COLOURS[name], np.float32)) for name in names]
    )
    nearest = distances.argmin(axis=0)
    area = np.pi * (SIZES["small"] * min(pixels.shape[1:3])) ** 2
    masks = {}
    for i, name in enumerate(names, start=1):
        near = (nearest == i) & (distances[i] < _NEAR_COLOUR)
        areas = near.sum(axis=(1, 2)) / area
        if (areas >= _MIN_AREA).mean() >= 0.5:  # `_read_thing` rejects a part of a thing
            masks[name] = near
    return masks


def _opacity(pixels, canvas, colour, near):
    """Share of each pixel that a thing covers, [F, H, W] in [0, 1], within a margin around its core."""
    towards = np.array(colour, np.float32) - canvas
    alpha = ((pixels - canvas) * towards).sum(-1) / (towards**2).sum(-1)
    grown = near
    for _ in range(2):  # soft edges are two pixels wide after a lossy codec
        padded = np.pad(grown, ((0, 0), (1, 1), (1, 1)))
        H, W = near.shape[1:]
        grown = np.logical_or.reduce([padded[:, y : y + H, x : x + W] for y in range(3) for x in range(3)])
    return np.where(grown, np.clip(alpha, 0, 1), 0)


def _read_thing(alpha, colour, fps):
    """(thing, its centres [F, 2]); None if its shape, size or motion is not of this world."""
    H, W = alpha.shape[1:]
    side = min(H, W)
    mass = alpha.sum(axis=(1, 2))
    shown = mass > 0
    if shown.mean() < _MIN_PRESENT:
        return None
    rows, columns = np.mgrid[:H, :W].astype(np.float32) + 0.5
    mass = np.where(shown, mass, np.nan)
    centres = np.stack([(alpha * axis).sum(axis=(1, 2)) / mass for axis in (columns, rows)], axis=1)
    size = _nearest(np.sqrt(np.nanmedian(mass) / np.pi) / side, SIZES)
    shape = _find_shape(alpha[shown], centres[shown], np.sqrt(mass[shown] / np.pi))
    motion = _find_motion(centres, side, fps)
    if None in (size, shape, motion):
        return None
    return Thing(shape, colour, size, *motion), centres


def _nearest(value, options):
    """The option with the nearest value by ratio; None if it is off by more than a factor of 1.5."""
    name = min(options, key=lambda name: abs(np.log(value / options[name])))
    return name if abs(np.log(value / options[name])) < np.log(1.5) else None


def _find_shape(alpha, centres, radii):
    """The shape that overlaps best with the opacities, drawn in each frame with its centre and area.

    Shapes are blurred as fits best: a small square with rounded corners is otherwise nearly a circle.
    """
    H, W = alpha.shape[1:]
    rows, columns = np.mgrid[:H, :W].astype(np.float32) + 0.5
    best, name = _MIN_OVERLAP, None
    chosen = np.linspace(0, len(alpha) - 1, min(len(alpha), 9)).astype(int)
    for shape in SHAPES:
        overlaps = []
        for i in chosen:
            # The centre of mass of a triangle is a third of its half height below the middle of its box.
            x, y = columns - centres[i, 0], rows - centres[i, 1]
            y = y + half_sides(shape, radii[i])[1] / 3 if shape == "triangle" else y
            drawn = coverage(shape, x, y, radii[i])
            overlaps.append([_overlap(gaussian_filter(drawn, blur), alpha[i]) for blur in _BLURS])
        overlap = np.median(overlaps, axis=0).max()
        if overlap > best:
            best, name = overlap, shape
    return name


def _overlap(a, b):
    return np.minimum(a, b).sum() / np.maximum(a, b).sum()


def _find_motion(centres, side, fps):
    """(motion, speed) of centres in pixels, [F, 2], before the first bounce; None if it is not of this world."""
    if len(centres) == 1:
        return "none", "none"
    first = centres[: max(1, int(_STRAIGHT_SECONDS * fps)) + 1]
    velocity = np.nanmedian(np.diff(first, axis=0), axis=0) * fps / side  # shorter sides per second
    if not np.isfinite(velocity).all():
        return None
    axis = int(np.abs(velocity).argmax())
    speed = abs(velocity[axis])
    if speed < _STILL:
        return "still", "none"
    if speed > _MAX_SPEED or abs(velocity[1 - axis]) > _MAX_SLANT * speed:
        return None
    motion = (("left", "right"), ("up", "down"))[axis][int(velocity[axis] > 0)]
    slow, fast = SPEEDS["slow"], SPEEDS["fast"]
    return motion, "slow" if speed < np.sqrt(slow * fast) else "fast"
