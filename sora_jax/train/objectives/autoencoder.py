"""What trains the autoencoder: reconstruction, a prior on the latents, the look of pictures, and an adversary."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sora_jax.config.schema import Settings
from sora_jax.core.mesh import place, spec
from sora_jax.interop.lpips import load_lpips
from sora_jax.models.autoencoder.discriminator import Discriminator, DiscriminatorSettings
from sora_jax.models.autoencoder.lpips import video_lpips
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.layers.params import bind, init_params

MAX_BALANCE = 1e4  # of the discriminator's pull, where its gradient vanishes


@dataclasses.dataclass(frozen=True)
class AutoencoderObjective:
    """Reconstruction of pixel clips: L1 + mse * MSE + kl * KL + perceptual * LPIPS, each a mean over a clip.

    With `loss.adversarial`, a discriminator learns in the same step to tell clips from reconstructions (hinge
    loss), and the autoencoder to mislead it. How hard it pulls is set clip by clip: `adversarial` times the norm
    of the reconstruction terms' gradient, as in VQGAN (Esser et al. 2020, arXiv 2012.09841, eq. 7), but taken at
    the reconstructed pixels and for each clip alone, so that neither the batch's size nor its split into
    micro-batches changes what a clip teaches.
    """

    settings: Settings
    axes = "batch . height"
    unit = "frames"

    @property
    def discriminator(self) -> DiscriminatorSettings:
        return DiscriminatorSettings(self.settings.loss.discriminator_width, self.settings.autoencoder.dtype)

    def init(self, key):
        params = {"autoencoder": init_params(Autoencoder, self.settings.autoencoder, key)}
        if self.settings.loss.adversarial:
            key = jax.random.fold_in(key, 1)
            params["discriminator"] = init_params(Discriminator, self.discriminator, key)
        return params

    def frozen(self) -> dict:
        """The weights of LPIPS, on every chip."""
        path = self.settings.loss.perceptual_weights
        if not path:
            return {}
        return {"lpips": jax.device_put(load_lpips(path), jax.NamedSharding(jax.sharding.get_mesh(), jax.P()))}

    def place(self, batch):
        return place(batch, self.axes)

    def work(self, batch) -> tuple[int, float]:
        """Frames of pixels; its FLOPs are not counted (nan)."""
        return batch.shape[0] * batch.shape[1], float("nan")

    def draw(self, key, batch, step):
        """Noise for the posterior of each latent, [B, f, h, w, C]; the weight of the discriminator's pull, [B]."""
        settings = self.settings.autoencoder
        B, F, H, W, _ = batch.shape
        f = (F - 1) // settings.temporal_stride + 1
        shape = (B, f, H // settings.spatial_stride, W // settings.spatial_stride, settings.latent_channels)
        noise = jax.random.normal(key, shape, out_sharding=spec("batch . height . ."))
        loss = self.settings.loss
        pull = jnp.where(step >= loss.adversarial_start, loss.adversarial, 0.0)
        return noise, jnp.broadcast_to(pull, (B,), out_sharding=spec("batch"))

    def loss(self, params, frozen, batch, drawn):
        """Batch: pixels, [B, F, H, W, 3] uint8."""
        noise, pull = drawn
        weights = self.settings.loss
        model = bind(Autoencoder, self.settings.autoencoder, params["autoencoder"])
        video = batch.astype(jnp.float32) / 127.5 - 1
        mean, log_variance = model.encode(video)
        made = model.decode(mean + jnp.exp(0.5 * log_variance) * noise)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
        kl = jnp.mean(divergence, axis=(1, 2, 3, 4))

        if weights.perceptual or weights.adversarial:  # what judges pictures sees them whole
            video, made = _whole_frames(video), _whole_frames(made)

        def reconstruction(made):
            error = made - video
            sums = {"l1": jnp.mean(jnp.abs(error), axis=(1, 2, 3, 4))}
            sums["mse"] = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
            total = sums["l1"] + weights.mse * sums["mse"]
            if weights.perceptual:
                sums["perceptual"] = video_lpips(frozen["lpips"], video, made)
                total += weights.perceptual * sums["perceptual"]
            return total, sums

        if weights.adversarial:
            judge = functools.partial(bind, Discriminator, self.discriminator)
            total, sums = _adversarial(judge, params["discriminator"], reconstruction, video, made, pull)
        else:
            total, sums = reconstruction(made)
        total = jnp.sum(total + weights.kl * kl)
        return total, jnp.asarray(len(batch), jnp.float32), jax.tree.map(jnp.sum, sums | {"kl": kl})


def _adversarial(judge, params, reconstruction, video, made, pull):
    """The losses of both sides per clip, [B], in one differentiable number: each side's gradient is its own."""
    judge_for_decoder = judge(jax.lax.stop_gradient(params))

    def fooling(made):
        return -jnp.mean(judge_for_decoder(made), axis=(1, 2, 3))

    # Pixels' gradients of both terms, in hand to weigh the one by the other; `follow` passes them on.
    fixed = jax.lax.stop_gradient(made)
    ones = jnp.ones_like(pull)
    total, backward, sums = jax.vjp(reconstruction, fixed, has_aux=True)
    wanted = backward(ones)[0]
    fooled, backward = jax.vjp(fooling, fixed)
    asked = backward(ones)[0]
    balance = jnp.clip(_norms(wanted) / (_norms(asked) + 1e-8), 0, MAX_BALANCE) * pull
    gradient = jax.lax.stop_gradient(wanted + balance[:, None, None, None, None] * asked)
    follow = jnp.sum(gradient * (made - fixed), axis=(1, 2, 3, 4))
    value = jax.lax.stop_gradient(total + balance * fooled)

    discriminator = judge(params)
    real, fake = discriminator(video), discriminator(fixed)
    hinge = jnp.mean(jax.nn.relu(1 - real), axis=(1, 2, 3)) + jnp.mean(jax.nn.relu(1 + fake), axis=(1, 2, 3))
    sums |= {"fooling": fooled, "balance": balance, "discriminator": hinge}
    return value + follow + hinge, sums


def _norms(x):
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3, 4)))


def _whole_frames(video):
    """The same with its rows gathered."""
    sharding = jax.typeof(video).sharding
    if sharding.mesh.empty:
        return video
    return jax.reshard(video, jax.P(sharding.spec[0] if sharding.spec else None))
