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
GHOSTS_FROM = 0.5  # the time from which ghosts are added: layout is decided at such times
MIN_TIME = 0.05  # divisor of the velocity of a model that predicts data, as in arXiv 2511.13720


def shift_times(t, shift):
    """Move times towards noise: s t / (1 + (s - 1) t). Source: arXiv 2403.03206, eq. 23."""
    return shift * t / (1 + (shift - 1) * t)


def quantize_time(t, settings: FlowSettings):
    """t rounded down to a multiple of 1 / n, at most (n - 1) / n, for `time_quantization` n; 0: t itself."""
    n = settings.time_quantization
    if not n:
        return t
    return jnp.clip(jnp.floor(t * n + 1e-3), 0, n - 1) / n  # float32's t * n may lie just below an integer


def shift_of(patches, frames):
    """The shift of times for a clip's size; larger clips keep more of their signal at the same noise.

    It is linear in the patches of one frame, times the square root of the number of frames.

    Args:
      patches: number in the whole clip, positive.
      frames: number in its grid of patches, positive.
    """
    (low, high), (first, last) = SHIFT_TOKENS, SHIFTS
    return (first + (patches / frames - low) * (last - first) / (high - low)) * jnp.sqrt(frames)


def clip_shifts(batch: PatchBatch, clips: int, settings: FlowSettings):
    """The shift of each clip of each sequence, [B, clips] float32; 1 for absent clips."""
    segment_ids = jax.reshard(batch.segment_ids, spec("batch ."))
    if settings.shift:
        return jnp.full_like(segment_ids[:, :1], settings.shift, jnp.float32) * jnp.ones(clips)
    mine = segment_ids[:, :, None] == jnp.arange(1, clips + 1)
    patches = jnp.sum(mine, axis=1)
    frame = jax.reshard(batch.positions, spec("batch . ."))[:, :, 0]
    frames = jnp.max(jnp.where(mine, frame[:, :, None] + 1, 1), axis=1)
    return jnp.where(patches > 0, settings.shift_scale * shift_of(jnp.maximum(patches, 1), frames), 1.0)


def time_shifts(batch: PatchBatch, clips: int, frame_times: int, settings: FlowSettings):
    """The shift of each time of each sequence, [B, clips + frame_times]: those of clips, then those of frames."""
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
    """Random times, [B, clips + frame_times] float32: sigmoid of a normal, shifted by the clip's size.

    With time_min and time_max the distribution is truncated to that range. Times are stratified over the batch:
    each is distributed as if drawn alone, and the gradient of the batch has less noise.
    Source: Kingma et al. 2021 (arXiv 2107.00630), appendix I.1.

    Args:
      clips: times of a sequence, one for each of its clips.
      frame_times: further times of a sequence, for frames that have their own.
    """
    sequences, layout = batch.segment_ids.shape[0], spec("batch .")
    shifts = time_shifts(batch, clips, frame_times, settings)
    ends = (settings.time_min, settings.time_max)
    logits = (jax.scipy.special.logit(end / (shifts - (shifts - 1) * end)) for end in ends)
    first, last = (jax.scipy.special.ndtr((logit - settings.time_mean) / settings.time_std) for logit in logits)
    share = jax.random.uniform(key, (1, clips + frame_times)) + jnp.arange(sequences)[:, None] / sequences
    share = jax.reshard(share % 1, layout)
    share = jnp.clip(first + share * (last - first), 1e-6, 1 - 1e-6)
    normal = math.sqrt(2) * jax.lax.erf_inv(2 * share - 1)  # jax.scipy's ndtri does not take a sharded array
    times = shift_times(jax.nn.sigmoid(settings.time_mean + settings.time_std * normal), shifts)
    return jnp.clip(times, *ends)


def times_at(table, time_index):
    """The time of each patch: table [B, T] float32, time_index [B, N] int32 -> [B, N, 1] float32, exact."""
    one_hot = jax.nn.one_hot(time_index, table.shape[1], dtype=jnp.float32)
    return jnp.einsum("bnt,bt->bn", one_hot, table, precision="highest", out_sharding=spec("batch tokens"))[
        ..., None
    ]


def velocity_to(data, x, t):
    """The velocity (noise - data) of x at time t, given its data; [B, N, P], t [B, N, 1] float32.

    Times count as at least MIN_TIME: near t = 0 a small error of the data is a large one of the velocity.
    Source: Li & He 2025 (arXiv 2511.13720).
    """
    return (x - data) / jnp.maximum(t, MIN_TIME)


def time_table(batch: PatchBatch, times, *, conditioning_time: float = 0.0):
    """The distinct times of each sequence, and which of them each patch has.

    Args:
      times: [B, T], one for each clip, or those that the batch's time_index refers to.
      conditioning_time: time of conditioning patches.
    Returns: (times [B, T + 1] float32, of which the first is conditioning_time; index [B, N] int32, 0 for
      conditioning patches and padding).
    """
    table = jnp.pad(times, ((0, 0), (1, 0)), constant_values=conditioning_time)
    time_index = batch.segment_ids if batch.time_index is None else batch.time_index
    return table, jnp.where(batch.conditioning_mask, 0, time_index)


def noisy_patches(batch: PatchBatch, noise, times, *, conditioning_time: float = 0.0):
    """(the patches at their times, [B, N, P] float32; the times and their index as `time_table` returns them)."""
    table, time_index = time_table(batch, times, conditioning_time=conditioning_time)
    t = times_at(table, time_index)
    return (1 - t) * batch.patches.astype(jnp.float32) + t * noise, table, time_index


def has_loss(batch: PatchBatch):
    """1 for patches with loss, 0 for conditioning and padding, [B, N] float32."""
    return ((batch.segment_ids > 0) & ~batch.conditioning_mask).astype(jnp.float32)


def flow_errors(velocity_fn, batch: PatchBatch, noise, times, *, conditioning_time: float = 0.0):
    """Squared error of the velocity of each patch, and the patches that have a loss.

    Args:
      velocity_fn: (patches, times, time_index) -> velocity, [B, N, P] float32.
      batch: clean patches, and their ghosts, which the velocity is to remove.
      noise: [B, N, P] float32.
      times, conditioning_time: as `time_table` takes them.
    Returns: (mean over P of the squared error, [B, N] float32, 0 for patches without loss;
      1 for patches with loss, 0 for conditioning and padding, [B, N] float32).
    Source: arXiv 2210.02747, eq. 23, with time reversed.
    """
    x, table, time_index = noisy_patches(batch, noise, times, conditioning_time=conditioning_time)
    target = noise - batch.patches.astype(jnp.float32)
    if batch.ghosts is not None:
        t = times_at(table, time_index)
        ghost = jnp.where(t > GHOSTS_FROM, (1 - t) * batch.ghosts.astype(jnp.float32), 0)
        x, target = x + ghost, target + ghost / jnp.maximum(t, GHOSTS_FROM)
    velocity = velocity_fn(x, table, time_index)
    counts = has_loss(batch)
    return jnp.mean(jnp.square(velocity - target), axis=-1) * counts, counts
