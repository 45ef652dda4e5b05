"""Model FLOPs of a step and peak FLOP/s of the chips: the two halves of MFU.

A multiplication and an addition count as two. Rematerialisation, padding and attention between clips don't count.
"""

import math

import numpy as np

from sora_jax.config.schema import Settings, TextSettings, TransformerSettings
from sora_jax.core.patches import PatchBatch

# Dense bfloat16 FLOP/s of one device by JAX's device_kind, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,  # a device is one of a chip's two cores
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def transformer_flops(settings: TransformerSettings, patches: int, tokens: int, image_tokens: int = 0) -> float:
    """FLOPs of one forward pass over one clip.

    Args:
      patches, tokens, image_tokens: lengths of the clip, its caption and its conditioning images.
    """
    D, M, L, E = settings.width, settings.mlp, settings.layers, settings.text_width
    P, P_c = (
        math.prod(settings.patch) * channels for channels in (settings.channels, settings.condition_channels)
    )
    # Self-attention's four projections, cross-attention's two of the patches, the MLP.
    context = tokens + image_tokens
    linear = patches * (2 * 4 * D * D + 2 * 2 * D * D + 2 * 2 * D * M) + context * (2 * 2 * D * D)
    attention = 2 * 2 * D * patches * (patches + context)
    ends = patches * 2 * (2 * P + P_c) * D + tokens * 2 * (E * D + D * D)
    return L * (linear + attention) + ends + image_tokens * 2 * settings.image_width * (settings.image_width + D)


def text_flops(settings: TextSettings, tokens: int) -> float:
    """FLOPs of one forward pass of the text encoder over one caption."""
    E, inner = settings.width, settings.heads * settings.head_dim
    linear = tokens * (2 * 4 * E * inner + 2 * 3 * E * settings.mlp)
    return settings.layers * (linear + 2 * 2 * inner * tokens * tokens)


def train_flops(settings: Settings, batch: PatchBatch) -> float:
    """FLOPs of a step on a batch (numpy); a backward pass costs two forward passes.

    Frozen weights need no gradient of their own: one forward pass less under adapters, no backward pass through a
    frozen text encoder. Embeddings that `prepare` made cost nothing.
    """
    passes = 2 if settings.lora.rank else 3
    text_passes = 1 if settings.lora.rank or settings.text.weights else 3
    text_passes = 0 if settings.data.embeddings else text_passes
    total = 0.0
    images = np.zeros((len(batch.segment_ids), 0), np.int32) if batch.image is None else batch.image_segment_ids
    for patches, tokens, image in zip(batch.segment_ids, batch.text_segment_ids, images, strict=True):
        clips = np.bincount(patches)[1:]
        image = np.bincount(image, minlength=1 + len(clips))[1:]
        for n, s, i in zip(clips, np.bincount(tokens)[1:], image, strict=True):
            total += passes * transformer_flops(settings.transformer, int(n), int(s), int(i))
            total += text_passes * text_flops(settings.text, int(s))
    return total
