"""Jobs and their records: what was asked, how far it is, and the files that belong to it."""

import dataclasses
import json
import math
import pathlib
import threading
import time
from collections.abc import Iterable

from sora_jax.core.errors import InputError
from sora_jax.core.storage import (
    as_path,
    atomic_write,
    content_hash,
    copy_file,
    read_object,
    remove_folder,
    remove_stale_temporaries,
)
from sora_jax.generate.request import Request, TaskInputs

QUEUED, RUNNING, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
FILES = ("image", "last_image", "mask")  # inputs that are one file


@dataclasses.dataclass(eq=False)
class Job:
    """A request on its way to a video.

    id: "video_" and 32 hex digits.
    file: name of the video in the output folder.
    created, completed: Unix time in seconds; completed is 0 until the job is over.
    state: QUEUED, RUNNING, COMPLETED or FAILED.
    attempts: how often it was begun; a killed server leaves one unfinished.
    error: (code, message) of a failed job.
    size: (width, height) in pixels; fps: of the video; frames: of the video, an estimate until it is completed.
    source: id of the video that it varies.
    done, total: steps of the solver.
    preview: its first frame as the last steps predict it, WebP, while somebody looks.
    looked, previewed: when somebody last asked for it, and when it was made, on the monotonic clock.
    """

    id: str
    request: Request
    file: str
    created: float
    size: tuple[int, int]
    fps: float
    frames: int
    completed: float = 0.0
    state: str = QUEUED
    attempts: int = 0
    error: tuple[str, str] | None = None
    source: str | None = None
    notes: tuple[str, ...] = ()
    done: int = 0
    total: int = 0
    preview: bytes = b""
    looked: float = -math.inf
    previewed: float = -math.inf
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def over(self) -> bool:
        return self.state in (COMPLETED, FAILED)


_RECORDED = ("id", "file", "created", "fps", "frames", "completed", "state", "attempts", "source", "done", "total")


class JobStore:
    """The output folder: videos, `jobs/` with a record of each job, `inputs/` with the given files.

    Args:
      out: the folder, on a disk or in a bucket; it is made if it is absent.
    """

    def __init__(self, out: pathlib.Path):
        self.out, self.records, self.inputs = out, out / "jobs", out / "inputs"
        for folder in (self.out, self.records, self.inputs):
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(folder)

    def load(self) -> list[Job]:
        """The recorded jobs, oldest first. A record that can't be read is left alone, and is no job."""
        jobs = []
        for path in self.records.glob("video_*.json"):
            try:
                jobs.append(self._job(read_object(path)))
            except (InputError, KeyError, TypeError, ValueError):
                continue
        return sorted(jobs, key=lambda job: job.created)

    def save(self, job: Job):
        """Write the record of a job. Raises: InputError if it can't be written."""
        request = job.request
        record = {
            **{name: getattr(job, name) for name in _RECORDED},
            "size": list(job.size),
            "error": list(job.error) if job.error else None,
            "notes": list(job.notes),
            "request": {
                "prompt": request.prompts[0],
                "seed": request.seed,
                "negative_prompt": request.negative_prompt,
                "changes": dict(request.changes),
                "inputs": request.inputs.described(),
            },
        }
        with atomic_write(self.records / f"{job.id}.json") as temporary:
            temporary.write_text(json.dumps(record))

    def _job(self, record: dict) -> Job:
        asked = record["request"]
        given = dict(asked["inputs"])
        for name in set(FILES) & set(given):
            given[name] = self.inputs / given[name]
        given["videos"] = tuple(self.inputs / name for name in given.get("videos", ()))
        pictures = (text.partition(":") for text in given.get("keyframes", ()))
        given["keyframes"] = tuple(f"{time}:{self.inputs / name}" for time, _, name in pictures)
        given["story"] = tuple(given.get("story", ()))
        request = Request(
            (asked["prompt"],), TaskInputs(**given), asked["seed"], asked["negative_prompt"], asked["changes"]
        )
        return Job(
            request=request,
            size=(int(record["size"][0]), int(record["size"][1])),
            error=tuple(record["error"]) if record["error"] else None,
            notes=tuple(record["notes"]),
            **{name: record[name] for name in _RECORDED},
        )

    def video(self, job: Job) -> pathlib.Path:
        return self.out / job.file

    def remove_video(self, job: Job):
        """Remove the video of a job with its manifest, and the windows of an unfinished long video."""
        video = self.video(job)
        for path in (video, video.with_suffix(".c2pa.json")):
            path.unlink(missing_ok=True)
        remove_folder(video.with_name(f"{video.name}.windows"))

    def remove(self, job: Job):
        """Remove the record of a job, then its video: a crash between the two leaves no record without a video."""
        (self.records / f"{job.id}.json").unlink(missing_ok=True)
        self.remove_video(job)

    def keep(self, path: pathlib.Path, suffix: str) -> pathlib.Path:
        """A copy of an input that stays as long as a job needs it, named by its content."""
        kept = self.inputs / f"{content_hash(path)}{suffix}"
        if kept.is_file():
            kept.touch()
        else:
            copy_file(path, kept)
        return kept

    def remove_unused_inputs(self, jobs: Iterable[Job], *, older: float):
        """Remove inputs that no job has and that were given more than `older` seconds ago."""
        used = {path.name for job in jobs for path in input_files(job.request)}
        for path in self.inputs.glob("*"):
            if path.name not in used and time.time() - path.stat().st_mtime > older:
                path.unlink(missing_ok=True)

    def bytes_of(self, job: Job) -> int:
        """Size of a job's video; 0 if there is none."""
        video = self.video(job)
        return video.stat().st_size if video.is_file() else 0


def input_files(request: Request) -> list[pathlib.Path]:
    """The given files of a request."""
    inputs = request.inputs
    single = [getattr(inputs, name) for name in FILES]
    pictures = [as_path(text.partition(":")[2]) for text in inputs.keyframes]
    return [path for path in (*single, *inputs.videos, *pictures) if path]
