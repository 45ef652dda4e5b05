"""The files of a request: their names, whether they can be written, and what is kept if writing fails."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.core.storage import USER_ERRORS, check_bucket, in_bucket
from sora_jax.generate.output.audio import AudioTrack
from sora_jax.generate.output.provenance import marked, write_manifest
from sora_jax.generate.output.writer import VideoWriter

BYTES_PER_PIXEL = 0.25  # an estimate for an mp4 of CRF 18; of pure noise it has more


def output_paths(out: pathlib.Path, count: int) -> list[pathlib.Path]:
    """The files of so many videos. Raises: InputError for one file for several videos."""
    if count == 1 and out.suffix:
        return [out]
    if out.suffix:
        raise InputError(f"--out={out}: is one file for {count} prompts; name a folder")
    return [out / f"{n:03}.mp4" for n in range(count)]


def check_outputs(paths: Sequence[pathlib.Path], fps: float, pixels: int):
    """Make the folder of the files, and raise InputError if they can't be written.

    Args:
      pixels: of all frames of all videos.
    """
    for path in paths:
        VideoWriter(path, fps)
    run_on_first_host(lambda: _check_folder(paths, round(pixels * BYTES_PER_PIXEL)))


def _check_folder(paths, needed):
    folder = paths[0].parent
    if in_bucket(folder):
        check_bucket(folder)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            for name in (path, path.with_suffix(".c2pa.json"), path.with_name(f"{path.name}.windows")):
                with contextlib.suppress(FileNotFoundError):
                    name.stat()
            if path.is_dir():
                raise InputError(f"--out={path}: is a folder; name a file in it, or a folder without a suffix")
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = USER_ERRORS.get(error.errno, error.strerror)
        raise InputError(f"--out={paths[0]}: can't be written, {reason}; name another place") from None
    if free < needed:
        raise InputError(
            f"--out={paths[0]}: {free / 1e6:,.0f} MB are free there, and the videos need about "
            f"{needed / 1e6:,.0f} MB; name another place"
        )


def write_video(
    path: pathlib.Path,
    frames: Iterator[np.ndarray],
    fps: float,
    metadata: Mapping,
    files: Sequence[pathlib.Path] = (),
    watermark: str = "",
    *,
    audio: AudioTrack | None = None,
) -> str:
    """Write the mp4 while its frames are made, and then its manifest.

    All hosts decode, as each frame is spread over their chips. The first one writes.

    Args:
      files: that the video was made from, for the manifest.
      audio: sound to copy.
    Returns: why it could not be written, the same on all hosts; "": it was.
    Raises: whatever making the frames raises.
    """
    error = ""
    if jax.process_index() == 0:
        try:
            with VideoWriter(path, fps, metadata=metadata, audio=audio) as video:
                for chunk in _tagged(frames):
                    video.write(marked(chunk, watermark) if watermark else chunk)
            write_manifest(path, metadata, files)
        except _FramesFailed as failed:
            raise failed.error from None
        except InputError as failed:
            error = str(failed)
        except OSError as failed:
            error = f"{path}: can't be written, {USER_ERRORS.get(failed.errno, failed.strerror)}"
    for _ in frames:  # the other hosts, and the first one after an error
        pass
    failed = multihost_utils.broadcast_one_to_all(np.asarray(bool(error)))
    return (error or f"{path}: can't be written") if failed else ""


class _FramesFailed(Exception):
    """Making the frames raised `error`, not writing them."""

    def __init__(self, error: Exception):
        self.error = error


def _tagged(frames):
    while True:
        try:
            chunk = next(frames)
        except StopIteration:
            return
        except Exception as error:
            raise _FramesFailed(error) from error
        yield chunk


def keep_raw_frames(path: pathlib.Path, frames: Iterator[np.ndarray], fps: float) -> str:
    """Write the frames of a video that could not be written into a temporary file; what to print of it.

    All hosts make the frames; the first one writes.
    """
    if jax.process_index():
        for _ in frames:
            pass
        return ""
    try:
        handle, kept = tempfile.mkstemp(prefix=f"sora_jax-{path.stem[:40]}-", suffix=".rgb")
        with os.fdopen(handle, "wb") as file:
            for chunk in frames:
                size = f"{chunk.shape[2]}x{chunk.shape[1]}"
                file.write(np.ascontiguousarray(chunk).tobytes())
    except OSError as error:
        for _ in frames:
            pass
        return f"nor can its frames, in {tempfile.gettempdir()} ({error.strerror})"
    return (
        f"its frames are kept: ffmpeg -f rawvideo -pixel_format rgb24 -video_size {size} -framerate {fps:g} "
        f"-i {kept} {path.name}"
    )
