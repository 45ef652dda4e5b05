"""A refiner that is ready to use: the latents of a window of frames, denoised in overlapping tiles."""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.config.load import parse_size
from sora_jax.config.schema import REFINE, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import num_shards, spec
from sora_jax.core.patches import PatchBatch, grid_positions, patchify, unpatchify
from sora_jax.core.random_keys import Purpose, purpose_key, seed_key
from sora_jax.diffusion.conditioning import refiner_condition
from sora_jax.diffusion.flow import quantize_time, time_table
from sora_jax.diffusion.solvers import ancestral, time_grid
from sora_jax.generate.generator import Generator, load_model_of, read_run
from sora_jax.generate.sampling.clips import tokenize
from sora_jax.generate.sampling.pipeline import SOLVERS
from sora_jax.models.autoencoder.streaming import fade, spans
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel

MAX_TOKENS = 16_384  # patches on each part of the mesh at once; more tiles go one group after another


@dataclasses.dataclass(frozen=True)
class Refiner:
    """A trained model, and how it refines.

    generator: a refiner, or a model without channels beside the noise, which then edits what it is given (SDEdit).
    noise: of the condition, in [0, 1].
    time: of the first step, in (0, 1].
    tile: (height, width) of a tile in pixels; None: as large as the crops that it was trained on.
    """

    generator: Generator
    noise: float
    time: float
    tile: tuple[int, int] | None = None

    @property
    def settings(self) -> Settings:
        return self.generator.settings

    @property
    def frames(self) -> int:
        """Frames that it sees at once."""
        return self.settings.sample.frames

    @property
    def cell(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        side, (_, rows, columns) = self.settings.autoencoder.spatial_stride, self.settings.transformer.patch
        return side * rows, side * columns

    def tile_cells(self) -> tuple[int, int]:
        """(rows, columns) of patches of a tile."""
        tile = self.tile or parse_size(self.settings.data.crop_size, "config.data.crop_size")
        rows, columns = (max(1, side // cell) for side, cell in zip(tile, self.cell, strict=True))
        return rows, columns


def load_refiner(workdir: pathlib.Path, *, dtype: str | None = None) -> Refiner:
    """The refiner in a workdir or a release, on the current mesh. Raises: InputError as `read_refiner` does."""
    folder, step, settings = read_refiner(workdir)
    generator = load_model_of(workdir, folder, step, settings, dtype=dtype)
    return Refiner(generator, settings.refine.sample_noise, settings.flow.time_max)


def read_refiner(workdir: pathlib.Path) -> tuple[pathlib.Path, int, Settings]:
    """(folder of a refiner's checkpoints, its newest step, its settings).

    Raises: InputError if there is none, or it is another model.
    """
    folder, step, settings = read_run(workdir, refiner=True)
    if settings.objective != REFINE:
        raise InputError(
            f"{workdir}: is no refiner, but was trained with config.objective={settings.objective}; "
            f"configs/refiner_shapes.py trains one"
        )
    if settings.transformer.patch[0] > 1:
        raise InputError(f"{workdir}: its patches span {settings.transformer.patch[0]} latent frames, not one")
    return folder, step, settings


@dataclasses.dataclass(frozen=True)
class Window:
    """The latents of a window of frames.

    low: of the input at the output's size, [f, h, w, C].
    trust: in each frame of a latent, [f, stride].
    known: refined latents that begin the window, [c, h, w, C].
    count: latents before the end of the video; what follows is padding.
    number: of the window; each has noise of its own.
    """

    low: np.ndarray
    trust: np.ndarray
    known: np.ndarray
    count: int
    number: int


class WindowRefiner:
    """Refines windows, all with one prompt and one compiled program.

    Args:
      prompt: "": none.
      seed: of the noise.
    """

    def __init__(self, refiner: Refiner, prompt: str = "", seed: int = 0):
        self.refiner, self._key = refiner, seed_key(seed)
        settings, generator = refiner.settings, refiner.generator
        sample = settings.sample
        if SOLVERS[sample.solver] is ancestral:
            raise InputError(
                "config.sample.solver: a refiner adds no noise in its steps; euler, heun, dpm or unipc"
            )
        self._solver = SOLVERS[sample.solver]
        # Spaced from the first time to 0; a shift moves them within this range.
        grid = time_grid(sample.steps, sample.shift or 1.0)
        self._times = np.asarray(grid, np.float32) * np.float32(refiner.time)
        # A row for each part of the mesh, as the model splits them.
        tokens, ids = tokenize(generator, [prompt] * num_shards("batch", jax.sharding.get_mesh().shape))
        self._text = embed(settings, generator.params, placed(tokens), placed(ids))
        self._text_ids = ids[:1]

    @property
    def steps(self) -> int:
        """Steps of a window."""
        return len(self._times) - 1

    def refine(self, window: Window) -> np.ndarray:
        """The window's latents, refined: [f, h, w, C] float32; known ones come back unchanged."""
        shape, c = window.low.shape, len(window.known)
        key = purpose_key(self._key, Purpose.WINDOW, window.number)
        noise = np.asarray(jax.random.normal(key, shape))
        tiles = Tiles(self.refiner, window, self._condition(window), self._text, self._text_ids)
        x = (1 - self.refiner.time) * window.low + np.float32(self.refiner.time) * noise
        held = self.refiner.settings.masks.noise
        x[:c] = (1 - held) * window.known + np.float32(held) * noise[:c]
        frozen = np.arange(len(x)).reshape(1, -1, 1, 1, 1) < c

        def velocity(x, t):
            return jnp.where(frozen, 0.0, (x - tiles.data(np.asarray(x[0]), float(t))) / t)

        first = x[None]
        state = self._solver.start(jnp.asarray(first), None)
        for i in range(self.steps):
            moved, *rest = self._solver.step(velocity, state, self._times, i)
            state = jnp.where(frozen, first, moved), *rest
        made = np.array(state[0][0])
        made[:c] = window.known
        return made

    def _condition(self, window):
        """The channels beside the noise, [f, h, w, stride + C]; None for a model without them."""
        if not self.refiner.settings.transformer.condition_channels:
            return None
        f, h, w, C = window.low.shape
        key = purpose_key(self._key, Purpose.CONDITION_NOISE, window.number)
        flat = (1, f * h * w, C)
        added = np.asarray(jax.random.normal(key, window.low.shape)).reshape(flat)
        trust = np.repeat(window.trust, h * w, axis=0)[None]
        made = refiner_condition(window.low.reshape(flat), trust, added, np.float32(self.refiner.noise), 1)
        return np.asarray(made).reshape(f, h, w, -1)


class Tiles:
    """The overlapping tiles of a window, rows of one batch; predicted data are blended where they overlap.

    Source: Bar-Tal et al. 2023 (arXiv 2302.08113), MultiDiffusion.

    Args:
      condition: [f, h, w, P_c] or None.
      text, text_ids: embedded, a row for each part of the mesh, [parts, S, E], and [1, S].
    """

    def __init__(self, refiner: Refiner, window: Window, condition, text, text_ids):
        self._settings, self._params = refiner.settings, refiner.generator.params
        self._patch = self._settings.transformer.patch
        f, h, w, _ = window.low.shape
        _, p_h, p_w = self._patch
        self._sides = h // p_h, w // p_w
        along = [spans(side, tile) for side, tile in zip(self._sides, refiner.tile_cells(), strict=True)]
        self._places = [(rows, columns) for rows in along[0] for columns in along[1]]
        rows, columns = self._places[0]
        self._grid = f, rows.stop - rows.start, columns.stop - columns.start
        N, parts = math.prod(self._grid), num_shards("batch", jax.sharding.get_mesh().shape)
        rows_at_once = min(-(-len(self._places) // parts), max(1, MAX_TOKENS // N)) * parts
        starts = range(0, len(self._places), rows_at_once)
        self._groups = [self._places[start : start + rows_at_once] for start in starts]
        positions = np.broadcast_to(grid_positions(self._grid), (rows_at_once, N, 3))
        # Patches beyond the end of a video, and rows beyond the last tile, are padding.
        there = np.repeat(np.arange(f) < window.count, N // f)
        given = np.repeat(np.arange(f) < len(window.known), N // f)
        batches = []
        for group in self._groups:
            used = np.arange(rows_at_once)[:, None] < len(group)
            batches.append(
                PatchBatch(
                    patches=None,
                    positions=positions,
                    segment_ids=(used & there).astype(np.int32),
                    conditioning_mask=np.broadcast_to(given, (rows_at_once, N)),
                    text=None,
                    text_segment_ids=np.repeat(text_ids, rows_at_once, axis=0),
                    condition=None if condition is None else self._cut(condition, group, rows_at_once),
                )
            )
        text = jnp.repeat(text, rows_at_once // parts, axis=0, out_sharding=spec("batch tokens ."))
        self._batches = [placed(batch).replace(text=text) for batch in batches]

    def _latents(self, place):
        """The slices of a tile in latents."""
        return tuple(slice(span.start * p, span.stop * p) for span, p in zip(place, self._patch[1:], strict=True))

    def _cut(self, whole, group, count):
        """Patches of the tiles of a group, [count, N, P]; zeros after the last one."""
        tiles = np.stack([whole[:, *self._latents(place)] for place in group])
        return np.pad(patchify(tiles, self._patch), ((0, count - len(group)), (0, 0), (0, 0))).astype(np.float32)

    def data(self, x: np.ndarray, t: float) -> np.ndarray:
        """The data predicted for noisy latents [f, h, w, C] at time t."""
        total, weight = np.zeros(x.shape, np.float32), np.zeros((1, *x.shape[1:3], 1), np.float32)
        _, *sizes = self._patch
        for group, batch in zip(self._groups, self._batches, strict=True):
            noisy = placed(self._cut(x, group, len(batch.segment_ids)))
            made = predict_data(self._settings, self._params, batch, noisy, jnp.float32(t))
            made = unpatchify(multihost_utils.process_allgather(made, tiled=True), self._grid, self._patch)
            for place, tile in zip(group, made, strict=False):
                rows, columns = (
                    fade(span, side, size) for span, side, size in zip(place, self._sides, sizes, strict=True)
                )
                share = rows[:, None, None] * columns[:, None]
                total[:, *self._latents(place)] += share * tile
                weight[:, *self._latents(place)] += share
        return total / weight


def placed(arrays):
    """Arrays [B, N, ...] on the current mesh, rows and patches split."""
    return jax.tree.map(lambda x: jax.device_put(x, spec("batch tokens" + " ." * (x.ndim - 2))), arrays)


@functools.partial(jax.jit, static_argnums=0)
def embed(settings: Settings, params: dict, tokens, ids):
    """Embeddings of a text, [B, S] -> [B, S, E] float32."""
    batch = PatchBatch(None, None, None, None, text=tokens, text_segment_ids=ids)
    return bind(VideoModel, settings, params).embed_text(batch).text


@functools.partial(jax.jit, static_argnums=0)
def predict_data(settings: Settings, params: dict, batch: PatchBatch, x, t):
    """The clean patches that the model predicts for noisy ones [B, N, P] at time t, [B, N, P] float32."""
    times = jnp.zeros_like(batch.segment_ids[:, :1], jnp.float32) + quantize_time(t, settings.flow)
    table, time_index = time_table(batch, times, conditioning_time=settings.masks.noise)
    return x - t * bind(VideoModel, settings, params).velocity(batch, x, table, time_index)
