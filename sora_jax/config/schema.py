"""Settings of a run: groups of declared fields, and the checks across groups.

Sizes are strings, "WIDTHxHEIGHT", or one number for any aspect ratio with this number squared of pixels.
"""

import dataclasses

from sora_jax.config.fields import Group, field
from sora_jax.config.models import (
    AutoencoderSettings,
    ImageSettings,
    LoraSettings,
    TextSettings,
    TransformerSettings,
)
from sora_jax.config.refining import RefineSettings
from sora_jax.config.training import (
    DataSettings,
    DistillSettings,
    FlowSettings,
    LossSettings,
    MaskSettings,
    MeshSettings,
    OptimizerSettings,
    SampleSettings,
    TrainSettings,
)
from sora_jax.core.errors import InputError

DISTILLATIONS = ("guidance_distillation", "moment_matching")
REFINE = "refine"


@dataclasses.dataclass(frozen=True)
class Settings(Group):
    """All settings of a run."""

    where = "config"

    objective: str = field(
        "flow",
        "What is trained: flow, a transformer; guidance_distillation or moment_matching, a transformer that "
        "learns from another one; refine, a transformer that makes videos larger and sharper; or autoencoder.",
        choices=("flow", *DISTILLATIONS, REFINE, "autoencoder"),
    )
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    masks: MaskSettings = dataclasses.field(default_factory=MaskSettings)
    autoencoder: AutoencoderSettings = dataclasses.field(default_factory=AutoencoderSettings)
    text: TextSettings = dataclasses.field(default_factory=TextSettings)
    image: ImageSettings = dataclasses.field(default_factory=ImageSettings)
    transformer: TransformerSettings = dataclasses.field(default_factory=TransformerSettings)
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)
    flow: FlowSettings = dataclasses.field(default_factory=FlowSettings)
    distill: DistillSettings = dataclasses.field(default_factory=DistillSettings)
    refine: RefineSettings = dataclasses.field(default_factory=RefineSettings)
    loss: LossSettings = dataclasses.field(default_factory=LossSettings)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    sample: SampleSettings = dataclasses.field(default_factory=SampleSettings)

    def check(self):
        for key, wanted, value in (
            ("channels", "autoencoder.latent_channels", self.autoencoder.latent_channels),
            ("text_width", "text.width", self.text.width),
        ):
            if getattr(self.transformer, key) != value:
                raise InputError(f"config.transformer.{key}: must be config.{wanted}, which is {value}")
        self._check_data()
        self._check_image()
        if self.lora.rank and not self.train.init_from:
            raise InputError("config.lora.rank: needs config.train.init_from, the workdir of the model to adapt")

        if self.objective in DISTILLATIONS:
            self._check_distillation()
        if self.objective == REFINE:
            self._check_refiner()

    def _check_refiner(self):
        """A refiner is given latents beside the noise, which are made of pixels in the step."""
        if not self.data.autoencoder:
            raise InputError("config.data.autoencoder: a refiner's pairs are encoded in the step; name its folder")
        if not self.transformer.condition_channels:
            wanted = self.autoencoder.temporal_stride + self.autoencoder.latent_channels
            raise InputError(f"config.transformer.condition_channels: must be {wanted} for a refiner")
        for key, value in (
            ("transformer.image_width", self.transformer.image_width),
            ("flow.ghosts", self.flow.ghosts),
            ("masks.forcing", self.masks.forcing),
        ):
            if value:
                raise InputError(f"config.{key}: must be off for a refiner")

    def _check_distillation(self):
        if not self.train.init_from:
            raise InputError(f"config.objective: {self.objective} needs config.train.init_from, the teacher")
        for key, value, why in (
            ("lora.rank", self.lora.rank, "the student is a whole model"),
            ("data.embeddings", self.data.embeddings, "the teacher also reads the empty caption"),
            ("flow.ghosts", self.flow.ghosts, "the teacher has learned to remove them"),
        ):
            if value:
                raise InputError(f"config.{key}: must be off for {self.objective}: {why}")

    def _check_data(self):
        if self.data.embeddings and not self.text.weights:
            raise InputError("config.data.embeddings: needs config.text.weights, the encoder that made them")
        if not self.data.autoencoder:
            return
        if self.objective == "autoencoder":
            raise InputError("config.data.autoencoder: is for a transformer, not for config.objective=autoencoder")
        if self.objective != REFINE and (self.transformer.condition_channels or self.transformer.image_width):
            raise InputError(
                "config.data.autoencoder: image-to-video models need latents in the data set; run `prepare` with "
                "--autoencoder, and leave this empty"
            )

    def _check_image(self):
        """What an image-to-video transformer is given fits the autoencoder and the image encoder."""
        for key, wanted, what in (
            (
                "condition_channels",
                self.autoencoder.temporal_stride + self.autoencoder.latent_channels,
                "the autoencoder's temporal stride plus its latent channels",
            ),
            ("image_width", self.image.width, "config.image.width"),
            ("image_positions", 2 * self.image.tokens, "two of config.image's images"),
        ):
            if (value := getattr(self.transformer, key)) not in (0, wanted):
                raise InputError(f"config.transformer.{key}: {value}, but it must be 0 or {wanted}, {what}")
        if bool(self.transformer.image_width) != bool(self.image.weights):
            raise InputError("config.transformer.image_width and config.image.weights: set both or neither")
