"""Write sets of captioned videos of the emoji world, for `prepare`."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.storage import atomic_write
from sora_jax.data.media.write import write_clip
from sora_jax.worlds.emoji.animations import FPS, FRAMES, over_colour
from sora_jax.worlds.emoji.captions import BACKGROUNDS, captions
from sora_jax.worlds.emoji.subjects import Emoji, all_emoji


@dataclasses.dataclass(frozen=True)
class VideoSet:
    """A set of videos.

    frames: in a video; 1 is a picture.
    backgrounds: number of backgrounds that each emoji is put on, drawn by its code.
    starts: the frames of the loop that its videos begin with.
    held_out: whether it has the emoji that are held out of training, or the others.
    """

    frames: int = FRAMES
    backgrounds: int = len(BACKGROUNDS)
    starts: tuple[int, ...] = (0,)
    held_out: bool = False


SETS = {
    "autoencoder": VideoSet(backgrounds=2),
    "videos": VideoSet(backgrounds=6),
    "pictures": VideoSet(frames=1),
    "short": VideoSet(frames=5, backgrounds=4, starts=(0,)),
    "held_out": VideoSet(backgrounds=1, held_out=True),
}


def write_set(
    name: str,
    animations: pathlib.Path,
    folder: pathlib.Path,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Write the videos of a set and captions.jsonl into `folder`; videos that are there are kept.

    Args:
      name: of SETS.
      animations: folder of NAME.npy, as `unpack` writes it; emoji that it lacks are left out.
      progress: called with the numbers of emoji that are done and of all.
    Returns: the number of videos.
    Raises: InputError if there is no such set, or no animation for it.
    """
    if name not in SETS:
        raise InputError(f"{name}: no such set of the emoji world, {did_you_mean(name, SETS)}")
    made, lines = SETS[name], []
    chosen = [e for e in all_emoji().values() if e.held_out == made.held_out and _path(animations, e).exists()]
    if not chosen:
        raise InputError(f"{animations}: has no animations of emoji; make them with `sora-jax data emoji`")
    for done, emoji in enumerate(chosen, start=1):
        lines += _write_emoji(made, emoji, animations, folder)
        progress(done, len(chosen))
    with atomic_write(folder / "captions.jsonl") as path:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(lines)


def backgrounds_of(emoji: Emoji, count: int) -> list[str]:
    """Names of different backgrounds, drawn by the emoji's code."""
    return sorted(BACKGROUNDS, key=lambda name: hashlib.sha256(f"{emoji.code} {name}".encode()).digest())[:count]


def read_loop(animations: pathlib.Path, emoji: Emoji) -> np.ndarray:
    """The frames of an animation, as `animations.read_animation` returns them."""
    return np.load(_path(animations, emoji))


def _path(animations, emoji):
    return animations / f"{emoji.code}.npy"


def _write_emoji(made: VideoSet, emoji: Emoji, animations, folder) -> Iterator[dict[str, str]]:
    """Write an emoji's videos; yields their lines of captions.jsonl."""
    loop = None
    for background in backgrounds_of(emoji, made.backgrounds):
        for start in made.starts:
            suffix = "png" if made.frames == 1 else "mp4"
            path = folder / f"{emoji.code}_{background}_{start:02}.{suffix}"
            if not path.exists():
                loop = read_loop(animations, emoji) if loop is None else loop
                frames = np.take(loop, range(start, start + made.frames), axis=0, mode="wrap")
                write_clip(path, over_colour(frames, BACKGROUNDS[background]), fps=FPS)
            first, *others = captions(emoji, background)
            keys = (f"caption_{n}_caption" for n in range(len(others)))
            yield {"video": path.name, "caption": first, **dict(zip(keys, others, strict=True))}
