"""A convolution over frames as a sum over the kernel's frames."""

import jax.numpy as jnp

NARROW = 16  # below so many channels one convolution of K_f times the channels beats K_f convolutions


def by_frame(x, kernel, stride: int, convolve):
    """The sum of `convolve` over the kernel's frames, each with the frames of x that it meets.

    Args:
      x: [B, F, H, W, C_in].
      kernel: [K_f, K_h, K_w, C_in, C_out].
      stride: over frames; there is no padding.
      convolve: (frames [B, F', H, W, C_in], kernel [K_h, K_w, C_in, C_out]) -> [B, F', H', W', C_out].
    Returns: [B, F', H', W', C_out], F' = (F - K_f) // stride + 1.
    """
    K_f, *_, C_in, C_out = kernel.shape
    frames = (x.shape[1] - K_f) // stride + 1
    span = (frames - 1) * stride + 1
    shifted = [x[:, tap : tap + span : stride] for tap in range(K_f)]
    if min(C_in, C_out) < NARROW:
        return convolve(jnp.concatenate(shifted, axis=-1), jnp.concatenate(list(kernel), axis=-2))
    return sum(convolve(frames, tap) for frames, tap in zip(shifted, kernel, strict=True))
