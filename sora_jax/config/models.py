"""Settings of the models: what `settings.json` beside their weights says."""

import dataclasses
import re

from sora_jax.config.fields import DTYPES, Group, field
from sora_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings(Group):
    """A causal video autoencoder in Wan's form; the defaults are the sizes of Wan 2.1."""

    where = "config.autoencoder"

    width: int = field(96, "Width of the encoder's first level.", unit="channels", min=1)
    decoder_width: int = field(96, "Width of the decoder's last level.", unit="channels", min=1)
    multipliers: tuple[int, ...] = field((1, 2, 4, 4), "Width of each level, as a multiple of the first.", min=1)
    blocks: int = field(2, "Residual blocks in a level of the encoder; the decoder has one more.", min=1)
    temporal: tuple[bool, ...] = field((False, True, True), "For each downsampling, whether it also halves time.")
    latent_channels: int = field(16, "Channels of the latents.", unit="channels", min=1)
    patch: int = field(
        1, "Side of the pixel blocks folded into channels before the first convolution.", unit="pixels", min=1
    )
    shortcuts: bool = field(False, "Parameter-free shortcuts around each level, as in Wan 2.2.")
    latent_mean: tuple[float, ...] = field(
        (), "Mean of the latents per channel, subtracted after encoding; empty: 0."
    )
    latent_std: tuple[float, ...] = field(
        (), "Standard deviation of the latents per channel, divided by after encoding; empty: 1."
    )
    dtype: str = field("bfloat16", "Type that the model computes in.", choices=DTYPES)

    @property
    def temporal_stride(self) -> int:
        """Frames in a latent frame; the first latent frame has one."""
        return 2 ** sum(self.temporal)

    @property
    def spatial_stride(self) -> int:
        """Side of a latent in pixels."""
        return self.patch * 2 ** len(self.temporal)


@dataclasses.dataclass(frozen=True)
class TextSettings(Group):
    """A text encoder in UMT5's form; the defaults are the sizes of UMT5-XXL."""

    where = "config.text"

    vocabulary: int = field(256384, "Size of the vocabulary.", unit="tokens", min=1)
    width: int = field(4096, "Model width (E).", unit="channels", min=1)
    heads: int = field(64, "Attention heads.", min=1)
    head_dim: int = field(64, "Width of an attention head.", unit="channels", min=1)
    mlp: int = field(10240, "Hidden width of the MLP.", unit="channels", min=1)
    layers: int = field(24, "Layers.", min=1)
    buckets: int = field(32, "Buckets of relative positions.", min=1)
    max_distance: int = field(128, "Distance from which on all share the last bucket.", unit="tokens", min=1)
    max_tokens: int = field(512, "Maximum length of a caption; the rest is cut off.", unit="tokens", min=1)
    padded: bool = field(
        False, "Pad every caption to max_tokens with zero embeddings that are attended to, as Wan does."
    )
    weights: str = field(
        "", "Folder of a UMT5 in transformers' layout, which is not trained; empty: the text encoder is trained."
    )
    dtype: str = field("bfloat16", "Type that the model computes in.", choices=DTYPES)


@dataclasses.dataclass(frozen=True)
class ImageSettings(Group):
    """An image encoder in CLIP's form, for image-to-video models; the defaults are the sizes of ViT-H/14."""

    where = "config.image"

    width: int = field(1280, "Model width.", unit="channels", min=1)
    heads: int = field(16, "Attention heads.", min=1)
    mlp: int = field(5120, "Hidden width of the MLP.", unit="channels", min=1)
    layers: int = field(31, "Layers that are run; Wan uses the input of the 32nd and last one.", min=1)
    patch: int = field(14, "Side of a patch.", unit="pixels", min=1)
    size: int = field(224, "Side of the square image.", unit="pixels", min=1)
    weights: str = field(
        "", "Folder of a CLIPVisionModel in transformers' layout, which is not trained; empty: no image encoder."
    )
    resize: str = field(
        "squash",
        "How a frame becomes a square: squash, the whole frame (Wan); crop, its middle (diffusers).",
        choices=("squash", "crop"),
    )
    dtype: str = field("bfloat16", "Type that the model computes in.", choices=DTYPES)

    @property
    def tokens(self) -> int:
        """Tokens of an image: one for the whole and one for each patch."""
        return 1 + (self.size // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class TransformerSettings(Group):
    """A diffusion transformer in Wan's form; the defaults are the sizes of Wan 2.1 1.3B."""

    where = "config.transformer"

    patch: tuple[int, int, int] = field((1, 2, 2), "Frames, rows and columns of a patch.", unit="latents", min=1)
    channels: int = field(16, "Channels of the latents; as config.autoencoder.latent_channels.", min=1)
    condition_channels: int = field(
        0,
        "Channels beside the noise in image-to-video models: a mask per frame, then latents; 0: none.",
        unit="channels",
        min=0,
    )
    image_width: int = field(0, "Width of image features to attend to; 0: none.", unit="channels", min=0)
    image_positions: int = field(
        0, "Learned positions of the features of first and last frame; 0: none.", unit="tokens", min=0
    )
    text_width: int = field(
        4096, "Width of the text embeddings (E); as config.text.width.", unit="channels", min=1
    )
    width: int = field(1536, "Model width (D).", unit="channels", min=1)
    heads: int = field(12, "Attention heads; must divide the width.", min=1)
    mlp: int = field(8960, "Hidden width of the MLP.", unit="channels", min=1)
    layers: int = field(30, "Layers.", min=1)
    frequencies: int = field(256, "Width of the sinusoidal time embedding.", unit="channels", min=1)
    rotary_base: float = field(
        10000.0, "Base of the rotary frequencies; a small one separates neighbouring positions more.", above=0
    )
    predicts: str = field(
        "velocity",
        "Output of the model: the velocity, as Wan, or the clean data (arXiv 2511.13720).",
        choices=("velocity", "data"),
    )
    attention: str = field(
        "auto",
        "Attention kernel; auto: the fastest that the device has; xla stores all logits.",
        choices=("auto", "xla", "chunked", "pallas", "cudnn"),
    )
    remat: str = field(
        "full",
        "Tensors that the backward pass computes anew: all (full), all but those named, or none.",
        choices=("full", "save_attention", "save_products", "offload", "none"),
    )
    unroll: int = field(
        1, "Layers in one turn of the compiled loop; as many as there are: no loop.", unit="layers", min=1
    )
    dtype: str = field("bfloat16", "Type that the model computes in.", choices=DTYPES)

    def check(self):
        if self.width % self.heads:
            raise InputError(f"config.transformer.heads: must divide the width {self.width}")
        if self.image_positions and not self.image_width:
            raise InputError("config.transformer.image_positions: needs image_width, which is 0")


@dataclasses.dataclass(frozen=True)
class LoraSettings(Group):
    """Low-rank adapters of the transformer's linear layers (arXiv 2106.09685); nothing else is then trained."""

    where = "config.lora"

    rank: int = field(0, "Rank of the adapters; 0: none.", min=0)
    alpha: float = field(0.0, "Adapters are scaled by alpha / rank; 0: by 1.", min=0)
    targets: str = field(
        "attention|mlp",
        "Regular expression for the names of adapted layers, such as self_attention.q or mlp.up.",
    )
    base: tuple[str, ...] = field(
        (),
        "Adapters added to the weights of config.train.init_from before training, each PATH or PATH:STRENGTH; for "
        "one of two experts high=PATH or low=PATH.",
    )

    def check(self):
        try:
            re.compile(self.targets)
        except re.error as error:
            raise InputError(f"config.lora.targets: {self.targets!r} is no regular expression, {error}") from None

    def of(self, name: str) -> tuple[int, float] | None:
        """(rank, scale) of the adapter of the layer of this name, None if it has none."""
        if not self.rank or not re.search(self.targets, name):
            return None
        return self.rank, self.scale

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha else 1.0
