"""Parameters that had another name when older files were written, such as the autoencoders that ship."""

import re

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
