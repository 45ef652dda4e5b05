"""The autoencoder's objective: reconstruction, KL divergence, LPIPS and an adversarial loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sora_jax.config.schema import Settings
from sora_jax.core.mesh import place, spec
from sora_jax.core.random_keys import Purpose, purpose_key
from sora_jax.interop.lpips import load_lpips
from sora_jax.models.autoencoder.discriminator import Discriminator, DiscriminatorSettings
from sora_jax.models.autoencoder.lpips import video_lpips
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind, init_params

MAX_ADVERSARIAL_WEIGHT = 1e4  # reached where the discriminator's gradient vanishes


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
    """The loss on pixel clips: L1 + mse * MSE + kl * KL + perceptual * LPIPS, each a mean over a clip.

    With `loss.adversarial`, a discriminator learns in the same step to tell clips from reconstructions (hinge
    loss), and the autoencoder learns to mislead it. The adversarial gradient is scaled to `adversarial` times the
    norm of the other terms' gradient, as in VQGAN (Esser et al. 2020, arXiv 2012.09841, eq. 7). Both are taken at
    the reconstructed pixels, clip by clip: neither the batch size nor micro-batches change a clip's gradient.
    """

    settings: Settings
    axes = "batch . height"
    unit = "frames"

    @property
    def players(self) -> tuple[str, ...]:
        return ("autoencoder", "discriminator") if self.settings.loss.adversarial else ()

    @property
    def rates(self) -> dict[str, float]:
        return {}

    @property
    def discriminator(self) -> DiscriminatorSettings:
        return DiscriminatorSettings(self.settings.loss.discriminator_width, self.settings.autoencoder.dtype)

    def init(self, key):
        init_key = purpose_key(key, Purpose.INIT)
        params = {"autoencoder": init_params(Autoencoder, self.settings.autoencoder, init_key)}
        if self.settings.loss.adversarial:
            key = purpose_key(key, Purpose.DISCRIMINATOR_INIT)
            params["discriminator"] = init_params(Discriminator, self.discriminator, key)
        return params

    def frozen_params(self) -> dict:
        """The weights of LPIPS, replicated."""
        path = self.settings.loss.perceptual_weights
        if not path:
            return {}
        return {"lpips": jax.device_put(load_lpips(path), jax.NamedSharding(jax.sharding.get_mesh(), jax.P()))}

    def place(self, batch):
        return place(batch, self.axes)

    def work(self, batch) -> tuple[int, float]:
        """Frames; FLOPs are not counted (NaN)."""
        return batch.shape[0] * batch.shape[1], float("nan")

    def draw(self, key, batch, step):
        """Noise for the posterior of each latent, [B, f, h, w, C]; the weight of the adversarial term, [B]."""
        settings = self.settings.autoencoder
        B, F, H, W, _ = batch.shape
        f = (F - 1) // settings.temporal_stride + 1
        shape = (B, f, H // settings.spatial_stride, W // settings.spatial_stride, settings.latent_channels)
        key = purpose_key(key, Purpose.POSTERIOR, step)
        noise = jax.random.normal(key, shape, out_sharding=spec("batch . height . ."))
        loss = self.settings.loss
        weight = jnp.where(step >= loss.adversarial_start, loss.adversarial, 0.0)
        return noise, jnp.broadcast_to(weight, (B,), out_sharding=spec("batch"))

    def loss(self, params, frozen_params, batch, drawn):
        """The loss of pixels, [B, F, H, W, 3] uint8."""
        noise, adversarial = drawn
        weights = self.settings.loss
        model = bind(Autoencoder, self.settings.autoencoder, params["autoencoder"])
        video = batch.astype(jnp.float32) / 127.5 - 1
        mean, log_variance = model.encode(video)
        made = model.decode(mean + jnp.exp(0.5 * log_variance) * noise)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        kl = jnp.mean(divergence, axis=(1, 2, 3, 4))

        if weights.perceptual or weights.adversarial:  # LPIPS and the discriminator need whole frames
            video, made = _whole_frames(video), _whole_frames(made)

        def reconstruction(made):
            error = made - video
            sums = {"l1": jnp.mean(jnp.abs(error), axis=(1, 2, 3, 4))}
            sums["mse"] = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
            total = sums["l1"] + weights.mse * sums["mse"]
            if weights.perceptual:
                sums["perceptual"] = video_lpips(frozen_params["lpips"], video, made)
                total += weights.perceptual * sums["perceptual"]
            return total, sums

        if weights.adversarial:
            discriminator = functools.partial(bind, Discriminator, self.discriminator)
            total, sums = _adversarial(
                discriminator, params["discriminator"], reconstruction, video, made, adversarial
            )
        else:
            total, sums = reconstruction(made)
        total = jnp.sum(total + weights.kl * kl)
        return total, jnp.asarray(len(batch), jnp.float32), jax.tree.map(jnp.sum, sums | {"kl": kl})


def _adversarial(discriminator, params, reconstruction, video, made, weight):
    """The losses of both players per clip, [B], in one differentiable number: each gets the gradient of its own.

    Args:
      discriminator: params -> model.
      reconstruction: made -> (loss per clip, [B]; its terms).
      weight: of the adversarial gradient relative to the reconstruction's, [B].
    """
    fixed_discriminator = discriminator(jax.lax.stop_gradient(params))

    def generator_loss(made):
        return -jnp.mean(fixed_discriminator(made), axis=(1, 2, 3))

    # Both gradients at the reconstructed pixels; `surrogate` passes their weighted sum on to the autoencoder.
    fixed = jax.lax.stop_gradient(made)
    ones = jnp.ones_like(weight)
    total, backward, sums = jax.vjp(reconstruction, fixed, has_aux=True)
    of_reconstruction = backward(ones)[0]
    fooling, backward = jax.vjp(generator_loss, fixed)
    of_generator = backward(ones)[0]
    ratio = _norms(of_reconstruction) / (_norms(of_generator) + 1e-8)
    balance = jnp.clip(ratio, 0, MAX_ADVERSARIAL_WEIGHT) * weight
    gradient = jax.lax.stop_gradient(of_reconstruction + balance[:, None, None, None, None] * of_generator)
    surrogate = jnp.sum(gradient * (made - fixed), axis=(1, 2, 3, 4))
    value = jax.lax.stop_gradient(total + balance * fooling)

    learning = discriminator(params)
    real, fake = learning(video), learning(fixed)
    hinge = jnp.mean(jax.nn.relu(1 - real), axis=(1, 2, 3)) + jnp.mean(jax.nn.relu(1 + fake), axis=(1, 2, 3))
    sums |= {"fooling": fooling, "balance": balance, "discriminator": hinge}
    return value + surrogate + hinge, sums


def _norms(x):
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3, 4)))


def _whole_frames(video):
    """The same video with its rows of pixels gathered."""
    sharding = jax.typeof(video).sharding
    if sharding.mesh.empty:
        return video
    return jax.reshard(video, jax.P(sharding.spec[0] if sharding.spec else None))
