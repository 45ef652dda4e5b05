"""Samples for benchmarks: a video for each prompt, made once and kept as mp4.

Benchmarks read samples from these files, so that they measure what people see.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import rich.console
from jax.experimental import multihost_utils

from sora_jax.config.load import parse_size
from sora_jax.config.schema import MeshSettings, SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import as_path, remove_stale_temporaries
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.media.video import count_frames, probe, read_frames
from sora_jax.data.prepare.sources import find_sources
from sora_jax.evaluate.benchmark import Options, Subject, read_video
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.metrics.reconstruction import reconstruct
from sora_jax.evaluate.videos_under_test import VideosUnderTest
from sora_jax.generate.generator import latent_shape
from sora_jax.generate.output.writer import VideoWriter, write_webp
from sora_jax.generate.request import Request, TaskInputs
from sora_jax.generate.sample import sample
from sora_jax.generate.sampling.clips import Noise
from sora_jax.generate.sampling.pipeline import sample_latents
from sora_jax.models.autoencoder.streaming import decode_stream

CRF = 8  # of x264; low enough that the detector of the shapes world reads files as well as raw frames


def cells(checkpoint: Subject, options: Options) -> list[SampleSettings]:
    """The settings of samples, one "cell" for each size and length; none for videos made elsewhere.

    Raises: InputError for a size or length that the model can't make.
    """
    if isinstance(checkpoint, VideosUnderTest):
        return []
    own = checkpoint.settings.sample
    made = [
        dataclasses.replace(own, size=size, frames=frames)
        for size in options.sizes or (own.size,)
        for frames in options.frames or (own.frames,)
    ]
    for cell in made:
        latent_shape(checkpoint.settings, cell)
    return made


@dataclasses.dataclass(frozen=True)
class VideoSet:
    """Videos to measure, of one size and length if a model made them.

    Args:
      name: of the set, "WIDTHxHEIGHT, N frames", or "" for videos made elsewhere.
      stride: frames in a latent frame of the model; 1 if there is none.
      alone: whether the subject has no other set.
    """

    name: str
    prompts: list[str]
    paths: list[pathlib.Path]
    fps: float
    stride: int
    cell: SampleSettings | None = None
    alone: bool = True

    def keys(self) -> list[str]:
        """A key of each video for `benchmark.Sample`: its prompt, and how often that came before.

        Videos of one set are compared with those of another subject's whatever their sizes.
        """
        seen: collections.Counter = collections.Counter()
        made = []
        for prompt in self.prompts:
            made.append(f"{prompt} #{seen[prompt]}" if self.alone else f"{self.name}: {prompt} #{seen[prompt]}")
            seen[prompt] += 1
        return made


def video_sets(
    subject: Subject,
    options: Options,
    prompts_of: Callable[[SampleSettings], Sequence[str]],
    console,
) -> Iterator[VideoSet]:
    """The videos of a subject: those that a checkpoint makes of prompts, or those that lie in a folder.

    Args:
      prompts_of: settings of the samples -> a prompt for each.
    """
    if isinstance(subject, VideosUnderTest):
        paths = [subject.folder / name for name in subject.prompts]
        yield VideoSet("", list(subject.prompts.values()), paths, probe(paths[0]).fps or 1.0, 1)
        return
    asked = cells(subject, options)
    for cell in asked:
        prompts = list(prompts_of(cell))
        paths = make_samples(subject, options, prompts, cell, console)
        name = f"{cell.size}, {cell.frames} frames"
        stride = subject.settings.autoencoder.temporal_stride
        yield VideoSet(name, prompts, paths, cell.fps, stride, cell, len(asked) == 1)


def make_samples(
    checkpoint: CheckpointUnderTest, options: Options, prompts: Sequence[str], cell: SampleSettings, console
) -> list[pathlib.Path]:
    """Make a video file for each prompt; existing files are kept.

    Prompt n has the n-th noise of the seed whatever is sampled with it, so that more prompts only add files.
    """
    asked = {"seed": options.seed, "checkpoint": checkpoint.content_hash, **dataclasses.asdict(cell)}
    folder = checkpoint.out / "samples" / f"{cell.size}-{cell.frames}-{digest(asked)}"
    paths = [folder / f"{n:05}-{digest(prompt)}.mp4" for n, prompt in enumerate(prompts)]
    make_missing(checkpoint, options, list(prompts), paths, cell, console)
    return paths


def is_intact(path: pathlib.Path) -> bool:
    """Whether a video exists and all of it can be read."""
    if not path.exists():
        return False
    try:
        read_video(path)
    except InputError:
        return False
    return True


def make_missing(
    checkpoint: CheckpointUnderTest,
    options: Options,
    prompts: list[str],
    paths: list[pathlib.Path],
    cell: SampleSettings,
    console,
):
    """Make the missing and damaged files of prompts in their order; each appears when it is complete."""
    remove_stale_temporaries(paths[0].parent)
    # The first host decides, as it writes the files.
    mine = [not is_intact(path) for path in paths] if jax.process_index() == 0 else [False] * len(paths)
    missing = multihost_utils.broadcast_one_to_all(np.asarray(mine, bool))
    rows = _rows()
    groups = [first for first in range(0, len(prompts), rows) if np.any(missing[first : first + rows])]
    sampler = options.sampler or _sampler(checkpoint, options.seed)
    with progress_bar(console) as bar:
        total = sum(len(prompts[first : first + rows]) for first in groups)
        task = bar.add_task(f"{checkpoint.name}: samples", total=total, numbers="")
        for first in groups:
            group = prompts[first : first + rows]
            for n, video in enumerate(sampler(group, cell, first), start=first):
                if jax.process_index() == 0 and missing[n]:
                    about = {
                        "prompt": prompts[n],
                        "seed": options.seed,
                        "number": n,
                        "checkpoint_step": checkpoint.step,
                    }
                    with VideoWriter(
                        paths[n], cell.fps, metadata=about | dataclasses.asdict(cell), crf=CRF
                    ) as file:
                        file.write(video)
                bar.advance(task)


def sample_by_command(
    checkpoint: CheckpointUnderTest,
    prompt: str,
    path: pathlib.Path,
    cell: SampleSettings,
    inputs: TaskInputs,
    *,
    seed: int,
    **options,
):
    """Make a video with the command `sample`, unless it exists; options: further arguments of `sample`."""
    if not multihost_utils.broadcast_one_to_all(np.asarray(not is_intact(path))):
        return
    sample(
        checkpoint.workdir,
        Request((prompt,), inputs, seed, changes={**checkpoint.changes, "size": cell.size, "frames": cell.frames}),
        path,
        mesh=MeshSettings(**jax.sharding.get_mesh().shape),
        console=rich.console.Console(quiet=True),
        generator=checkpoint.generator,
        **options,
    )


def _rows() -> int:
    """Number of videos that the mesh makes at a time."""
    shape = jax.sharding.get_mesh().shape
    return shape.get("data", 1) * shape.get("fsdp", 1)


def _sampler(checkpoint, seed):
    """A Sampler of the checkpoint."""

    def make(prompts, cell, first):
        generator, padded = checkpoint.generator, prompts + [prompts[-1]] * (_rows() - len(prompts))
        latents = sample_latents(generator, padded, cell, Noise(seed, first))
        for number in range(len(prompts)):
            made = decode_stream(generator.autoencoder_params, generator.autoencoder, latents[number])
            yield np.concatenate(list(made))

    return make


def records_of(checkpoint: CheckpointUnderTest, options: Options) -> Mixture:
    """The data that a transformer is evaluated on."""
    data = checkpoint.settings.data
    return Mixture(options.data or data.path, data.kind, where="--data")


def captions_of(checkpoint: Subject, options: Options) -> list[str]:
    """The prompts of the options, or the captions of the held-out clips; those of videos made elsewhere.

    Raises: InputError if there are none.
    """
    if isinstance(checkpoint, VideosUnderTest):
        return list(checkpoint.prompts.values())
    if options.prompts:
        return list(options.prompts)
    records = records_of(checkpoint, options)
    found = [clip.captions[0] for clip in records.clips("validation") if clip.captions]
    if not found:
        raise InputError(f"{records.path}: its held-out clips have no captions; give --prompts=FILE")
    return found


def repeat_prompts(prompts: Sequence[str], count: int) -> list[str]:
    """`count` prompts: the given ones, repeated if there are fewer."""
    return [prompts[n % len(prompts)] for n in range(count)]


def real_videos(checkpoint: Subject, options: Options, cell: SampleSettings, count: int) -> Iterator[np.ndarray]:
    """At most `count` real videos of the samples' size and length, [F, H, W, 3] uint8.

    They are pieces of the videos of --videos, or the held-out clips through the checkpoint's autoencoder.
    """
    H, W = size_of(cell)
    if options.videos:
        pieces = _pieces(options.videos, (H, W), cell)
    elif isinstance(checkpoint, VideosUnderTest):
        raise InputError("--videos: name a folder of real videos; those made elsewhere have no data set")
    else:
        records = records_of(checkpoint, options)
        wanted = (cell.frames, H, W)
        clips = enumerate(records.clips("validation"))
        fit = [n for n, clip in clips if (clip.frames, clip.height, clip.width) == wanted]
        if not fit:
            raise InputError(
                f"{records.path}: no held-out clip of {cell.size} and {cell.frames} frames; see --videos"
            )
        coder = checkpoint.generator.autoencoder_params, checkpoint.generator.autoencoder

        def shown(record):
            if records.about["kind"] == "pixels":
                return reconstruct(*coder, record)
            return np.concatenate(list(decode_stream(*coder, record.astype(np.float32))))

        pieces = (shown(records.read("validation", n)) for n in fit)
    for _, piece in zip(range(count), pieces, strict=False):
        yield piece


def _pieces(folder, size, cell):
    for source in find_sources(as_path(folder)).sources:
        with source.opened() as path:
            video = probe(path)
            for start in range(0, count_frames(video, cell.fps) - cell.frames + 1, cell.frames):
                frames = read_frames(video, [size], fps=cell.fps, start=start, frames=cell.frames)
                yield np.stack([made for (made,) in frames])


def write_preview(out: pathlib.Path, video: str, frames: np.ndarray, fps: float, prompt: str) -> str:
    """Write an animated WebP of a video for browsers that can't play it. Returns: its path, relative to `out`.

    Args:
      video: relative to `out`; the preview of one outside of it is in `out` itself.
      frames: of the video, [F, H, W, 3] uint8.
    """
    inside = not video.startswith("..")
    path = out / video if inside else out / "previews" / f"{digest(video)}.mp4"
    path = path.with_suffix(".webp")
    scale = max(1, 192 // max(frames.shape[1:3]))
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    write_webp(path, large, fps, metadata={"prompt": prompt})
    return str(path.relative_to(out))


def size_of(cell: SampleSettings) -> tuple[int, int]:
    """(H, W) of the samples."""
    size = parse_size(cell.size, "--size")
    return (size, size) if isinstance(size, int) else size


def digest(value) -> str:
    """8 hex digits that change with whatever JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
