"""`prepare --dry-run`: what would be read, cut and skipped, from the files' headers alone."""

import collections
import dataclasses
import math
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.table import Table

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.data.media.options import Options as MediaOptions
from sora_jax.data.media.video import probe
from sora_jax.data.prepare.cut import CutPlan, Outcome, plan_cuts, without_path
from sora_jax.data.prepare.prepare import Options, find_files, load_encoders
from sora_jax.data.prepare.report import Report
from sora_jax.data.prepare.sources import Source

_THREADS = 4 * (os.cpu_count() or 1)  # headers are waited for, not computed


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The clips of one size and length that would be cut."""

    clips: int = 0
    seconds: float = 0.0
    bytes: int = 0


def dry_run(settings: Settings, videos: pathlib.Path, options: Options, console: Console) -> dict:
    """Show a table of the clips that `prepare` would cut, and a line for each kind of file that it would skip.

    Args:
      settings, videos, options: as for `prepare`.
    Returns: {(height, width, frames): Bucket}.
    Raises: InputError as `prepare` does before it reads the first video, or if no file can be used.
    """
    encoders, geometry = load_encoders(settings, options)
    found = find_files(settings, videos, options)
    buckets: dict[tuple[int, int, int], Bucket] = collections.defaultdict(Bucket)
    outcomes = [Outcome(name, reason=reason) for name, reason in found.skipped]

    def plan(source: Source) -> tuple[CutPlan | None, Outcome]:
        try:
            with source.opened() as path:
                video = probe(path, MediaOptions.of(settings.data), header_only=True)
                made = plan_cuts(video, settings.data, geometry["multiple"])
        except InputError as error:
            return None, Outcome(source.name, reason=without_path(str(error), path, source.name))
        notes = (*made.notes, *(() if source.captions else ("without a caption",)))
        return made, Outcome(source.name, len(made.cuts) * len(made.sizes), notes=notes)

    with ThreadPoolExecutor(_THREADS) as threads, progress_bar(console) as bar:
        task = bar.add_task("reading headers", total=len(found.sources), numbers="")
        for made, outcome in threads.map(plan, found.sources):
            bar.advance(task)
            outcomes.append(outcome)
            for height, width in made.sizes if made else ():
                for _, _, frames in made.cuts:
                    pixels = height * width * frames
                    before = buckets[height, width, frames]
                    buckets[height, width, frames] = Bucket(
                        before.clips + 1,
                        before.seconds + frames / settings.data.fps,
                        before.bytes + _record_bytes(pixels, frames, encoders.video),
                    )
    report = Report(
        videos, "latents" if encoders.video else "pixels", {}, tuple(outcomes), tuple(found.other), 0, 0
    )
    if not buckets:
        name, reason = report.skipped[0]
        raise InputError(f"--videos: none of {len(report.skipped)} files can be used; {name}: {reason}")
    console.print(_table(buckets, report.kind))
    total = sum(bucket.clips for bucket in buckets.values())
    lines = [f"{total} clips of {report.sources} files; nothing was written", *report.remarks()]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    return dict(buckets)


def _record_bytes(pixels, frames, encoder):
    """Size of a record before compression, in bytes."""
    if encoder is None:
        return 3 * pixels
    coder = encoder.settings
    latent_frames = math.ceil(frames / coder.temporal_stride)
    return 2 * pixels // frames // coder.spatial_stride**2 * latent_frames * coder.latent_channels


def _table(buckets, kind):
    size = "size before compression" if kind == "pixels" else "size"
    table = Table("clip", "frames", "clips", "minutes", size)
    for (height, width, frames), bucket in sorted(buckets.items(), key=lambda item: -item[1].clips):
        table.add_row(
            f"{width}x{height}",
            f"{frames}",
            f"{bucket.clips:,}",
            f"{bucket.seconds / 60:,.1f}",
            f"{bucket.bytes / 2**20:,.1f} MiB",
        )
    return table
