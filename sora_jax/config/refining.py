"""Settings of a refiner: a transformer that is given a video, and makes it larger and sharper."""

import dataclasses

from sora_jax.config.fields import Group, field


@dataclasses.dataclass(frozen=True)
class RefineSettings(Group):
    """The pairs that a refiner learns from, each drawn anew, and the condition that it is given."""

    where = "config.refine"

    scale: float = field(
        2.0, "Size of the output over that of the input, in training; the largest step of `refine`.", min=1, max=4
    )
    blur: float = field(
        1.5, "Largest deviation of the Gaussian blur of an input, at its own size.", unit="pixels", min=0
    )
    grain: float = field(
        0.03, "Largest deviation of the noise in an input, as a share of the range of pixels.", min=0, max=1
    )
    compressed: float = field(1 / 3, "Share of inputs that are compressed as H.264.", min=0, max=1)
    crf: tuple[int, int] = field(
        (18, 32), "Range of the constant rate factor of compressed inputs.", min=0, max=51
    )
    generated: str = field(
        "",
        "Data sets of pixels whose clips are those of config.data.path at the size of inputs, with a generator's "
        "own faults, under the same names.",
    )
    generated_share: float = field(
        0.6, "Share of the clips that have a generated input that take it.", min=0, max=1
    )
    slowed: float = field(
        0.25,
        "Share of inputs of which only every second, third or fourth frame is kept, the others blended of these.",
        min=0,
        max=1,
    )
    noise: float = field(
        0.4, "Largest noise of the condition in training, from 0, none, to 1, nothing else.", min=0, max=1
    )
    condition_dropout: float = field(0.1, "Share of clips whose condition is noise alone.", min=0, max=1)
    sample_noise: float = field(0.1, "Noise of the condition in `refine`.", min=0, max=1)
    autoencoder_tile: int = field(
        0,
        "Side of the tiles in which `refine` encodes and decodes, for an autoencoder trained on small frames; "
        "0: whole frames.",
        unit="pixels",
        min=0,
    )
