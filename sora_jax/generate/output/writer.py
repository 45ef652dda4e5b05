"""Write videos, as mp4 chunk by chunk or as animated WebP, and read the metadata that says how they were made."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from fractions import Fraction

import av
import numpy as np
import PIL.Image
from av.video.reformatter import ColorRange, Colorspace

import sora_jax
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write, local_file
from sora_jax.generate.output.audio import AudioCopy, AudioTrack

BT709 = 1  # primaries, transfer and matrix of HD video (ITU-T H.273, value 1 in each of its tables)
EXIF_DESCRIPTION, EXIF_SOFTWARE = 0x010E, 0x0131


class VideoWriter:
    """Writes a video to an mp4 file (H.264, 4:2:0, BT.709) while its frames are being made.

    A context manager. The file appears when the block ends, complete; after an error the old file stays. Memory
    holds a chunk and the encoder's few frames of look-ahead.

    Args:
      path: of the file to write, ending in .mp4.
      fps: frames a second, above 0 and at most 1000; 23.976 and the like become their exact fractions of 1001.
      metadata: how the video was made (prompt, seed, settings), JSON values, for `read_metadata`. Players show
        the prompt as the title. Every file says that it is AI-generated.
      crf: x264's constant rate factor, 0 (lossless) to 51; 18 is hard to tell from the original.
      audio: sound to copy, as long as the video is.
    Raises: InputError for a path, a rate or frames that can't be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float,
        *,
        metadata: Mapping | None = None,
        crf: int = 18,
        audio: AudioTrack | None = None,
    ):
        self.path = as_path(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{path}: videos are written as .mp4; end the name so")
        self.rate = exact_rate(fps, self.path)
        self.frames = 0  # written
        self._crf = crf
        self._metadata = described(metadata)
        self._shape: tuple[int, ...] | None = None
        self._stream, self._track, self._sound = None, audio, None

    def __enter__(self) -> "VideoWriter":
        self._file = self._open_file()
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def write(self, frames: np.ndarray) -> None:
        """Append a chunk of frames, [F, H, W, 3] uint8; an odd height or width repeats its last row or column.

        Raises: InputError if a chunk differs in size from the first, or is not uint8 RGB.
        """
        frames = checked_frames(frames, self.path)
        if self._stream is None:
            self._shape = frames.shape[1:]
            self._stream = self._open_stream()
        if frames.shape[1:] != self._shape:
            raise InputError(
                f"{self.path}: a chunk of {size_of(frames.shape[1:])} after one of {size_of(self._shape)}"
            )
        H, W, _ = self._shape
        if H % 2 or W % 2:  # 4:2:0 shares colour among 2x2 pixels
            frames = np.pad(frames, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            # Players guess the matrix of a stream that is not tagged, each in its own way.
            self._encode(
                picture.reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
            )
            self.frames += 1
            if self._sound:
                self._sound.until(self.frames / self.rate)

    @contextlib.contextmanager
    def _open_file(self):
        # faststart puts the index first, so that browsers play while they load.
        options = {"movflags": "+faststart"}
        with (
            atomic_write(self.path) as temporary,
            av.open(temporary, "w", format="mp4", options=options) as container,
        ):
            self._container = container
            container.metadata.update(
                title=str(self._metadata.get("prompt", self.path.stem)),
                comment=json.dumps(self._metadata),
                description="AI-generated video",
            )
            try:
                yield
                if not self.frames:
                    raise InputError(f"{self.path}: a video of 0 frames; write at least one")
                self._encode(None)
            finally:
                if self._sound:
                    self._sound.close()

    def _open_stream(self):
        H, W, _ = self._shape
        # With x264's macroblock tree the same frames do not always make the same file.
        options = {"crf": str(self._crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = self._container.add_stream("libx264", rate=self.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = W + W % 2, H + H % 2, "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        self._sound = AudioCopy(self._track, self._container) if self._track else None
        return stream

    def _encode(self, frame):
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def write_webp(
    path: str | os.PathLike, frames: np.ndarray, fps: float, *, metadata: Mapping | None = None, quality: int = 85
) -> None:
    """Write frames [F, H, W, 3] uint8 as an animated WebP that loops.

    Args:
      fps: frames a second; WebP rounds each frame's time to milliseconds, and the whole length stays exact.
      metadata: as for `VideoWriter`.
      quality: of the pictures, 0 to 100.
    Raises: InputError as `VideoWriter` does.
    """
    path = as_path(path)
    if path.suffix.lower() != ".webp":
        raise InputError(f"{path}: an animated WebP ends in .webp")
    frames, rate = checked_frames(frames, path), exact_rate(fps, path)
    ends = np.rint(np.arange(len(frames) + 1) * float(1000 / rate)).astype(int)
    exif = PIL.Image.Exif()
    exif[EXIF_DESCRIPTION] = json.dumps(described(metadata))
    exif[EXIF_SOFTWARE] = "sora_jax: AI-generated video"
    first, *rest = (PIL.Image.fromarray(frame) for frame in frames)
    with atomic_write(path) as temporary:
        first.save(
            temporary,
            save_all=True,
            append_images=rest,
            duration=np.diff(ends).tolist(),
            loop=0,
            quality=quality,
            exif=exif,
        )


def read_metadata(path: str | os.PathLike) -> dict:
    """The metadata that `VideoWriter` or `write_webp` wrote into a video.

    Raises: InputError if the file is absent, not a video, or not written by sora_jax.
    """
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".webp":
            with PIL.Image.open(local_file(path)) as image:
                text = image.getexif().get(EXIF_DESCRIPTION, "")
        else:
            with av.open(local_file(path)) as container:
                text = container.metadata.get("comment", "")
    except (av.error.FFmpegError, PIL.UnidentifiedImageError) as error:
        raise InputError(f"{path}: not a video that can be read ({error})") from error
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "sora_jax" not in found:
        raise InputError(f"{path}: was not written by sora_jax, so it doesn't say how it was made")
    return found


def described(metadata: Mapping | None) -> dict:
    """The caller's metadata, with the version of sora_jax and the mark of generated videos."""
    return {"sora_jax": sora_jax.__version__, "ai_generated": True, **(metadata or {})}


def exact_rate(fps: float, path: pathlib.Path) -> Fraction:
    if not 0 < fps <= 1000:
        raise InputError(f"{path}: {fps} frames a second; the rate must be above 0 and at most 1000")
    near = Fraction(fps).limit_denominator(1001)
    ntsc = Fraction(round(fps * 1001 / 1000) * 1000, 1001)
    return ntsc if near.denominator > 1 and abs(float(ntsc) - fps) < 1e-3 else near


def checked_frames(frames: np.ndarray, path: pathlib.Path) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise InputError(f"{path}: frames must be [F, H, W, 3] uint8, not {list(frames.shape)} {frames.dtype}")
    return frames


def size_of(shape) -> str:
    return f"{shape[1]}x{shape[0]}"
