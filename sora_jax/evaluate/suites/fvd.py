"""The benchmark `fvd`: Frechet video distance of samples from real videos, on features of VideoMAE.

Source: content-debiased FVD, Ge et al. 2024 (arXiv 2404.12391); features of VideoMAE see motion, those of I3D
  mostly
content.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import MeshSettings, SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import atomic_write, local_file
from sora_jax.data.media.video import probe
from sora_jax.evaluate.benchmark import Benchmark, Options, Subject, read_video
from sora_jax.evaluate.metrics.frechet import frechet_distance
from sora_jax.evaluate.samples import captions_of, cells, real_videos, repeat_prompts, video_sets
from sora_jax.evaluate.videos_under_test import VideosUnderTest
from sora_jax.interop.metric_backbones import load_video_encoder
from sora_jax.interop.tensors import tensors_in
from sora_jax.models.layers.params import bind
from sora_jax.models.metric_backbones import VideoEncoder, VideoEncoderSettings
from sora_jax.report.page import Section, Table

SAMPLES = 256
PUBLISHED = 2048  # samples of published numbers
BATCH = 4


@functools.partial(jax.jit, static_argnums=0)
def embed(settings: VideoEncoderSettings, params: dict, videos):
    """Features of videos, [B, F, H, W, 3] uint8 of the settings' length -> [B, E] float32.

    As in the published metric, videos are scaled to a square whatever their aspect ratio, to [0, 1] without mean
    and deviation.
    """
    B, F, *_ = videos.shape
    x = videos.astype(jnp.float32) / 255
    x = jax.image.resize(x, (B, F, settings.size, settings.size, 3), "bilinear", antialias=False)
    return bind(VideoEncoder, settings, params)(x)


def features(settings: VideoEncoderSettings, params: dict, videos: Iterable[np.ndarray], advance) -> np.ndarray:
    """Features of the first frames of each video, [n, E]; on the current mesh, of one device.

    Raises: InputError for a video that is shorter than the encoder's input.
    """
    made, batch = [], []
    for video in [*videos, None]:
        if video is not None:
            if len(video) < settings.frames:
                raise InputError(f"FVD needs {settings.frames} frames, not {len(video)}; see --frames")
            batch.append(video[: settings.frames])
        if batch and (video is None or len(batch) == BATCH):
            padded = np.stack(batch + [batch[-1]] * (BATCH - len(batch)))
            made.append(np.asarray(embed(settings, params, padded))[: len(batch)])
            advance(len(batch))
            batch = []
    return np.concatenate(made)


def _check(checkpoint: Subject, options: Options):
    if not options.videomae:
        raise InputError("--suite=fvd: --videomae is missing, a folder with a VideoMAE encoder's safetensors")
    tensors_in(options.videomae)
    captions_of(checkpoint, options)
    cells(checkpoint, options)
    if isinstance(checkpoint, VideosUnderTest) and not options.videos:
        raise InputError("--suite=fvd: --videos is missing, a folder of real videos to compare with")


def _cell_of(path: pathlib.Path) -> SampleSettings:
    """Size, length and rate of a video made elsewhere, for the real videos that it is compared with."""
    video = probe(path)
    return SampleSettings(size=f"{video.width}x{video.height}", frames=video.frames, fps=video.fps or 1.0)


def _measure(checkpoint: Subject, options: Options, console) -> dict:
    values: dict = {"by_cell": {}}
    with jax.set_mesh(_alone()):
        settings, params = load_video_encoder(options.videomae)

    def prompts_of(cell):
        return repeat_prompts(captions_of(checkpoint, options), options.samples or SAMPLES)

    for group in video_sets(checkpoint, options, prompts_of, console):
        paths, count = group.paths, len(group.paths)
        cell = group.cell or _cell_of(paths[0])
        name = f"{cell.size}-{cell.frames}"
        about = f"{options.videomae} {options.data} {options.videos} {[path.name for path in paths]}"
        kept = hashlib.sha256(about.encode()).hexdigest()[:8]
        real = list(real_videos(checkpoint, options, cell, count))  # on every process, as all of them decode
        if jax.process_index():
            continue
        sets = {}
        for which, videos, total in (("samples", map(read_video, paths), count), ("real", real, len(real))):
            path = checkpoint.out / f"fvd-{name}-{which}-{kept}.npy"
            if not path.exists():
                with jax.set_mesh(_alone()), progress_bar(console) as bar:
                    task = bar.add_task(f"features of {which}", total=total, numbers="")
                    made = features(settings, params, videos, lambda n, bar=bar, task=task: bar.advance(task, n))
                with atomic_write(path) as temporary:
                    np.save(temporary, made)
            sets[which] = np.load(local_file(path))
        found: dict[str, object] = {
            "fvd": frechet_distance(sets["samples"], sets["real"]),
            "samples": count,
            "real": len(real),
        }
        found["warning"] = warning(count, len(real), settings.width)
        values["by_cell"][group.name] = found
        line = f"{checkpoint.name}: FVD {found['fvd']:.4g} of {count} samples and {len(real)} real videos"
        console.print(f"{line} of {cell.size}", highlight=False)
        if found["warning"]:
            console.print(f"warning: {found['warning']}", highlight=False, soft_wrap=True)
    return values


def _alone():
    """A mesh of one device of this process."""
    return make_mesh(MeshSettings(), jax.local_devices()[:1])


def warning(samples: int, real: int, width: int) -> str:
    """A warning about a distance between few videos; "" if there are enough."""
    fewest = min(samples, real)
    if fewest >= PUBLISHED:
        return ""
    if fewest <= width:
        return (
            f"{fewest} videos for {width} features: their covariance is singular and the distance too large. "
            f"Compare it only with distances of as many videos; published numbers are of {PUBLISHED:,}"
        )
    return f"{fewest} videos, but published numbers are of {PUBLISHED:,}: the distance is too large"


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    rows, warnings = [], {}
    for name, values in results.items():
        for cell, found in values["by_cell"].items():
            rows.append((name, cell, found["fvd"], found["samples"], found["real"]))
            warnings |= {f"{found['warning']}.": None} if found["warning"] else {}
    note = " ".join(["Frechet distance on features of VideoMAE; lower is better.", *warnings])
    return [Section("FVD", note, [Table(("checkpoint", "size", "FVD", "samples", "real videos"), rows)])]


def _figures(values: dict) -> dict[str, float]:
    found = values.get("by_cell", {})
    return {"fvd" if len(found) == 1 else f"fvd, {cell}": one["fvd"] for cell, one in found.items()}


FVD = Benchmark(
    ("flow", "videos"),
    ("data", "samples", "prompts", "sizes", "frames", "seed", "videos", "videomae"),
    _measure,
    _show,
    _check,
    figures=_figures,
    better={"fvd": "lower"},
)
