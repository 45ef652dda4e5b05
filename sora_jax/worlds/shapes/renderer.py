"""The shapes world: short videos rendered by code, whose captions can be checked word by word.

One or two coloured shapes move over a background and bounce off its edges. Scene `index` of a seed is always the
same. A tenth of all combinations of attributes is held out by a hash, and never trained on.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from sora_jax.config.load import parse_size
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write
from sora_jax.data.media.write import write_clip
from sora_jax.worlds.shapes.captions import STYLES, caption

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (225, 30, 35),
    "orange": (250, 130, 20),
    "yellow": (250, 225, 30),
    "green": (30, 165, 60),
    "blue": (40, 70, 230),
    "purple": (160, 40, 200),
}
SIZES = {"small": 0.10, "large": 0.165}  # radius of a circle of equal area, as a share of the shorter side
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}  # (x, y), y downwards
SPEEDS = {"slow": 0.25, "fast": 0.70}  # shorter sides a second
BACKGROUNDS = {  # colours at the top and at the bottom
    "black": ((16, 16, 16), (16, 16, 16)),
    "grey": ((128, 128, 128), (128, 128, 128)),
    "white": ((240, 240, 240), (240, 240, 240)),
    "blue": ((50, 80, 170), (50, 80, 170)),
    "sky": ((110, 170, 235), (230, 240, 250)),
}
CAMOUFLAGE = frozenset({("blue", "blue"), ("blue", "sky")})  # (colour, background) pairs that are not drawn

_STRAIGHT_SECONDS = 10 / 16  # shortest time before the first bounce
_TWO = 1 / 3  # share of the scenes with two shapes
_LEAD_IN = 1  # key of random draws, different from those of the scenes


@dataclasses.dataclass(frozen=True)
class Thing:
    """A moving shape.

    Args:
      speed: "none" if it is still.
      place: start, (x, y) in [0, 1] of the region where it may start.
    """

    shape: str
    colour: str
    size: str
    motion: str
    speed: str
    place: tuple[float, float] = (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two things over a background.

    Args:
      swapped: whether the first of two things has the lower or right lane.
      wording: seed of the words of the caption.
    """

    things: tuple[Thing, ...]
    background: str
    swapped: bool = False
    wording: int = 0


def is_held_out(thing: Thing, background: str) -> bool:
    """Whether this combination of attributes is one of the tenth that training never sees."""
    name = " ".join((thing.shape, thing.colour, thing.size, thing.motion, thing.speed, background))
    return hashlib.sha256(name.encode()).digest()[0] < 0.1 * 256


def sample_scene(
    seed: int,
    index: int,
    *,
    held_out: bool = False,
    things: int | None = None,
    colours: Sequence[str] = tuple(COLOURS),
    motions: Sequence[str] = tuple(MOTIONS),
) -> Scene:
    """Scene `index` of the world `seed`.

    Args:
      held_out: draw from the held-out combinations only, instead of from the others only.
      things: number of things, 1 or 2; None: drawn.
      colours, motions: to draw from; at least two colours that are visible on every background.
    """
    draw = np.random.default_rng((seed, index))
    background = _pick(draw, BACKGROUNDS)
    count = things or 1 + int(draw.random() < _TWO)
    made: list[Thing] = []
    while len(made) < count:
        motion = _pick(draw, motions)
        thing = Thing(
            shape=_pick(draw, SHAPES),
            colour=_pick(draw, colours),
            size=_pick(draw, SIZES),
            motion=motion,
            speed="none" if motion == "still" else _pick(draw, SPEEDS),
            place=(float(draw.random()), float(draw.random())),
        )
        if (thing.colour, background) in CAMOUFLAGE or is_held_out(thing, background) != held_out:
            continue
        if made and (thing.colour == made[0].colour or not _share_an_axis(thing, made[0])):
            continue
        made.append(thing)
    return Scene(tuple(made), background, bool(draw.integers(2)), int(draw.integers(2**31)))


def _pick(draw, options):
    return list(options)[draw.integers(len(options))]


def _share_an_axis(a, b):
    """Whether two things move along one axis; each then has a lane, and they never meet."""
    (a_x, a_y), (b_x, b_y) = MOTIONS[a.motion], MOTIONS[b.motion]
    return not (a_x and b_y) and not (a_y and b_x)


def render(scene: Scene, *, frames: int, size: tuple[int, int], fps: float = 16.0) -> np.ndarray:
    """The scene as video, [F, H, W, 3] uint8.

    Args:
      frames: F.
      size: (H, W).
      fps: frames a second.
    """
    H, W = size
    top, bottom = (np.array(colour, np.float32) for colour in BACKGROUNDS[scene.background])
    blend = np.linspace(0, 1, H, dtype=np.float32)[:, None]
    canvas = np.broadcast_to(((1 - blend) * top + blend * bottom)[:, None], (H, W, 3))
    video = np.repeat(canvas[None], frames, axis=0)
    rows, columns = np.mgrid[:H, :W].astype(np.float32) + 0.5
    for thing, path in zip(scene.things, trajectories(scene, frames=frames, size=size, fps=fps), strict=True):
        radius = SIZES[thing.size] * min(H, W)
        colour = np.array(COLOURS[thing.colour], np.float32)
        for frame, (x, y) in zip(video, path, strict=True):
            cover = coverage(thing.shape, columns - x, rows - y, radius)[..., None]
            frame += cover * (colour - frame)
    return np.rint(video).astype(np.uint8)


def trajectories(scene: Scene, *, frames: int, size: tuple[int, int], fps: float) -> list[np.ndarray]:
    """Centres of the bounding boxes, (x, y) in pixels, [F, 2] for each thing."""
    H, W = size
    vertical = any(MOTIONS[thing.motion][1] for thing in scene.things)
    times = np.arange(frames) / fps
    paths = []
    for i, thing in enumerate(scene.things):
        low, high = np.zeros(2), np.array([W, H], float)
        if len(scene.things) == 2:  # lanes side by side for vertical motion, one above the other otherwise
            axis, second = (0 if vertical else 1), (i == 1) != scene.swapped
            middle = high[axis] / 2
            low[axis], high[axis] = (middle, high[axis]) if second else (0, middle)
        half = np.array(half_sides(thing.shape, SIZES[thing.size] * min(H, W)))
        room = high - low - 2 * half
        direction = np.array(MOTIONS[thing.motion], float)
        velocity = direction * SPEEDS.get(thing.speed, 0.0) * min(H, W)  # pixels a second
        ahead = np.minimum(np.abs(velocity) * _STRAIGHT_SECONDS, room)  # free of walls at the start
        start = np.array(thing.place) * (room - ahead) + np.where(direction < 0, ahead, 0)
        travelled = start + times[:, None] * velocity
        paths.append(low + half + room - np.abs(room - np.mod(travelled, 2 * room)))
    return paths


def bounces(scene: Scene, *, frames: int, size: tuple[int, int], fps: float) -> list[bool]:
    """Whether each thing bounces off an edge within the video."""
    paths = trajectories(scene, frames=frames, size=size, fps=fps)
    return [bool((np.diff(np.sign(np.diff(path, axis=0)), axis=0) != 0).any()) for path in paths]


def half_sides(shape, radius):
    """(half the width, half the height) of a shape with the area of a circle of this radius."""
    if shape == "circle":
        return radius, radius
    if shape == "square":
        side = np.sqrt(np.pi) * radius
        return side / 2, side / 2
    side = radius * np.sqrt(4 * np.pi / np.sqrt(3))  # an equilateral triangle, tip up
    return side / 2, side * np.sqrt(3) / 4


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Share of each pixel that a shape covers, from the signed distance of its centre to the outline.

    Args:
      x, y: of the pixels' centres from the middle of the shape's bounding box, in pixels.
      radius: of the circle of equal area.
    """
    half_x, half_y = half_sides(shape, radius)
    if shape == "circle":
        distance = np.hypot(x, y) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - half_x
    else:
        slope = np.hypot(2 * half_y, half_x)
        distance = np.maximum(y - half_y, (2 * half_y * np.abs(x) - half_x * (y + half_y)) / slope)
    return np.clip(0.5 - distance, 0, 1)


@dataclasses.dataclass(frozen=True)
class World:
    """A folder of videos of the shapes world; equal worlds have equal videos.

    Args:
      sizes: "WIDTHxHEIGHT" each; sizes and lengths take turns.
      lengths: numbers of frames; 1 is a PNG picture.
      held_out: draw scenes from the held-out combinations only, instead of from the others only.
      things: number in each scene, 1 or 2; None: either.
      colours, motions: to draw from. Two things of similar colours or opposite motions are harder to learn.
      lead_in: a video starts up to this many frames, drawn evenly, after its scene, and has the caption of the
        whole: a window of a longer video. After a bounce, a thing moves against its caption; train on such videos
        with conditioning frames, not from text alone.
      styles: of the captions, from STYLES; the first is the one used for validation.
    """

    seed: int = 0
    sizes: tuple[str, ...] = ("64x64",)
    lengths: tuple[int, ...] = (17,)
    fps: float = 16.0
    held_out: bool = False
    things: int | None = None
    colours: tuple[str, ...] = tuple(COLOURS)
    motions: tuple[str, ...] = tuple(MOTIONS)
    lead_in: int = 0
    styles: tuple[str, ...] = STYLES

    def shapes(self) -> list[tuple[int, int]]:
        """The sizes as (H, W). Raises: InputError for a size that is not WIDTHxHEIGHT."""
        shapes = [parse_size(size, "sizes") for size in self.sizes]
        whole = [shape for shape in shapes if not isinstance(shape, int)]
        if len(whole) < len(shapes):
            raise InputError(f"sizes: the shapes world needs WIDTHxHEIGHT, not {', '.join(self.sizes)}")
        return whole


def write_world(
    folder: str | pathlib.Path,
    count: int,
    world: World = World(),
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write `count` captioned videos and captions.jsonl; files that are there are kept.

    Args:
      progress: called with the number of videos that are complete.
    Raises: InputError if the folder holds another world.
    """
    folder, shapes = as_path(folder), world.shapes()
    _check_folder(folder, world)
    lines = []
    for index in range(count):
        lines.append(_write_video(folder, index, world, shapes[index % len(shapes)]))
        progress(index + 1)
    with atomic_write(folder / "captions.jsonl") as path:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _check_folder(folder, world):
    """Make the folder with its world.json. Raises: InputError if it holds another world."""
    text = json.dumps(dataclasses.asdict(world))
    folder.mkdir(parents=True, exist_ok=True)
    description = folder / "world.json"
    if description.exists() and json.loads(description.read_text()) != json.loads(text):
        raise InputError(f"{folder}: holds another shapes world ({description.name}); choose another folder")
    with atomic_write(description) as path:
        path.write_text(text + "\n")


def _write_video(folder, index, world, size) -> dict[str, str]:
    """Write video `index`, unless it is there; returns its line of captions.jsonl."""
    scene = sample_scene(
        world.seed,
        index,
        held_out=world.held_out,
        things=world.things,
        colours=world.colours,
        motions=world.motions,
    )
    frames = world.lengths[index // len(world.sizes) % len(world.lengths)]
    skipped = int(np.random.default_rng((world.seed, index, _LEAD_IN)).integers(world.lead_in + 1))
    path = folder / f"{index:06d}{'.png' if frames == 1 else '.mp4'}"
    if not path.exists():
        whole = render(scene, frames=skipped + frames, size=size, fps=world.fps)
        write_clip(path, whole[skipped:], fps=world.fps)
    bounced = bounces(scene, frames=skipped + frames, size=size, fps=world.fps)
    keys = ("caption", *(f"{style}_caption" for style in world.styles[1:]))
    captions = [caption(scene, style, moving=frames > 1, bounced=bounced) for style in world.styles]
    return {"video": path.name, **dict(zip(keys, captions, strict=True))}
