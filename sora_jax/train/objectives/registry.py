"""The training objectives by name, and what each one has to define."""

from typing import Protocol

from sora_jax.checkpoint.model_folder import autoencoder_folder, load_settings
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.train.objectives.autoencoder import AutoencoderObjective
from sora_jax.train.objectives.distillation import GuidanceDistillation, MomentMatching
from sora_jax.train.objectives.flow import FlowObjective
from sora_jax.train.objectives.refiner import RefinerObjective


class Objective(Protocol):
    """What is trained: parameters, random draws and loss. Static and hashable.

    Attributes:
      axes: logical axes of a batch's leading dimensions.
      unit: what throughput is counted in.
    """

    axes: str
    unit: str

    @property
    def settings(self) -> Settings:
        """The settings of the run."""

    @property
    def players(self) -> tuple[str, ...]:
        """Top-level groups of parameters with a loss each, whose gradients are clipped apart; () for one loss."""

    @property
    def rates(self) -> dict[str, float]:
        """Factor of each player's learning rate, if one of them learns in each update; {}: all learn in all."""

    def init(self, key) -> dict:
        """New parameters, float32 nested dicts. Args: key: of the seed."""

    def frozen_params(self) -> dict:
        """Parameters that the loss needs and training does not change, read from files, on the current mesh."""

    def place(self, batch):
        """This process's batch (numpy) as global arrays."""

    def work(self, batch) -> tuple[int, float]:
        """(units, model FLOPs) of this process's batch; NaN where FLOPs are not counted."""

    def draw(self, key, batch, step):
        """All that the loss needs besides parameters and batch, random or a function of `step`; leading axis B.

        Args:
          key: of the seed.
          step: number of updates done.
        """

    def loss(self, params: dict, frozen_params: dict, batch, drawn) -> tuple:
        """(sum of the loss, its weight, further sums by name).

        Deterministic, so that splitting the batch into micro-batches does not change the update.
        """


def make_objective(settings: Settings, autoencoder: AutoencoderSettings | None = None) -> Objective:
    """The objective that `settings.objective` names.

    Args:
      autoencoder: settings of the one that encodes in the step; None: those in the folder data.autoencoder.
    """
    if settings.objective == "autoencoder":
        return AutoencoderObjective(settings)
    folder = settings.data.autoencoder
    # The stored settings, not the config's: they hold the latents' statistics.
    stored = None
    if folder:
        stored = autoencoder or load_settings(autoencoder_folder(folder), AutoencoderSettings)
    objectives = {
        "flow": FlowObjective,
        "refine": RefinerObjective,
        "guidance_distillation": GuidanceDistillation,
        "moment_matching": MomentMatching,
    }
    return objectives[settings.objective](settings, stored)
