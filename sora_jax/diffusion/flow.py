"""Rectified flow: a straight path from data to noise, its velocity, its times, its loss.

Times are in [0, 1], 0 = data, 1 = noise. Source: Liu et al. 2022 (arXiv 2209.03003); Lipman et al. 2022
(arXiv 2210.02747); times as in Esser et al. 2024 (arXiv 2403.03206).
"""

import math

import jax
import jax.numpy as jnp

from sora_jax.config.schema import FlowSettings
from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch

# Tokens of one latent frame at which the shift is 1 and 3, from Open-Sora 2.0 (arXiv 2503.09642), section 4.1.
SHIFT_TOKENS = (256, 4096)
SHIFTS = (1.0, 3.0)
ECHOED = 0.5  # from this time on: where things are is decided before
LEAST_TIME = 0.05  # in the velocity of a model that predicts data, as in arXiv 2511.13720


def shift_times(t, shift):
    """Move times towards noise: s t / (1 + (s - 1) t). Source: arXiv 2403.03206, eq. 23."""
    return shift * t / (1 + (shift - 1) * t)


def quantize_time(t, settings: FlowSettings):
    """The time that the model is told for t: with `time_quantization` n, the last i / n before it, i from 0 to
    n - 1."""
    n = settings.time_quantization
    if not n:
        return t
    return jnp.clip(jnp.floor(t * n + 1e-3), 0, n - 1) / n  # float32's t * n may lie just below a whole number


def shift_of(patches, frames):
    """The shift that suits a clip's size: larger clips keep more of their signal at the same noise.

    Linear in the patches of one frame, times the square root of the number of frames.

    Args:
      patches: of the whole clip, positive.
      frames: of its grid of patches, positive.
    """
    (low, high), (first, last) = SHIFT_TOKENS, SHIFTS
    return (first + (patches / frames - low) * (last - first) / (high - low)) * jnp.sqrt(frames)


def clip_shifts(batch: PatchBatch, clips: int, settings: FlowSettings):
    """The shift of each clip of each row, [B, clips] float32; 1 where a row has fewer clips."""
    segment_ids = jax.reshard(batch.segment_ids, spec("batch ."))
    if settings.shift:
        return jnp.full_like(segment_ids[:, :1], settings.shift, jnp.float32) * jnp.ones(clips)
    mine = segment_ids[:, :, None] == jnp.arange(1, clips + 1)
    patches = jnp.sum(mine, axis=1)
    frame = jax.reshard(batch.positions, spec("batch . ."))[:, :, 0]
    frames = jnp.max(jnp.where(mine, frame[:, :, None] + 1, 1), axis=1)
    return jnp.where(patches > 0, settings.shift_scale * shift_of(jnp.maximum(patches, 1), frames), 1.0)


def time_shifts(batch: PatchBatch, clips: int, frame_times: int, settings: FlowSettings):
    """The shift of each time of a row, [B, clips + frame_times]: the clips', then those of the clip that has
    them."""
    shifts = clip_shifts(batch, clips, settings)
    if not frame_times:
        return shifts
    segment_ids, of_patch = (jax.reshard(x, spec("batch .")) for x in (batch.segment_ids, batch.time_index))
    mine = of_patch[:, :, None] == jnp.arange(clips + 1, clips + frame_times + 1)
    segment = jnp.max(jnp.where(mine, segment_ids[:, :, None], 0), axis=1)  # 0: no patch has this time
    one_hot = jax.nn.one_hot(segment - 1, clips, dtype=jnp.float32)
    of_clip = jnp.einsum("btc,bc->bt", one_hot, shifts, precision="highest", out_sharding=spec("batch ."))
    return jnp.concatenate([shifts, jnp.where(segment > 0, of_clip, 1.0)], axis=1)


def sample_times(key, batch: PatchBatch, clips: int, settings: FlowSettings, *, frame_times: int = 0):
    """A time for each clip of each row, [B, clips] float32: sigmoid of a normal, shifted by the clip's size.

    An expert's, from time_min to time_max, are distributed as those of all would be in that range. Rows share the
    range out evenly: alone, each one's time is as random as ever, but a batch has no run of like times, and its
    gradient less noise. Source: Kingma et al. 2021 (arXiv 2107.00630), appendix I.1.

    Args:
      frame_times: times of a row for frames that have their own; they follow, [B, clips + frame_times].
    """
    rows, layout = batch.segment_ids.shape[0], spec("batch .")
    shifts = time_shifts(batch, clips, frame_times, settings)
    ends = (settings.time_min, settings.time_max)
    logits = (jax.scipy.special.logit(end / (shifts - (shifts - 1) * end)) for end in ends)
    first, last = (jax.scipy.special.ndtr((logit - settings.time_mean) / settings.time_std) for logit in logits)
    share = jax.random.uniform(key, (1, clips + frame_times)) + jnp.arange(rows)[:, None] / rows
    share = jax.reshard(share % 1, layout)
    share = jnp.clip(first + share * (last - first), 1e-6, 1 - 1e-6)
    normal = math.sqrt(2) * jax.lax.erf_inv(2 * share - 1)  # jax.scipy's ndtri does not take a sharded array
    times = shift_times(jax.nn.sigmoid(settings.time_mean + settings.time_std * normal), shifts)
    return jnp.clip(times, *ends)


def times_at(table, time_index):
    """The time of each patch: table [B, T] float32, levels [B, N] int32 -> [B, N, 1] float32, exact."""
    one_hot = jax.nn.one_hot(time_index, table.shape[1], dtype=jnp.float32)
    return jnp.einsum("bnt,bt->bn", one_hot, table, precision="highest", out_sharding=spec("batch tokens"))[
        ..., None
    ]


def velocity_to(data, x, t):
    """The velocity, noise - data, of x at time t if `data` is what it was made of; [B, N, P], t [B, N, 1] float32.

    Near t = 0, where x is nearly the data, a small error of `data` would be a large one of the velocity: times
    count as LEAST_TIME at least. Source: Li & He 2025 (arXiv 2511.13720).
    """
    return (x - data) / jnp.maximum(t, LEAST_TIME)


def time_table(batch: PatchBatch, times, *, conditioning_time: float = 0.0):
    """The table of noise levels of each row, and which one each patch has.

    Args:
      times: of a row, [B, T]: of each clip, or those that the batch's levels name.
      conditioning_time: of known patches.
    Returns: ([B, T + 1] float32, level 0 is conditioning_time; [B, N] int32, 0 for known patches and padding).
    """
    table = jnp.pad(times, ((0, 0), (1, 0)), constant_values=conditioning_time)
    return table, jnp.where(
        batch.conditioning_mask, 0, batch.segment_ids if batch.time_index is None else batch.time_index
    )


def flow_errors(velocity_fn, batch: PatchBatch, noise, times, *, conditioning_time: float = 0.0):
    """Squared error of the velocity, and where it counts.

    Args:
      velocity_fn: (patches, table, levels) -> velocity, [B, N, P] float32.
      batch: clean patches, and their echoes: the velocity is to lead away from them.
      noise: [B, N, P] float32.
      times, conditioning_time: as `time_table` takes them.
    Returns: (mean over P of the squared error, [B, N] float32, 0 where it does not count;
      1 where a patch is neither known nor padding, else 0, [B, N] float32).
    Source: arXiv 2210.02747, eq. 23, with time reversed.
    """
    table, time_index = time_table(batch, times, conditioning_time=conditioning_time)
    data = batch.patches.astype(jnp.float32)
    t = times_at(table, time_index)
    x, target = (1 - t) * data + t * noise, noise - data
    if batch.ghosts is not None:
        echo = jnp.where(t > ECHOED, (1 - t) * batch.ghosts.astype(jnp.float32), 0)
        x, target = x + echo, target + echo / jnp.maximum(t, ECHOED)
    velocity = velocity_fn(x, table, time_index)
    counts = ((batch.segment_ids > 0) & ~batch.conditioning_mask).astype(jnp.float32)
    return jnp.mean(jnp.square(velocity - target), axis=-1) * counts, counts
