"""Clips to sample, and how they lie in rows: one in each row, or packed, whatever their sizes."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import SampleSettings
from sora_jax.core.mesh import num_shards, spec
from sora_jax.core.patches import PatchBatch, grid_positions, patch_grid, patchify
from sora_jax.core.random_keys import Purpose, purpose_key, seed_key
from sora_jax.diffusion.noise import ClipNoise
from sora_jax.generate.generator import Generator, latent_shape
from sora_jax.generate.inputs.conditioning_images import ConditioningFrames
from sora_jax.generate.sampling.schedule import DenoisingSchedule, denoising_schedule

RUN_PATCHES = 1152  # of a run on each part of the mesh; more leave a CPU's caches (docs/notes/sampling_cost.md)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Which noise the videos of a run begin with: prompt n of a run has the seed's noise number first + n.

    seed: from 0 to 2^64 - 1.
    window: of a long video; each has noise of its own.
    """

    seed: int
    first: int = 0
    window: int = 0

    @property
    def key(self) -> jax.Array:
        """The key of a window that is sampled at once; the first window's is the seed's own."""
        return self.rolling_key if self.window else seed_key(self.seed)

    @property
    def rolling_key(self) -> jax.Array:
        """The key of a rolling window."""
        return purpose_key(seed_key(self.seed), Purpose.WINDOW, self.window)


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A video to sample.

    noise: its own; `first` is the number of its noise.
    conditioning: the latents that it is given; a model with channels for images needs it.
    loop: latent frame 1 follows the last one; latent frame 0 is unused.
    """

    prompt: str
    settings: SampleSettings
    noise: Noise
    negative_prompt: str = ""
    conditioning: ConditioningFrames | None = None
    loop: bool = False

    @property
    def strength(self) -> float:
        """Share of the solver's steps that are run."""
        return self.conditioning.strength if self.conditioning else 1.0

    def grid(self, generator: Generator) -> tuple[int, int, int]:
        """Patches along (frames, rows, columns)."""
        return patch_grid(latent_shape(generator.settings, self.settings), generator.settings.transformer.patch)

    def schedule(self, generator: Generator) -> DenoisingSchedule:
        return denoising_schedule(generator, self.settings, strength=self.strength)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the clips of one run of the solver lie.

    rows: numbers of the clips of each row, in order; where each row holds one clip, the last one may be repeated.
    length: patches of a row.
    slots: maximum number of clips in a row.
    longest: patches of the longest clip.
    """

    rows: tuple[tuple[int, ...], ...]
    length: int
    slots: int = 1
    longest: int = 0

    @property
    def packed(self) -> bool:
        """Whether a row may hold several clips, or padding."""
        return self.slots > 1

    def places(self, sizes: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """(clip, row, slot, first patch) of every clip, from the clips' numbers of patches."""
        found = []
        for r, row in enumerate(self.rows):
            starts = np.cumsum([0, *(sizes[n] for n in row)])
            found += [(n, r, slot, int(starts[slot])) for slot, n in enumerate(row)]
        return found


def one_a_row(count: int, patches: int) -> Layout:
    """So many clips of one size, each in a row of its own."""
    return Layout(tuple((n,) for n in range(count)), patches)


def pack(sizes: Sequence[int], parts: int, *, alike: bool, multiple: int = 1) -> list[Layout]:
    """Layouts that hold clips of these numbers of patches, all of one compiled program.

    A row is as long as the longest clip. The largest clips come first, each into the first row with room, so that
    clips of like size share a run.

    Args:
      parts: of the mesh that hold whole rows.
      alike: the clips have one size and all settings in common, so that each row holds one.
      multiple: the length of a row that holds several clips is a multiple of it.
    """
    longest = max(sizes)
    length, room = (longest, 1) if alike else (-(-longest // multiple) * multiple, len(sizes))
    rows: list[list[int]] = []
    for n in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        fits = (row for row in rows if len(row) < room and sum(sizes[m] for m in row) + sizes[n] <= length)
        row = next(fits, None)
        if row is None:
            rows.append(row := [])
        row.append(n)
    slots = 1 if alike else 2 ** math.ceil(math.log2(max(2, *map(len, rows))))
    at_once = parts * max(1, RUN_PATCHES // length)
    runs = -(-len(rows) // at_once)
    B = parts * math.ceil(len(rows) / runs / parts)
    B += parts * (parts < B and B // parts % 2)  # even numbers: fewer sizes of programs
    rows += (rows[-1:] if alike else [[]]) * (runs * B - len(rows))
    groups = [rows[first : first + B] for first in range(0, len(rows), B)]
    return [Layout(tuple(map(tuple, group)), length, slots, longest) for group in groups]


def sequence_of(generator: Generator, clip: Clip) -> PatchBatch:
    """A clip's patches with the latents that it is given, its text left out; arrays of numpy, [N, ...]."""
    transformer, given = generator.settings.transformer, clip.conditioning or ConditioningFrames()
    grid = clip.grid(generator)
    N = math.prod(grid)
    patches = np.zeros((N, transformer.channels * math.prod(transformer.patch)), np.float32)
    if given.latents is not None:
        patches = patchify(given.latents, transformer.patch).astype(np.float32)
    mask = np.zeros(N, bool) if given.conditioning_mask is None else given.conditioning_mask.reshape(-1)
    sequence = PatchBatch(
        patches=patches,
        positions=grid_positions(grid),
        segment_ids=np.ones(N, np.int32),
        conditioning_mask=mask,
        text=None,
        text_segment_ids=None,
    )
    if given.condition is not None:
        sequence = sequence.replace(condition=patchify(given.condition, transformer.patch))
    if given.image is not None:
        sequence = sequence.replace(image=given.image, image_segment_ids=np.ones(len(given.image), np.int32))
    return sequence


def make_batch(generator: Generator, clips: Sequence[Clip], layout: Layout) -> tuple[PatchBatch, bool]:
    """Rows of the clips' patches and text, on the mesh.

    Returns: (the batch, with two rows of text for each row of patches, as `begin` takes it; whether the two halves
      of guidance lie on parts of the mesh of their own).
    """
    sequences = [sequence_of(generator, clip) for clip in clips]
    sizes = [len(one.positions) for one in sequences]
    B, S, places = len(layout.rows), generator.settings.text.max_tokens, layout.places(sizes)

    def rows_of(name: str, length: int):
        """The arrays of this name, each at its clip's place in a row."""
        first = getattr(sequences[0], name)
        if first is None:
            return None
        out = np.zeros((B, length, *first.shape[1:]), first.dtype)
        for n, row, slot, start in places:
            array = getattr(sequences[n], name)
            start = slot * len(array) if name.startswith("image") else start
            scale = slot + 1 if name.endswith("segment_ids") else 1
            out[row, start : start + len(array)] = array * scale if scale > 1 else array
        return out

    fields = ("patches", "positions", "segment_ids", "conditioning_mask", "condition")
    images = 0 if sequences[0].image is None else layout.slots * len(sequences[0].image)
    text = np.zeros((2 * B, layout.slots * S), np.int32)
    text_segment_ids = np.zeros_like(text)
    for n, row, slot, _ in places:
        both = tokenize(generator, [clips[n].prompt, clips[n].negative_prompt])
        span = slice(slot * S, (slot + 1) * S)
        text[2 * row : 2 * row + 2, span], text_segment_ids[2 * row : 2 * row + 2, span] = both
        text_segment_ids[2 * row : 2 * row + 2, span] *= slot + 1
    batch = PatchBatch(
        **{name: rows_of(name, layout.length) for name in fields},
        **{name: rows_of(name, images) for name in ("image", "image_segment_ids")},
        text=text,
        text_segment_ids=text_segment_ids,
    )
    # Fewer rows than parts of the mesh: every part holds all of them, and one half of each pair.
    halves_apart = B % num_shards("batch", jax.sharding.get_mesh().shape) != 0

    def put(x):
        rows = "." if halves_apart and len(x) == B else "batch"
        return jax.device_put(x, spec(rows + " ." * (x.ndim - 1)))

    return jax.tree.map(put, batch), halves_apart


def noise_of(
    clips: Sequence[Clip], layout: Layout, sizes: Sequence[int], key_of: Callable = lambda noise: noise.key
) -> ClipNoise:
    """The clips' noise in their rows.

    Args:
      sizes: patches of each clip.
      key_of: from a clip's Noise to the key of its window.
    """
    keys = np.zeros((len(layout.rows), layout.slots, 2), np.uint32)
    places = np.zeros((len(layout.rows), layout.length), np.int32)
    for n, row, slot, start in layout.places(sizes):
        noise = clips[n].noise
        keys[row, slot] = jax.random.key_data(jax.random.fold_in(key_of(noise), noise.first))
        places[row, start : start + sizes[n]] = slot * layout.longest + np.arange(sizes[n])
    if not layout.packed:
        return ClipNoise(jnp.asarray(keys))
    return ClipNoise(jnp.asarray(keys), jnp.asarray(places), layout.longest)


def of_patches(values: Sequence[np.ndarray] | np.ndarray, layout: Layout, sizes: Sequence[int]) -> np.ndarray:
    """Values of each clip, [T], for each patch, [T, B, N, 1] float32; padding has the first clip's."""
    out = np.empty((len(values[0]), len(layout.rows), layout.length, 1), np.float32)
    out[:] = np.reshape(values[0], (-1, 1, 1, 1))
    for n, row, _, start in layout.places(sizes):
        out[:, row, start : start + sizes[n], 0] = np.asarray(values[n])[:, None]
    return out


def tokenize(generator: Generator, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segment ids) of prompts, both [B, S] int32; tokens beyond the model's limit are cut."""
    limit = generator.settings.text.max_tokens
    tokens = np.zeros((len(prompts), limit), np.int32)
    segment_ids = np.zeros((len(prompts), limit), np.int32)
    for row, prompt in enumerate(prompts):
        ids = generator.tokenizer.encode(prompt, limit)
        tokens[row, : len(ids)] = ids
        segment_ids[row, : limit if generator.settings.text.padded else len(ids)] = 1
    return tokens, segment_ids
