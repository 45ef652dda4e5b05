"""A 3-D convolution as 2-D ones: XLA:CPU runs these several times as fast."""

import jax

from sora_jax.kernels.conv import by_frame


def conv3d(x, kernel, stride, padding):
    """`ops.conv3d` as a sum over the kernel's frames."""

    def planes(frames, tap):
        layout = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.collapse(frames, 0, 2)
        y = jax.lax.conv_general_dilated(images, tap, stride[1:], padding, dimension_numbers=layout)
        return y.reshape(-1, frames.shape[1], *y.shape[1:])

    return by_frame(x, kernel, stride[0], planes)
