"""From the fields of a body to a request of `generate`, with its files kept in the output folder."""

import base64
import binascii
import dataclasses
import pathlib
import re
import secrets
import shutil
import tempfile

import pydantic
from starlette.datastructures import UploadFile

from sora_jax.config.fields import declarations
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.request import TASKS, Request, TaskInputs
from sora_jax.serve.api.body import Reference
from sora_jax.serve.api.errors import ALIASES, ApiError, bad_request
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.jobs import COMPLETED, Job
from sora_jax.serve.uploads import Limits, suffix_of

_DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")
_KEPT = re.compile(r"[0-9a-f]{16}\.[a-z0-9]{3,4}")


def not_found(id: str) -> ApiError:
    return ApiError(404, f"No video {id[:60]!r} here", code="video_not_found", param="video_id")


def completed_job(queue: JobQueue, id: str, param: str) -> Job:
    """The job of a finished video. Raises: ApiError if there is none, or it is not finished."""
    job = queue.get(id)
    if job is None:
        raise not_found(id)
    if job.state != COMPLETED:
        # No 404 or 409: the `openai` client would try a 409 again at once.
        raise ApiError(400, f"{param}: the video is {job.state}", code="video_not_ready", param=param)
    return job


@dataclasses.dataclass(frozen=True)
class GivenFiles:
    """Keeps the files that a request sends or names."""

    queue: JobQueue
    limits: Limits

    def keep(self, field: str, given, *, picture: bool) -> pathlib.Path | None:
        """The kept copy of what a field gives, None if it gives nothing.

        Raises: ApiError for a file that is refused, or a reference to nothing.
        """
        if given is None:
            return None
        if isinstance(given, UploadFile):
            return self._keep_stream(field, given.file, picture)
        if given.image_url is not None:
            return self._keep_address(field, given.image_url, picture)
        store = self.queue.store
        if given.file_id is not None:
            kept = self.find(given.file_id)
            if kept is None:
                raise ApiError(400, f"{field}: no input {given.file_id[:60]!r} here", param=field)
            return store.keep(kept, kept.suffix)
        if given.id is None or picture:
            raise ApiError(400, f"{field}: send a file, or name one", param=field)
        return store.keep(store.video(completed_job(self.queue, given.id, field)), ".mp4")

    def find(self, file_id: str) -> pathlib.Path | None:
        """The kept file of that name, None if there is none."""
        path = self.queue.store.inputs / file_id
        return path if _KEPT.fullmatch(file_id) and path.is_file() else None

    def _keep_address(self, field, address, picture):
        found = _DATA.match(address)
        if not found:
            told = f"{field}: only data:image/...;base64, addresses are taken; nothing is fetched"
            raise ApiError(400, told, param=field)
        try:
            content = base64.b64decode(address[found.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, f"{field}: is no base64", param=field) from None
        with tempfile.SpooledTemporaryFile() as file:
            file.write(content)
            file.seek(0)
            return self._keep_stream(field, file, picture)

    def _keep_stream(self, field, file, picture):
        with tempfile.NamedTemporaryFile(prefix="sora_jax_upload_") as copy:
            shutil.copyfileobj(file, copy)
            copy.flush()
            path = pathlib.Path(copy.name)
            try:
                return self.queue.store.keep(path, suffix_of(path, self.limits, picture=picture))
            except InputError as error:
                raise bad_request(error, param=field) from None


def make_request(files: GivenFiles, body: pydantic.BaseModel, task: str) -> Request:
    """The request that a body's fields make. Raises: ApiError for a file or a value that can't be used.

    Args:
      task: "": as the fields say.
    """
    given = {name: getattr(body, name) for name in type(body).model_fields}
    task = task or given.get("task") or ""
    videos = [files.keep(name, given.get(name), picture=False) for name in ("video", "second_video")]
    keyframes = []
    for time, picture in given.get("keyframe", {}).items():
        try:
            moment = float(time)
        except ValueError:
            raise ApiError(400, f"keyframe[{time[:20]}]: is no number of seconds", param="keyframe") from None
        keyframes.append(f"{moment:g}:{files.keep('keyframe', picture, picture=True)}")
    inputs = TaskInputs(
        task=task,
        image=files.keep("input_reference", given.get("input_reference"), picture=True),
        last_image=files.keep("last_image", given.get("last_image"), picture=True),
        mask=files.keep("mask", given.get("mask"), picture=True),
        videos=tuple(path for path in videos if path),
        keyframes=tuple(keyframes),
        direction=given.get("direction") or "",
        seconds=given.get("seconds"),
        strength=given.get("strength"),
        story=tuple(given.get("story") or ()),
        rolling=bool(given.get("rolling")),
        watermark=given["watermark"],
    )
    changes = setting_changes(given, files.queue, given.get("video"))
    inputs = _without_own_length(inputs, changes, files.queue)
    seed = secrets.randbelow(2**31) if given["seed"] is None else given["seed"]
    negative = given["negative_prompt"]
    if negative is None:
        negative = files.queue.model.defaults.negative_prompt
    return Request((given["prompt"],), inputs, seed, negative, changes)


def setting_changes(given: dict, queue: JobQueue, video=None) -> dict:
    """The sampler's settings that a body names; a video of this server brings its size."""
    own = {name: given[name] for name in declarations(SampleSettings) if given.get(name) is not None}
    own |= {name: given[alias] for alias, name in ALIASES.items() if given.get(alias) is not None}
    own.pop("negative_prompt", None)
    source = queue.get(video.id) if isinstance(video, Reference) and video.id else None
    if source and "size" not in own and given.get("task") != "outpaint":
        own["size"] = "x".join(map(str, source.size))
    return own


def _without_own_length(inputs: TaskInputs, changes: dict, queue: JobQueue) -> TaskInputs:
    """A length that the task can't have is left out if it is the model's own."""
    if inputs.seconds is None or inputs.name not in TASKS or "seconds" in sum(TASKS[inputs.name], ()):
        return inputs
    defaults = queue.model.defaults
    own = changes.get("frames", defaults.frames) / changes.get("fps", defaults.fps)
    if abs(inputs.seconds - own) * changes.get("fps", defaults.fps) < 1:
        return dataclasses.replace(inputs, seconds=None)
    told = f"seconds: a video of the task {inputs.name} has the model's own length, {own:g}"
    raise ApiError(400, told, param="seconds", code="invalid_value")
