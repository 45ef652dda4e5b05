"""Distillation: a student learns from a frozen teacher, a trained model that is sampled with guidance.

`guidance_distillation`: the student's velocity is the teacher's with guidance, so that a step needs one pass.
`moment_matching`: the student needs few steps. What it makes, noised again, must lead to the same expected data as
the teacher's; a critic learns what is expected from the student's.

Sources: Meng et al. 2022 (arXiv 2210.03142); Salimans et al. 2024 (arXiv 2406.04103).
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from sora_jax.checkpoint.frozen_params import restore_for_compute
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.restore import STUDENT
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.core.mesh import spec
from sora_jax.core.patches import PatchBatch
from sora_jax.core.random_keys import Purpose, purpose_key
from sora_jax.core.storage import as_path
from sora_jax.data.loader.conditioning_masks import conditioning_tasks
from sora_jax.data.tokenizer import EOS
from sora_jax.diffusion.distillation import critic_error, guidance_at, moment_loss, step_back, step_times
from sora_jax.diffusion.flow import has_loss, noisy_patches, time_shifts, time_table, times_at
from sora_jax.models.layers.params import bind
from sora_jax.models.video_model import VideoModel, join
from sora_jax.train.objectives.flow import FlowObjective

CRITIC, TEACHER = "critic", "teacher"


@dataclasses.dataclass(frozen=True)
class GuidanceDistillation(FlowObjective):
    """The squared error between the student's velocity and the teacher's with guidance."""

    passes = 5  # forward passes of the model in an update, of which a training step has 3

    def frozen_params(self) -> dict:
        """Those of flow matching, and the teacher's: the averaged weights of `train.init_from`."""
        folder, step = find_checkpoint(as_path(self.settings.train.init_from))
        stored, _ = read_meta(folder, step)
        return super().frozen_params() | {TEACHER: restore_for_compute(folder, step, stored)}

    def work(self, batch):
        units, flops = super().work(batch)
        return units, flops * self.passes / 3

    def loss(self, params, frozen_params, batch: PatchBatch, drawn):
        """The squared error of the velocity, summed over patches, and their number."""
        batch, frozen_params = self.encoded(batch, frozen_params)
        teacher, student = self.nets(frozen_params, batch, params)
        noise, times = drawn
        x, table, time_index = noisy_patches(batch, noise, times, conditioning_time=self.settings.masks.noise)
        target = jax.lax.stop_gradient(teacher(x, table, time_index, noise))
        counts = has_loss(batch)
        errors = jnp.mean(jnp.square(student(x, table, time_index) - target), axis=-1)
        return jnp.sum(errors * counts), jnp.sum(counts), {}

    def nets(self, frozen_params: dict, batch: PatchBatch, *trained: dict):
        """The teacher's guided velocity, and the velocity of each trained net.

        Returns: functions (x, times, time_index) -> [B, N, P]; the teacher's also takes the noise of x.
        """
        shared = {name: x for name, x in frozen_params.items() if name != TEACHER}
        bound = functools.partial(bind, VideoModel, self.settings)
        models = [bound(join(params, shared)) for params in trained]
        teacher = bound(join(frozen_params[TEACHER], shared))
        return (
            guided_teacher(teacher, self.settings, batch),
            *(functools.partial(model.velocity, model.embed_text(batch)) for model in models),
        )


@dataclasses.dataclass(frozen=True)
class MomentMatching(GuidanceDistillation):
    """Student and critic learn in turns, update by update; both begin as the teacher.

    The critic is told to predict the student's data and to stay near the teacher; the student is moved by the
    difference between the two.
    """

    passes = 6
    players: ClassVar[tuple[str, ...]] = (STUDENT, CRITIC)

    @property
    def rates(self) -> dict[str, float]:
        return {STUDENT: 1.0, CRITIC: self.settings.distill.critic_rate}

    def init(self, key):
        """New parameters of both, which `train.init_from` replaces."""
        params = super().init(key)
        return {STUDENT: params, CRITIC: jax.tree.map(jnp.copy, params)}

    def draw(self, key, batch: PatchBatch, step):
        """(noise of x_t, new noise of x_s, both [B, N, P]; times t and s, [B, T]; whose turn it is, [B] bool)."""
        noise, times = super().draw(key, batch, step)
        settings = self.settings
        renewed = jax.random.normal(
            purpose_key(key, Purpose.RENEWED_NOISE, step), noise.shape, out_sharding=spec("batch tokens .")
        )
        clips = settings.data.clips_per_sequence
        shifts = time_shifts(batch, clips, times.shape[1] - clips, settings.flow)
        t, s = step_times(purpose_key(key, Purpose.TIMES, step), shifts, settings.distill)
        turn = jnp.broadcast_to(step % 2 == 0, (len(noise),), out_sharding=spec("batch"))
        return noise, renewed, t, s, turn

    def loss(self, params, frozen_params, batch: PatchBatch, drawn):
        """The loss of the student or the critic, summed over patches, and their number."""
        batch, frozen_params = self.encoded(batch, frozen_params)
        noise, renewed, t, s, turn = drawn
        fixed = self.settings.masks.noise
        x, table, time_index = noisy_patches(batch, noise, t, conditioning_time=fixed)
        later, _ = time_table(batch, s, conditioning_time=fixed)
        time, next_time = times_at(table, time_index), times_at(later, time_index)
        counts = has_loss(batch)

        def data_of(velocity_fn, x, table, time, *noise):
            return x - time * velocity_fn(x, table, time_index, *noise)

        def errors(student_params, critic_params, critic_learns):
            teacher, student, critic = self.nets(frozen_params, batch, student_params, critic_params)
            made = data_of(student, x, table, time)
            back = jax.lax.stop_gradient(step_back(x, made, renewed, time, next_time))
            back = jnp.where(batch.conditioning_mask[..., None], x, back)
            expected = data_of(teacher, back, later, next_time, renewed)
            learned = data_of(critic, back, later, next_time)
            of_critic = critic_error(learned, made, expected, next_time)
            if critic_learns:
                return jnp.sum(of_critic * counts)
            gap = jnp.mean(jnp.square(learned - expected), axis=-1)
            pull = moment_loss(made, learned, expected, next_time)
            # The value shown is the gap between the moments; the gradient is the student's.
            return jnp.sum((pull - jax.lax.stop_gradient(pull - gap)) * counts)

        stopped = jax.lax.stop_gradient
        total = jax.lax.cond(
            jnp.any(turn),
            lambda: errors(stopped(params[STUDENT]), params[CRITIC], True),
            lambda: errors(params[STUDENT], stopped(params[CRITIC]), False),
        )
        return total, jnp.sum(counts), {}


def guided_teacher(model, settings, batch: PatchBatch):
    """The model's velocity with guidance, as sampling has it: against no caption, and then no conditioning frames.

    Returns: (x, times, time_index, noise of x) -> velocity, [B, N, P].
    """
    prompt, empty = model.embed_text(batch), without_captions(batch, padded=settings.text.padded)
    alone = settings.masks.guided and {"text"} < conditioning_tasks(settings.masks).keys()
    if alone:
        empty = empty.replace(conditioning_mask=jnp.zeros_like(batch.conditioning_mask))
    empty = model.embed_text(empty)

    def velocity(x, table, time_index, noise):
        conditional = model.velocity(prompt, x, table, time_index)
        if alone:  # conditioning frames are noised like the others of their clip
            _, time_index = time_table(empty, table[:, 1:])
            t = times_at(table, time_index)
            noisy = (1 - t) * batch.patches + t * noise
            x = jnp.where(batch.conditioning_mask[..., None], noisy, x)
        unconditional = model.velocity(empty, x, table, time_index)
        scale = guidance_at(times_at(table, time_index), settings.distill)
        return unconditional + scale * (conditional - unconditional)

    return velocity


def without_captions(batch: PatchBatch, *, padded: bool) -> PatchBatch:
    """The batch with the empty caption for each clip: the end of a text alone.

    Args:
      padded: whether a caption's padding belongs to it, as in Wan.
    """
    if not padded:
        return batch.replace(text_segment_ids=jnp.where(batch.text == EOS, batch.text_segment_ids, 0))
    before = jnp.pad(batch.text_segment_ids[:, :-1], ((0, 0), (1, 0)))
    first = (batch.text_segment_ids != before) & (batch.text_segment_ids > 0)
    return batch.replace(text=jnp.where(first, EOS, 0))
