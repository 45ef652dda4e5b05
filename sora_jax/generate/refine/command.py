"""The command `refine`: a video and a refiner -> the video larger, sharper, with more frames."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import rich.console

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import sha256
from sora_jax.data.media.colour import has_alpha, hdr_transfer
from sora_jax.data.media.options import Options
from sora_jax.data.media.video import Video, count_frames, probe, read_frames
from sora_jax.generate.output.audio import AudioTrack, audio_of
from sora_jax.generate.output.files import check_outputs, output_paths, write_video
from sora_jax.generate.output.provenance import params_hash
from sora_jax.generate.refine.refiner import Refiner, load_refiner
from sora_jax.generate.refine.stream import refined
from sora_jax.generate.refine.target import Target, named, target_of
from sora_jax.generate.sampling.pipeline import check_prompts


@dataclasses.dataclass(frozen=True)
class RefineRequest:
    """A video to refine.

    size: WIDTHxHEIGHT, from the video's own to four times it; "": as much larger as the refiner was trained for.
    fps: frames a second, a multiple of the video's up to four times it; None: the video's own.
    prompt: what the video shows; "": unknown.
    steps: of the solver; None: as the checkpoint says.
    noise: of the condition, in [0, 1]: more of it trusts the video less; None: as the checkpoint says.
    strength: noise time of the first step, in (0, 1]: more of it changes more; None: as the checkpoint says.
    back_projection: share of the video's low frequencies that the output keeps, in [0, 1].
    media: how the file is decoded, and the limits that hold meanwhile.
    """

    video: pathlib.Path
    size: str = ""
    fps: float | None = None
    prompt: str = ""
    seed: int = 0
    steps: int | None = None
    noise: float | None = None
    strength: float | None = None
    back_projection: float = 1.0
    watermark: str = ""
    media: Options = dataclasses.field(default_factory=Options)


def refine(
    checkpoint: pathlib.Path,
    request: RefineRequest,
    out: pathlib.Path,
    *,
    mesh: MeshSettings,
    console: rich.console.Console,
    refiner: Refiner | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> pathlib.Path:
    """The file of the refined video, whose sound is copied.

    Args:
      checkpoint: workdir of a refiner, or a release of one.
      out: an .mp4.
      refiner: the checkpoint's, if it is loaded already, on this mesh.
      on_progress: called with the frames that are done and their number in all.
    Raises: InputError for a checkpoint, video, size or rate that can't be used, before anything is written.
    """
    (path,) = output_paths(out, 1)
    if request.prompt:
        check_prompts([request.prompt])
    video = open_video(request.video, request.media, console)
    with jax.set_mesh(make_mesh(mesh)):
        refiner = refiner or load_refiner(checkpoint)
        refiner = changed(refiner, request)
        target = target_of(
            (video.height, video.width), video.fps, request.size, request.fps, refiner.settings.refine.scale
        )
        count = count_frames(video, video.fps or 1.0) * target.factor
        check_outputs([path], target.fps, count * target.size[0] * target.size[1])
        audio, note = audio_of(video)
        for line in (note, described(video, target)):
            if line:
                console.print(line, highlight=False, soft_wrap=True)
        metadata = metadata_of(refiner, target, request)
        with progress_bar(console) as bar:
            task = bar.add_task("refining", total=count, numbers="")

            def counted(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
                done = 0
                for chunk in chunks:
                    done += len(chunk)
                    bar.update(task, completed=done)
                    on_progress(done, count)
                    yield chunk

            frames = counted(refined_video(refiner, video, target, request))
            reason = written(path, frames, target.fps, metadata, request, audio)
    if reason:
        raise InputError(reason)
    console.print(f"{path}: {count} frames of {named(target.size)}", highlight=False, soft_wrap=True)
    return path


def metadata_of(refiner: Refiner, target: Target, request: RefineRequest) -> dict:
    """How a video was refined, for its metadata."""
    return {
        "task": "refine",
        "prompt": request.prompt or request.video.stem,
        "seed": request.seed,
        "size": named(target.size),
        "fps": target.fps,
        "steps": refiner.settings.sample.steps,
        "noise": refiner.noise,
        "strength": refiner.time,
        "back_projection": request.back_projection,
        "checkpoint_step": refiner.generator.step,
        "checkpoint_hash": params_hash(refiner.generator.params),
        "input_hashes": {request.video.name: sha256(request.video)},
    }


def written(path, frames, fps: float, metadata: dict, request: RefineRequest, audio: AudioTrack | None) -> str:
    """Write the video. Returns: why it was not written, in one line; "": it was."""
    try:
        return write_video(path, frames, fps, metadata, [request.video], request.watermark, audio=audio)
    except jax.errors.JaxRuntimeError as error:  # too little memory
        return f"{path}: {str(error).splitlines()[0]}; a smaller --size needs less"


def open_video(path: pathlib.Path, options: Options, console: rich.console.Console) -> Video:
    """A video to refine; prints what is done to it. Raises: InputError if it can't be read, or is HDR."""
    video = probe(path, options)
    if transfer := hdr_transfer(video):
        raise InputError(
            f"{path}: is HDR ({transfer}), and would lose its colours; convert it first: "
            f"ffmpeg -i {path.name} -vf zscale=t=linear:npl=100,tonemap=hable,zscale=t=bt709:m=bt709 "
            f"sdr.mp4"
        )
    notes = [*video.notes]
    if has_alpha(video):
        notes.append("with alpha, which is laid over black: mp4 has none")
    if notes:
        console.print(f"note: {path}: {'; '.join(notes)}", highlight=False, soft_wrap=True)
    return video


def described(video: Video, target: Target) -> str:
    """What is made of a video, for people."""
    size = f"{video.width}x{video.height} -> {' -> '.join(map(named, target.sizes))}"
    rate = f", {video.fps:g} -> {target.fps:g} frames a second" if target.factor > 1 else ""
    return f"{video.path}: {size}{rate}"


def changed(refiner: Refiner, request: RefineRequest) -> Refiner:
    """The refiner with what a request changes. Raises: InputError for a value out of range."""
    for flag, value, least in (
        ("noise", request.noise, 0.0),
        ("strength", request.strength, 0.01),
        ("back-projection", request.back_projection, 0.0),
    ):
        if value is not None and not least <= value <= 1:
            raise InputError(f"--{flag}={value:g}: must be from {least:g} to 1")
    settings = refiner.settings
    if request.strength is not None and request.strength > settings.flow.time_max:
        raise InputError(
            f"--strength={request.strength:g}: this refiner was trained for times up to {settings.flow.time_max:g}"
        )
    if request.steps is not None:
        sample = dataclasses.replace(settings.sample, steps=request.steps)
        settings = dataclasses.replace(settings, sample=sample)
    return dataclasses.replace(
        refiner,
        generator=dataclasses.replace(refiner.generator, settings=settings),
        noise=refiner.noise if request.noise is None else request.noise,
        time=refiner.time if request.strength is None else request.strength,
    )


def refined_video(refiner: Refiner, video: Video, target: Target, request: RefineRequest) -> Iterator[np.ndarray]:
    """The refined frames of a file, chunk by chunk, [F, H, W, 3] uint8."""
    read = read_frames(video, [(video.height, video.width)], fps=video.fps or 1.0)
    return refined(
        refiner,
        (frame for (frame,) in read),
        target.sizes,
        factor=target.factor,
        prompt=request.prompt,
        seed=request.seed,
        back_projection=request.back_projection,
    )
