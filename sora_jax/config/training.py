"""Settings of data, training and sampling."""

import dataclasses
import re

from sora_jax.config.fields import DTYPES, Group, field
from sora_jax.core.errors import InputError

# Grids of times, by the scheduler that has them: see diffusion/time_grids.py.
TIME_GRIDS = ("linear", "wan_unipc", "wan_dpm", "diffusers_unipc", "diffusers_dpm", "diffusers_euler")
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


@dataclasses.dataclass(frozen=True)
class MeshSettings(Group):
    """Sizes of the axes of the device mesh; one of them may be -1: all devices that the others leave."""

    where = "config.mesh"

    data: int = field(
        -1, "Data parallelism: the batch is sharded, weights are replicated.", unit="devices", min=-1
    )
    fsdp: int = field(1, "Fully sharded data parallelism: batch and weights are sharded.", unit="devices", min=-1)
    ulysses: int = field(
        1,
        "Context parallelism by all-to-all (Ulysses); ulysses x tensor must divide the heads.",
        unit="devices",
        min=-1,
    )
    tensor: int = field(1, "Tensor parallelism: heads and MLP are sharded.", unit="devices", min=-1)
    ring: int = field(
        1,
        "Context parallelism by ring attention, for any number of heads; tokens are sharded over ring x ulysses.",
        unit="devices",
        min=-1,
    )


@dataclasses.dataclass(frozen=True)
class DataSettings(Group):
    """How `prepare` cuts videos into clips, and how training packs the clips."""

    where = "config.data"

    path: str = field("", "Data sets made by `prepare`, several with weights: data/films:3,data/shapes:1.")
    fps: float = field(16.0, "Frame rate of the clips.", unit="frames/s", above=0)
    sizes: tuple[str, ...] = field(
        ("256",),
        "Sizes of the clips: WIDTHxHEIGHT, or one number for any aspect ratio with this number squared of pixels; "
        "every clip is cut at each.",
        unit="pixels",
    )
    frames: tuple[int, ...] = field(
        (81, 17, 1),
        "Lengths of the clips, the longest that fits first; each a multiple of the temporal stride plus 1.",
        unit="frames",
        min=1,
    )
    batch: int = field(
        8, "Packed sequences (transformer) or clips (autoencoder) in a step, over all hosts.", min=1
    )
    sequence_length: int = field(8192, "Length of a packed sequence (N).", unit="patches", min=1)
    text_length: int = field(1024, "Length of the text of a packed sequence (S).", unit="tokens", min=1)
    clips_per_sequence: int = field(16, "Maximum number of clips in a packed sequence.", unit="clips", min=1)
    autoencoder: str = field(
        "",
        "Folder or workdir of an autoencoder: `path` holds pixels, which the training step encodes with it; "
        "empty: `path` holds latents.",
    )
    embeddings: bool = field(
        False, "Use the text embeddings of `prepare --text-encoder`; the step then runs no text encoder."
    )
    caption_dropout: float = field(0.1, "Share of captions emptied, for classifier-free guidance.", min=0, max=1)
    crop_frames: int = field(17, "Length of the crops that an autoencoder is trained on.", unit="frames", min=1)
    crop_size: str = field(
        "64x64",
        "Size of the crops that an autoencoder or a refiner is trained on, WIDTHxHEIGHT.",
        unit="pixels",
    )
    image_share: float = field(
        0.0,
        "Share of an autoencoder's steps that train on as many single frames, pictures included.",
        min=0,
        max=1,
    )
    background: tuple[int, int, int] = field(
        (0, 0, 0), "Red, green and blue behind transparent pixels of pictures and videos.", min=0, max=255
    )
    deinterlace: bool = field(True, "Deinterlace the frames of videos that are flagged as interlaced.")
    max_gap: float = field(
        1.0,
        "Longest time between two frames of a clip (at least 4 frame periods); a video with a longer one is cut "
        "there.",
        unit="s",
        above=0,
    )
    validation: float = field(
        0.05, "Share of the source videos held out, chosen by the hash of the source.", min=0, max=1
    )
    threads: int = field(4, "Threads that decode and read.", min=1)
    shuffle_seed: int = field(0, "Seed for the order of the clips.", min=0)

    @property
    def kind(self) -> str:
        """The kind of records that a transformer is trained on."""
        return "pixels" if self.autoencoder else "latents"


@dataclasses.dataclass(frozen=True)
class MaskSettings(Group):
    """Conditioning: how often each conditioning task is trained, relative to the others, and how noisy it is."""

    where = "config.masks"

    text: float = field(1.0, "Weight of clips without conditioning frames: text to video.", min=0)
    first_frame: float = field(0.0, "Weight of clips with their first frame given.", min=0)
    last_frame: float = field(0.0, "Weight of clips with their last frame given.", min=0)
    first_last: float = field(0.0, "Weight of clips with their first and last frame given.", min=0)
    prefix: float = field(0.0, "Weight of clips with any number of first frames given.", min=0)
    suffix: float = field(0.0, "Weight of clips with any number of last frames given.", min=0)
    prefix_suffix: float = field(0.0, "Weight of clips with first and last frames given.", min=0)
    random_frames: float = field(0.0, "Weight of clips with any frames given.", min=0)
    inpaint: float = field(0.0, "Weight of clips given outside of a rectangle, in all frames.", min=0)
    outpaint: float = field(0.0, "Weight of clips given inside of a rectangle, in all frames.", min=0)
    noise: float = field(0.0, "Time (noise) of the conditioning frames, in training and sampling.", min=0, max=1)
    forcing: float = field(
        0.0, "Share of clips whose frames have a time each (diffusion forcing, arXiv 2407.01392).", min=0, max=1
    )
    times_per_sequence: int = field(
        0, "Times in a packed sequence for such clips; a clip for which too few are left has one time.", min=0
    )
    guided: bool = field(
        True,
        "In sampling, guidance strengthens conditioning frames as well as the prompt; False: the prompt only.",
    )

    def check(self):
        if not any(getattr(self, task) for task in CONDITIONING_TASKS):
            raise InputError("config.masks: all weights are 0; config.masks.text=1 is text to video")
        if self.forcing and not self.times_per_sequence:
            raise InputError("config.masks.forcing: needs times for the frames, config.masks.times_per_sequence")


@dataclasses.dataclass(frozen=True)
class FlowSettings(Group):
    """Rectified flow: times are sigmoid(normal(mean, std)), then shifted towards noise."""

    where = "config.flow"

    time_mean: float = field(0.0, "Mean of the normal distribution of times.")
    time_std: float = field(1.0, "Standard deviation of the normal distribution of times.", min=0)
    negative_prompt: str = field("", "Description of what the video should not show.")
    shift: float = field(0.0, "Shift of times towards noise; 0: by the size of the clip.", min=0)
    shift_scale: float = field(
        1.0, "Factor of the shift by size: latents with more channels need more noise.", above=0
    )
    time_min: float = field(0.0, "Lowest time trained, for an expert of a part of the times.", min=0, max=1)
    time_max: float = field(1.0, "Highest time trained.", min=0, max=1)
    ghosts: float = field(
        0.0,
        "Share of clips with a faint second copy of themselves under the noise (ghost augmentation).",
        min=0,
        max=1,
    )
    time_quantization: int = field(
        0,
        "In sampling, the model is given times rounded down to multiples of 1/n, as in Wan (1000); 0: exact.",
        min=0,
    )

    def check(self):
        if self.time_min >= self.time_max:
            raise InputError(f"config.flow.time_min: must be below config.flow.time_max, {self.time_max}")


@dataclasses.dataclass(frozen=True)
class DistillSettings(Group):
    """Distillation of the model of `train.init_from`, the teacher."""

    where = "config.distill"

    guidance: float = field(1.0, "Guidance scale of the teacher, which the student learns; 1: none.", min=0)
    guidance_min: float = field(0.0, "Lowest noise time at which the teacher is guided.", min=0, max=1)
    guidance_max: float = field(1.0, "Highest noise time at which the teacher is guided.", min=0, max=1)
    steps: int = field(8, "Steps for which a student of moment_matching is trained.", min=1)
    off_grid: float = field(
        0.25,
        "Share of noise times off the grid of these steps, so that edits may start anywhere.",
        min=0,
        max=1,
    )
    critic_rate: float = field(1.0, "Learning rate of the critic, as a multiple of the student's.", above=0)


@dataclasses.dataclass(frozen=True)
class LossSettings(Group):
    """The autoencoder's loss on pixels in [-1, 1]: L1, plus each of these terms times its weight."""

    where = "config.loss"

    mse: float = field(
        0.0, "Weight of the squared error: small objects on plain ground are learned sooner.", min=0
    )
    kl: float = field(3e-6, "Weight of the KL divergence of the latents from a standard normal.", min=0)
    perceptual: float = field(0.0, "Weight of LPIPS.", min=0)
    perceptual_weights: str = field("", "File with the weights of LPIPS with VGG-16 (.safetensors).")
    adversarial: float = field(
        0.0, "Gradient of the discriminator's term, as a share of the gradient of the others.", min=0
    )
    adversarial_start: int = field(
        0, "Updates before the adversarial term counts; the discriminator is trained from the first.", min=0
    )
    discriminator_width: int = field(64, "Width of the discriminator's first layer.", unit="channels", min=1)

    def check(self):
        if bool(self.perceptual) != bool(self.perceptual_weights):
            raise InputError("config.loss.perceptual and config.loss.perceptual_weights: set both or neither")
        if self.adversarial_start and not self.adversarial:
            raise InputError("config.loss.adversarial_start: needs config.loss.adversarial, which is 0")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Group):
    """AdamW or Muon with warm-up, a schedule, and clipping by the global norm."""

    where = "config.optimizer"

    name: str = field("adamw", "Optimizer.", choices=("adamw", "muon"))
    learning_rate: float = field(1e-4, "Learning rate after the warm-up.", min=0)
    warmup_steps: int = field(1000, "Updates in which the learning rate rises from 0.", unit="updates", min=0)
    schedule: str = field(
        "constant",
        "Learning rate after the warm-up; wsd (warmup-stable-decay): constant, then linear over the last "
        "`decay_steps`.",
        choices=("constant", "cosine", "wsd"),
    )
    decay_steps: int = field(0, "Updates at the end of wsd in which the rate falls.", unit="updates", min=0)
    final_fraction: float = field(
        0.1, "Learning rate at the end of cosine and wsd, as a fraction of its maximum.", min=0, max=1
    )
    b1: float = field(0.9, "Decay of the mean of the gradient.", min=0, max=1)
    b2: float = field(0.99, "Decay of the mean of the squared gradient.", min=0, max=1)
    epsilon: float = field(1e-8, "Added to the root of the mean square.", above=0)
    muon_rms: float = field(
        0.2, "RMS of Muon's update, as a fraction of the learning rate; 0.2 is about that of AdamW's.", above=0
    )
    weight_decay: float = field(0.01, "Decoupled weight decay.", min=0)
    clip_norm: float = field(1.0, "Maximum global norm of the gradient.", above=0)
    spike: float = field(
        0.0, "Also clip at this many times the running mean of the gradient's norm; 0: never.", min=0
    )
    ema_decay: float = field(0.9999, "Decay of the moving average of the weights.", min=0, max=1)

    def check(self):
        if 0 < self.spike <= 1:
            raise InputError(f"config.optimizer.spike: {self.spike} must be above 1, or 0 for none")
        if (self.schedule == "wsd") != bool(self.decay_steps):
            raise InputError("config.optimizer.decay_steps: is for config.optimizer.schedule=wsd, which needs it")


@dataclasses.dataclass(frozen=True)
class TrainSettings(Group):
    """Length of the training, checkpoints, logs and samples."""

    where = "config.train"

    init_from: str = field("", "Workdir or model folder whose averaged weights training starts from.")
    steps: int = field(100_000, "Length of the training.", unit="updates", min=1)
    minutes: float = field(
        0.0,
        "Time budget over all starts of the run; at its end the run is saved and done, before `steps`; 0: none.",
        unit="minutes",
        min=0,
    )
    accumulate: int = field(1, "Micro-batches in an update.", min=1)
    log_every: int = field(10, "Interval of logged metrics.", unit="updates", min=1)
    save_every: int = field(1000, "Interval of checkpoints.", unit="updates", min=1)
    keep: int = field(3, "Number of latest checkpoints kept.", min=1)
    keep_every: int = field(0, "Also keep the checkpoints at multiples of this; 0: none.", unit="updates", min=0)
    eval_every: int = field(
        1000,
        "Interval of the loss on held-out clips, of the averaged weights, on at most 16 batches; 0: none.",
        unit="updates",
        min=0,
    )
    bad_steps: int = field(
        5,
        "Stop after this many successive updates with a loss or gradient that is not finite.",
        unit="updates",
        min=1,
    )
    seed: int = field(0, "Seed of weights, noise and times.", min=0)
    sample_every: int = field(
        0, "Interval of sample videos, made as config.sample says; 0: none.", unit="updates", min=0
    )
    sample_prompts: tuple[str, ...] = field((), "Prompts of the sample videos.")
    sample_seed: int = field(0, "Seed of the sample videos.", min=0)
    profile: str = field("", "Updates to trace with the JAX profiler, FIRST:LAST.")

    def check(self):
        if bool(self.sample_every) != bool(self.sample_prompts):
            raise InputError("config.train.sample_every and config.train.sample_prompts: set both or neither")
        span = re.fullmatch(r"(\d+):(\d+)", self.profile)
        if self.profile and not (span and 1 <= int(span[1]) <= int(span[2])):
            raise InputError(f"config.train.profile: {self.profile!r}? write FIRST:LAST, for example 100:105")


@dataclasses.dataclass(frozen=True)
class SampleSettings(Group):
    """Defaults of `sample` for this model."""

    where = "sample"

    size: str = field("832x480", "Size of the video, WIDTHxHEIGHT.", unit="pixels")
    frames: int = field(
        81,
        "Length of the video, a multiple of the temporal stride plus 1; 1: an image.",
        unit="frames",
        min=1,
    )
    fps: float = field(16.0, "Frame rate of the video.", unit="frames/s", above=0)
    steps: int = field(50, "Steps of the solver.", min=1)
    solver: str = field("euler", "Solver.", choices=("euler", "heun", "ancestral", "dpm", "unipc"))
    time_grid: str = field(
        "linear",
        "Times of the steps, before the shift: linear from 1 to 0, or those of a scheduler of Wan or diffusers.",
        choices=TIME_GRIDS,
    )
    guidance: float = field(5.0, "Scale of classifier-free guidance; 1: none, at half the cost.")
    guidance_low: float = field(
        0.0,
        "Guidance scale of the expert for low noise, of a model with two; 0: as that expert's own settings say.",
        min=0,
    )
    guidance_min: float = field(
        0.0, "Lowest time at which steps are guided; the others cost half as much.", min=0, max=1
    )
    guidance_max: float = field(1.0, "Highest time at which steps are guided.", min=0, max=1)
    step_cache_threshold: float = field(
        0.0,
        "Reuse the last prediction while the accumulated relative change of the velocity is below this; 0: never.",
        min=0,
    )
    negative_prompt: str = field("", "Description of what the video should not show.")
    shift: float = field(0.0, "Shift of times towards noise; 0: by the size of the video.", min=0)
    dtype: str = field(
        "", "Type that the models compute in; empty: each as its own settings say.", choices=("", *DTYPES)
    )

    def check(self):
        if self.guidance_min > self.guidance_max:
            raise InputError(
                f"sample.guidance_min: {self.guidance_min} is above sample.guidance_max, {self.guidance_max}; "
                f"guidance 1 is none at all"
            )
