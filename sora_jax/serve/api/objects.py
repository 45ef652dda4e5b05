"""Objects of the videos API, as the `openai` client reads them."""

import pydantic

from sora_jax.serve.api.errors import without_folders
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.jobs import COMPLETED, QUEUED, Job


class VideoError(pydantic.BaseModel):
    """Why a video was not made."""

    code: str
    message: str


class Video(pydantic.BaseModel):
    """A video, or the job that makes it; below `error` are fields of this server's own."""

    model_config = pydantic.ConfigDict(protected_namespaces=())

    id: str
    object: str = "video"
    model: str
    status: str = pydantic.Field(json_schema_extra={"enum": ["queued", "in_progress", "completed", "failed"]})
    progress: int = pydantic.Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    seconds: str
    size: str
    prompt: str | None
    remixed_from_video_id: str | None
    error: VideoError | None
    task: str
    seed: int
    negative_prompt: str | None
    fps: float
    frames: int
    settings: dict = pydantic.Field(description="Settings of the sampler that differ from the model's.")
    inputs: dict = pydantic.Field(
        description="The task's inputs; files by the `file_id` that a new request may name."
    )
    notes: list[str] = pydantic.Field(description="What was done to the inputs.")
    step: int
    steps: int
    queue_position: int | None = pydantic.Field(description="Jobs that run before it.")


class VideoPage(pydantic.BaseModel):
    """A page of the list of videos."""

    object: str = "list"
    data: list[Video]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(pydantic.BaseModel):
    """A video that is gone."""

    id: str
    object: str = "video.deleted"
    deleted: bool = True


class ErrorDetail(pydantic.BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(pydantic.BaseModel):
    """An answer other than 200."""

    error: ErrorDetail


class Model(pydantic.BaseModel):
    """The model of this server."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "sora_jax"


class ModelPage(pydantic.BaseModel):
    """The models of this server."""

    object: str = "list"
    data: list[Model]


def describe(queue: JobQueue, job: Job) -> Video:
    """The Video of a job."""
    request, days = job.request, queue.retention.days
    inputs = {key: value for key, value in request.inputs.described().items() if key not in ("task", "watermark")}
    done = min(99, 100 * job.done // job.total) if job.total else 0
    return Video(
        id=job.id,
        model=queue.model.name,
        status=job.state,
        progress=100 if job.state == COMPLETED else done,
        created_at=int(job.created),
        completed_at=int(job.completed) or None,
        expires_at=int(job.completed + days * 86_400) if days is not None and job.over else None,
        seconds=f"{job.frames / job.fps:.6g}",
        size="x".join(map(str, job.size)),
        prompt=request.prompts[0],
        remixed_from_video_id=job.source,
        error=VideoError(code=job.error[0], message=without_folders(job.error[1])) if job.error else None,
        task=request.inputs.name,
        seed=request.seed,
        negative_prompt=request.negative_prompt,
        fps=job.fps,
        frames=job.frames,
        settings=dict(request.changes),
        inputs=inputs,
        notes=[without_folders(note) for note in job.notes],
        step=job.done,
        steps=job.total,
        queue_position=queue.ahead(job) if job.state == QUEUED else None,
    )
