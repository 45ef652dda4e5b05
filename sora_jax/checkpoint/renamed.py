"""Arrays of older files: parameters that had another name, and one norm where there are two today."""

import re
from collections.abc import Mapping

# (pattern of the old name, present name), in dotted names.
RENAMED = (
    (r"\bencoder\.levels\b", "encoder.down_blocks"),
    (r"\bdecoder\.levels\b", "decoder.up_blocks"),
    (r"\b(encoder|decoder)\.middle\b", r"\1.mid_block"),
    (r"\bmoments\b", "quant_conv"),
    (r"\bunlatent\b", "post_quant_conv"),
)


def present_name(name: str) -> str:
    """The present name of a parameter, e.g. "ema.decoder.up_blocks.0.blocks.1.conv1.kernel"."""
    for pattern, present in RENAMED:
        name = re.sub(pattern, present, name)
    return name


def has_one_norm(state, leaves: Mapping) -> bool:
    """Whether a checkpoint's optimizer clipped both players of an adversarial loss by one norm.

    Args:
      state: a TrainState of today.
      leaves: names of the checkpoint's arrays.
    """
    return "opt_state.0.mean" in leaves and isinstance(getattr(state.opt_state[0], "mean", None), dict)


def with_norm(state, mean):
    """The TrainState with this running mean of the gradient's norm."""
    clipping, *rest = state.opt_state
    return state.replace(opt_state=(clipping._replace(mean=mean), *rest))
