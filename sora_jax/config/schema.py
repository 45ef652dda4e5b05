"""Typed settings: what a run needs to know, with its defaults, and what of it can be.

Sizes for people are strings, "WIDTHxHEIGHT" or one number for "any aspect ratio with this number's square of
pixels".
"""

import dataclasses
import math
import re

from sora_jax.core.errors import InputError, did_you_mean

# The least of each whole number, where it is not 1; then what is from 0 to 1, what is above 0, what is 0 or more.
_LEAST = {"data": -1, "fsdp": -1, "ulysses": -1, "tensor": -1, "ring": -1}
_LEAST |= dict.fromkeys(("condition_channels", "image_width", "image_positions", "time_quantization", "rank"), 0)
_LEAST |= dict.fromkeys(("times_per_sequence", "shuffle_seed", "seed", "warmup_steps", "adversarial_start"), 0)
_LEAST |= dict.fromkeys(("keep_every", "sample_every", "sample_seed"), 0)
_SHARES = ("caption_dropout", "image_share", "validation", "final_fraction", "b1", "b2", "ema_decay")
_SHARES += ("time_min", "time_max", "ghosts", "forcing", "noise", "guidance_min", "guidance_max")
_POSITIVE = ("fps", "epsilon", "clip_norm", "muon_rms", "shift_scale", "rotary_base")
_NOT_NEGATIVE = (
    "shift",
    "skip",
    "alpha",
    "time_std",
    "mse",
    "kl",
    "perceptual",
    "adversarial",
    "learning_rate",
    "weight_decay",
    "spike",
)
CONDITIONING_TASKS = (
    "text",
    "first_frame",
    "last_frame",
    "first_last",
    "prefix",
    "suffix",
    "prefix_suffix",
    "random_frames",
    "inpaint",
    "outpaint",
)
_NOT_NEGATIVE += CONDITIONING_TASKS
_DTYPES = ("bfloat16", "float32")


def _check_ranges(settings, where):
    """Raise InputError for a number or a dtype that no run could use."""
    for key, value in dataclasses.asdict(settings).items():
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) is int and item < _LEAST.get(key, 1):
                raise InputError(f"{where}.{key}: {value}, but at least {_LEAST.get(key, 1)} is needed")
            if type(item) is float and not math.isfinite(item):
                raise InputError(f"{where}.{key}: {value} is no finite number")
        if key in _SHARES and not 0 <= value <= 1:
            raise InputError(f"{where}.{key}: {value} is no share, from 0 to 1")
        if key in _POSITIVE and value <= 0:
            raise InputError(f"{where}.{key}: {value} must be above 0")
        if key in _NOT_NEGATIVE and value < 0:
            raise InputError(f"{where}.{key}: {value} is below 0")
        # Where the default is none of them, it stands for a type that is named elsewhere.
        if key == "dtype" and value not in (*_DTYPES, type(settings).dtype):
            raise InputError(f"{where}.dtype: {value!r}? {did_you_mean(value, _DTYPES)}")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh axes; one of them may be -1: what is left."""

    data: int = -1
    fsdp: int = 1
    ulysses: int = 1  # Ulysses: ulysses x tensor divides the heads
    tensor: int = 1
    ring: int = 1  # ring attention: no limit; tokens lie over ring x ulysses


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What `prepare` cuts, and how the stream packs it."""

    path: str = ""  # a data set written by `prepare`, or several with weights: "data/films:3,data/shapes:1"
    fps: float = 16.0
    sizes: tuple[str, ...] = ("256",)  # every clip is cut at each of them
    frames: tuple[int, ...] = (81, 17, 1)  # lengths, the longest that fits first; each 4n + 1
    batch: int = 8  # rows (transformer) or clips (autoencoder) a step, over all hosts
    sequence_length: int = 8192  # N, patches in a row
    text_length: int = 1024  # S, text tokens in a row
    clips_per_sequence: int = 16  # at most this many clips in a row
    autoencoder: str = ""  # its folder or workdir: `path` holds pixels, which the training step encodes with it
    embeddings: bool = False  # take the captions as `prepare --text-encoder` embedded them: no encoder in the step
    caption_dropout: float = 0.1  # share of captions emptied, for guidance
    crop_frames: int = 17  # what the autoencoder sees of a clip
    crop_size: str = "64x64"
    image_share: float = 0.0  # of the autoencoder's steps: as many single frames instead, pictures among them
    validation: float = 0.05  # share of the sources held out, by hash of the source
    threads: int = 4
    shuffle_seed: int = 0

    @property
    def kind(self) -> str:
        """What the records hold that a transformer is trained on."""
        return "pixels" if self.autoencoder else "latents"


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """What of a clip is given in training: a weight for each kind of mask, and how noisy what is given is."""

    text: float = 1.0
    first_frame: float = 0.0  # frame
    last_frame: float = 0.0
    first_last: float = 0.0  # the first and the last frame
    prefix: float = 0.0  # any number of frames
    suffix: float = 0.0
    prefix_suffix: float = 0.0  # a prefix and a suffix
    random_frames: float = 0.0  # any frames
    inpaint: float = 0.0  # of a rectangle, in all frames: inpainting
    outpaint: float = 0.0  # of a rectangle: outpainting
    noise: float = 0.0  # time of what is given, in training and sampling
    forcing: float = 0.0  # share of the clips whose frames have a time each (diffusion forcing)
    times_per_sequence: int = 0  # times of a row for such frames; a clip for which too few are left has one time
    guided: bool = True  # in sampling: guidance strengthens what is given beside the prompt, not the prompt alone

    def __post_init__(self):
        if not any(getattr(self, kind) for kind in CONDITIONING_TASKS):
            raise InputError("config.masks: all weights are 0; config.masks.text=1 is text to video")
        if self.forcing and not self.times_per_sequence:
            raise InputError("config.masks.forcing: needs times for the frames, config.masks.times_per_sequence")


@dataclasses.dataclass(frozen=True)
class AutoencoderSettings:
    """A causal video autoencoder in Wan's form; the defaults are Wan 2.1's sizes."""

    width: int = 96  # channels of the encoder's first level
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # one a level
    blocks: int = 2  # residual blocks a level in the encoder; the decoder has one more
    temporal: tuple[bool, ...] = (False, True, True)  # which of the downsamplings halve time as well
    latent_channels: int = 16
    patch: int = 1  # pixels folded into channels before the first convolution (Wan 2.2: 2)
    shortcuts: bool = False  # parameter-free shortcuts around each level (Wan 2.2)
    latent_mean: tuple[float, ...] = ()  # per channel; empty: 0. Latents leave as (mu - mean) / std
    latent_std: tuple[float, ...] = ()
    dtype: str = "bfloat16"

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal)

    @property
    def spatial_stride(self) -> int:
        return self.patch * 2 ** len(self.temporal)


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """A text encoder in UMT5's form; the defaults are UMT5-XXL's sizes."""

    vocabulary: int = 256384
    width: int = 4096  # E
    heads: int = 64
    head_dim: int = 64
    mlp: int = 10240
    layers: int = 24
    buckets: int = 32  # of relative positions
    max_distance: int = 128
    max_tokens: int = 512  # of one caption; the rest is cut
    padded: bool = False  # every caption is filled up to max_tokens, with embeddings 0 that are attended to (Wan)
    weights: str = ""  # a folder of transformers' UMT5, which then stays as it is; empty: the encoder is trained
    dtype: str = "bfloat16"


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """An image encoder in CLIP's form, for image-to-video; the defaults are ViT-H/14's sizes."""

    width: int = 1280  # E
    heads: int = 16
    mlp: int = 5120
    layers: int = 31  # of the 32 published: Wan takes what enters the last one
    patch: int = 14
    size: int = 224  # pixels, of a square
    weights: str = ""  # a folder of transformers' CLIPVisionModel, which stays as it is
    dtype: str = "bfloat16"

    @property
    def tokens(self) -> int:
        """Of an image: one for the whole and one for each patch."""
        return 1 + (self.size // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class TransformerSettings:
    """A diffusion transformer in Wan's form; the defaults are Wan 2.1 1.3B's sizes."""

    patch: tuple[int, int, int] = (1, 2, 2)  # frames, rows, columns of latents in a patch
    channels: int = 16  # of the latents
    condition_channels: int = 0  # beside the noise; image-to-video: a mask for each frame, then latents; 0: none
    image_width: int = 0  # of an image encoder's features that are attended to as well; 0: of none
    image_positions: int = 0  # length of their learned positions, of the first and the last frame; 0: none
    text_width: int = 4096  # E
    width: int = 1536  # D
    heads: int = 12
    mlp: int = 8960
    layers: int = 30
    frequencies: int = 256  # width of the sinusoid of time
    rotary_base: float = 10000.0  # of the frequencies of rotary positions: a small one tells near places apart
    # What its output is: velocity (Wan), or data, which a narrow model learns sooner where patches have many
    # channels, as noise fills all of them (arXiv 2511.13720).
    predicts: str = "velocity"
    attention: str = "auto"  # auto, xla (holds all logits), chunked, splash (on TPU), cudnn (on GPU)
    remat: str = "full"  # what a layer keeps for the backward pass: see models.layers.POLICIES
    unroll: int = 1  # layers in one turn of the compiled loop; all: none, fastest on a CPU, compiles longer
    dtype: str = "bfloat16"


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters of the transformer's linear layers (arXiv 2106.09685): they learn, nothing else does."""

    rank: int = 0  # 0: no adapters
    alpha: float = 0.0  # adapters count alpha / rank; 0: once
    targets: str = (
        "attention|mlp"  # regular expression for names such as self_attention.q, cross_attention.out, mlp.up
    )

    def __post_init__(self):
        try:
            re.compile(self.targets)
        except re.error as error:
            raise InputError(f"config.lora.targets: {self.targets!r} is no regular expression, {error}") from None

    def of(self, name: str) -> tuple[int, float] | None:
        """(rank, scale) of the adapter of a layer, None if it has none."""
        if not self.rank or not re.search(self.targets, name):
            return None
        return self.rank, self.scale

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha else 1.0


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """Rectified flow: times are sigmoid(normal(mean, std)), then shifted towards noise."""

    time_mean: float = 0.0
    time_std: float = 1.0
    shift: float = 0.0  # 0: by the clip's size, else this factor for all (see diffusion.flow.shift_of)
    shift_scale: float = 1.0  # of the shift by size: latents with more channels show through more noise
    time_min: float = 0.0  # an expert learns the times from here
    time_max: float = 1.0  # to here
    ghosts: float = 0.0  # share of clips that show themselves twice through the noise (see data.echoes)
    time_quantization: int = (
        0  # when sampling, the model is told whole 1/n of the time, as it was trained (Wan: 1000)
    )


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The autoencoder's loss, of pixels in [-1, 1]: L1 and these weights times what they name."""

    mse: float = 0.0  # large errors count more: small objects on plain ground are learned sooner
    kl: float = 3e-6
    perceptual: float = 0.0  # LPIPS
    perceptual_weights: str = ""  # safetensors file of LPIPS with VGG-16
    adversarial: float = 0.0  # a discriminator's pull, as a share of that of the terms above
    adversarial_start: int = 0  # updates before it begins; the discriminator learns from the first
    discriminator_width: int = 64  # channels of its first layer


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW or Muon with warm-up, a constant or cosine schedule, and clipping by the global norm."""

    name: str = "adamw"  # adamw, muon
    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    schedule: str = "constant"  # constant, cosine
    final_fraction: float = 0.1  # of the learning rate, at the end of a cosine
    b1: float = 0.9
    b2: float = 0.99
    epsilon: float = 1e-8
    muon_rms: float = 0.2  # of Muon's update over the learning rate; 0.2: as large as AdamW's of the other weights
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    spike: float = 0.0  # clip gradients, too, at this many times the running mean of their norm; 0: never
    ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How long, how often."""

    init_from: str = ""  # a workdir, or an autoencoder's folder: begin with its averaged weights
    steps: int = 100_000
    accumulate: int = 1  # micro-batches a step
    log_every: int = 10
    save_every: int = 1000
    keep: int = 3  # last checkpoints kept
    keep_every: int = 0  # and those of every so many steps; 0: none
    bad_steps: int = 5  # updates in a row skipped for a loss or a gradient that is not finite, and the run stops
    seed: int = 0
    sample_every: int = 0  # steps between sample videos, made as config.sample says; 0: none
    sample_prompts: tuple[str, ...] = ()
    sample_seed: int = 0
    profile: str = ""  # "a:b": trace the steps from a to b

    def __post_init__(self):
        if bool(self.sample_every) != bool(self.sample_prompts):
            raise InputError("config.train.sample_every and config.train.sample_prompts: set both or neither")
        span = re.fullmatch(r"(\d+):(\d+)", self.profile)
        if self.profile and not (span and 1 <= int(span[1]) <= int(span[2])):
            raise InputError(f"config.train.profile: {self.profile!r}? write first:last step, for example 100:105")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Defaults of `sample` for this model."""

    size: str = "832x480"
    frames: int = 81
    fps: float = 16.0
    steps: int = 50
    solver: str = "euler"  # euler, heun, ancestral, dpm, unipc
    guidance: float = 5.0
    guidance_min: float = 0.0  # of the times at which a step is guided; elsewhere it costs half
    guidance_max: float = 1.0
    skip: float = 0.0  # steps while the velocity has moved by no more than this share of itself; 0: none
    shift: float = 0.0  # 0: by the clip's size
    dtype: str = ""  # that the models compute in; empty: each in that of its own settings

    def __post_init__(self):
        _check_ranges(self, "sample")
        if self.guidance_min > self.guidance_max:
            raise InputError(
                f"sample.guidance_min: {self.guidance_min} is above sample.guidance_max, {self.guidance_max}; "
                f"guidance 1 is none at all"
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run needs to know."""

    objective: str = "flow"  # what `train` trains: flow (the transformer), autoencoder
    mesh: MeshSettings = MeshSettings()
    data: DataSettings = DataSettings()
    masks: MaskSettings = MaskSettings()
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()
    transformer: TransformerSettings = TransformerSettings()
    lora: LoraSettings = LoraSettings()
    flow: FlowSettings = FlowSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings = TrainSettings()
    sample: SampleSettings = SampleSettings()

    def __post_init__(self):
        for group in dataclasses.fields(self):
            if dataclasses.is_dataclass(values := getattr(self, group.name)):
                _check_ranges(values, f"config.{group.name}")
        for ours, wanted in (("channels", "autoencoder.latent_channels"), ("text_width", "text.width")):
            group, key = wanted.split(".")
            value = getattr(getattr(self, group), key)
            if getattr(self.transformer, ours) != value:
                raise InputError(f"config.transformer.{ours}: must be config.{wanted}, which is {value}")
        if self.data.embeddings and not self.text.weights:
            raise InputError(
                "config.data.embeddings: of an encoder that stays as it is; config.text.weights names its folder"
            )
        if self.data.autoencoder:
            if self.objective != "flow":
                raise InputError("config.data.autoencoder: is for a transformer, config.objective=flow")
            if self.transformer.condition_channels or self.transformer.image_width:
                raise InputError(
                    "config.data.autoencoder: an image-to-video model is given what `prepare` encodes; `prepare` "
                    "with --autoencoder, and leave this one empty"
                )
        if self.transformer.width % self.transformer.heads:
            raise InputError(f"config.transformer.heads: must divide the width {self.transformer.width}")
        if 0 < self.optimizer.spike <= 1:
            raise InputError(f"config.optimizer.spike: {self.optimizer.spike} must be above 1, or 0 for none")
        if self.lora.rank and not self.train.init_from:
            raise InputError(
                "config.lora.rank: adapters of what? config.train.init_from names the workdir of a model"
            )
        for key, wanted, what in (
            (
                "condition_channels",
                self.autoencoder.temporal_stride + self.autoencoder.latent_channels,
                "the autoencoder's temporal stride and latent channels together",
            ),
            ("image_width", self.image.width, "config.image.width"),
            ("image_positions", 2 * self.image.tokens, "two of config.image's images"),
        ):
            if (value := getattr(self.transformer, key)) not in (0, wanted):
                raise InputError(f"config.transformer.{key}: {value}, but only 0 or {wanted} can be: {what}")
        if self.transformer.image_positions and not self.transformer.image_width:
            raise InputError("config.transformer.image_positions: of which image? image_width is 0")
        if bool(self.transformer.image_width) != bool(self.image.weights):
            raise InputError("config.transformer.image_width and config.image.weights: set both or neither")
        if self.flow.time_min >= self.flow.time_max:
            raise InputError(f"config.flow.time_min: must be below config.flow.time_max, {self.flow.time_max}")
        loss = self.loss
        if bool(loss.perceptual) != bool(loss.perceptual_weights):
            raise InputError("config.loss.perceptual and config.loss.perceptual_weights: set both or neither")
        if loss.adversarial_start and not loss.adversarial:
            raise InputError("config.loss.adversarial_start: there is no config.loss.adversarial that would start")
        for where, value, known in (
            ("objective", self.objective, ("flow", "autoencoder")),
            ("transformer.attention", self.transformer.attention, ("auto", "xla", "chunked", "splash", "cudnn")),
            (
                "transformer.remat",
                self.transformer.remat,
                ("full", "save_attention", "save_products", "offload", "none"),
            ),
            ("transformer.predicts", self.transformer.predicts, ("velocity", "data")),
            ("optimizer.name", self.optimizer.name, ("adamw", "muon")),
            ("optimizer.schedule", self.optimizer.schedule, ("constant", "cosine")),
            ("sample.solver", self.sample.solver, ("euler", "heun", "ancestral", "dpm", "unipc")),
        ):
            if value not in known:
                raise InputError(f"config.{where}: {value!r}? {did_you_mean(value, known)}")
