"""The routes below /v1: videos and models, as the `openai` client calls them."""

import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio
import fastapi
import fastapi.responses
import pydantic
from starlette.requests import Request

from sora_jax.core.errors import InputError
from sora_jax.core.storage import local_file
from sora_jax.serve.api.body import CreateBody, EditBody, ExtendBody, Reference, RemixBody, read_body
from sora_jax.serve.api.errors import ApiError, bad_request
from sora_jax.serve.api.objects import Deleted, Error, Model, ModelPage, Video, VideoPage, describe
from sora_jax.serve.api.previews import spritesheet, thumbnail
from sora_jax.serve.api.requests import GivenFiles, completed_job, make_request, not_found
from sora_jax.serve.job_queue import JobQueue, QueueFull, StorageError
from sora_jax.serve.jobs import Job
from sora_jax.serve.uploads import Limits

SOON_SECONDS = 60  # of work, below which a client asks each second
POLL_MS, LONG_POLL_MS = 1000, 3000
DECODERS = 2  # uploads and previews that are decoded at a time
BODIES = {"CreateBody": CreateBody, "EditBody": EditBody, "ExtendBody": ExtendBody, "RemixBody": RemixBody}
Id = Annotated[str, fastapi.Path(max_length=100)]
_ERRORS: Any = {
    400: {"model": Error, "description": "A field is wrong"},
    401: {"model": Error, "description": "The key is absent or wrong"},
    403: {"model": Error, "description": "From another site, or for another host"},
    404: {"model": Error, "description": "No such video"},
    405: {"model": Error, "description": "Another method"},
    408: {"model": Error, "description": "The body came too slowly"},
    411: {"model": Error, "description": "A Content-Length is needed"},
    413: {"model": Error, "description": "The body is too large"},
    415: {"model": Error, "description": "Neither a form nor JSON"},
    429: {"model": Error, "description": "The queue is full, or the key's requests are used up"},
    503: {"model": Error, "description": "Too many uploads, or the folder does not answer"},
}


def _takes(*names: str, kinds=("multipart/form-data", "application/json")) -> dict:
    """What the OpenAPI document says of a body that `read_body` reads."""
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for name in names for kind in kinds}
    return {"requestBody": {"required": True, "content": content}}


def make_router(queue: JobQueue, limits: Limits) -> fastapi.APIRouter:
    """The routes for a queue."""
    router = fastapi.APIRouter(prefix="/v1", responses=_ERRORS)
    files = GivenFiles(queue, limits)
    decoders = anyio.CapacityLimiter(DECODERS)
    started = int(time.time())

    async def in_thread(work: Callable, *args):
        return await anyio.to_thread.run_sync(work, *args, limiter=decoders)

    def answer(response: fastapi.Response, job: Job) -> Video:
        if not job.over:
            soon = queue.seconds_left(job) < SOON_SECONDS
            response.headers["openai-poll-after-ms"] = str(POLL_MS if soon else LONG_POLL_MS)
        return describe(queue, job)

    def full_error(full: QueueFull) -> ApiError:
        return ApiError(429, str(full), code="queue_full", headers={"retry-after": str(full.retry_after)})

    def refuse_if_full():
        """Raise the error of a full queue before a request waits for a thread and its files are decoded."""
        try:
            queue.check_room()
        except QueueFull as full:
            raise full_error(full) from None

    def submit(body: pydantic.BaseModel, task: str, source: str | None) -> Job:
        try:
            return queue.submit(make_request(files, body, task), source=source)
        except QueueFull as full:
            raise full_error(full) from None
        except StorageError as error:
            raise ApiError(503, str(error), headers={"retry-after": "30"}) from None
        except InputError as error:
            raise bad_request(error, fields=body.model_fields_set) from None

    @router.post("/videos", openapi_extra=_takes("CreateBody"))
    async def create(request: Request, response: fastapi.Response) -> Video:
        body = await read_body(request, CreateBody)
        refuse_if_full()
        return answer(response, await in_thread(submit, body, "", None))

    @router.post("/videos/edits", openapi_extra=_takes("EditBody"))
    async def edit(request: Request, response: fastapi.Response) -> Video:
        body = await read_body(request, EditBody)
        source = body.video.id if isinstance(body.video, Reference) else None
        return answer(response, await in_thread(submit, body, "edit", source))

    @router.post("/videos/extensions", openapi_extra=_takes("ExtendBody"))
    async def extend(request: Request, response: fastapi.Response) -> Video:
        body = await read_body(request, ExtendBody)
        return answer(response, await in_thread(submit, body, "extend", None))

    @router.post("/videos/{video_id}/remix", openapi_extra=_takes("RemixBody"))
    async def remix(video_id: Id, request: Request, response: fastapi.Response) -> Video:
        fields = await read_body(request, RemixBody)
        source = completed_job(queue, video_id, "video_id")
        given = {**source.request.changes, **fields.model_dump(exclude_unset=True)}
        body = EditBody(**given, video=Reference(id=video_id))
        return answer(response, await in_thread(submit, body, "edit", video_id))

    @router.post("/videos/characters", status_code=404, response_model=Error)
    @router.get("/videos/characters/{character_id}", status_code=404, response_model=Error)
    async def characters():
        raise ApiError(404, "this server has no characters; describe them in the prompt", code="not_supported")

    @router.get("/videos")
    async def list_videos(
        after: Annotated[str, fastapi.Query(max_length=100)] = "",
        limit: Annotated[int, fastapi.Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoPage:
        jobs = list(queue.newest())
        if order == "asc":
            jobs.reverse()
        if after:
            place = next((n for n, job in enumerate(jobs) if job.id == after), None)
            if place is None:
                raise ApiError(400, f"after: no video {after[:60]!r} here", param="after")
            jobs = jobs[place + 1 :]
        data = [describe(queue, job) for job in jobs[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoPage(data=data, has_more=len(jobs) > limit, first_id=first, last_id=last)

    @router.get("/videos/{video_id}")
    async def retrieve(video_id: Id, response: fastapi.Response) -> Video:
        job = queue.get(video_id)
        if job is None:
            raise not_found(video_id)
        return answer(response, job)

    @router.delete("/videos/{video_id}")
    async def delete(video_id: Id) -> Deleted:
        if not await anyio.to_thread.run_sync(queue.delete, video_id):  # it waits for no decoder
            raise not_found(video_id)
        return Deleted(id=video_id)

    @router.get(
        "/videos/{video_id}/content",
        response_class=fastapi.Response,
        responses={200: {"content": {kind: {} for kind in ("video/mp4", "image/webp", "image/jpeg")}}, 206: {}},
    )
    async def content(video_id: Id, variant: Literal["video", "thumbnail", "spritesheet"] = "video"):
        job = completed_job(queue, video_id, "video_id")
        path = queue.store.video(job)
        try:
            if variant == "thumbnail":
                return fastapi.Response(await in_thread(thumbnail, path), media_type="image/webp")
            if variant == "spritesheet":
                return fastapi.Response(await in_thread(spritesheet, path), media_type="image/jpeg")
            path = await anyio.to_thread.run_sync(local_file, path)  # it waits for no decoder
            path.stat()
        except (FileNotFoundError, InputError):  # deleted by hand
            raise not_found(video_id) from None
        return fastapi.responses.FileResponse(path, media_type="video/mp4", filename=job.file)

    @router.get(
        "/videos/{video_id}/preview",
        response_class=fastapi.Response,
        responses={200: {"content": {"image/webp": {}}}, 204: {"description": "There is none now"}},
    )
    async def preview(video_id: Id):
        job = queue.get(video_id)
        if job is None:
            raise not_found(video_id)
        job.looked = time.monotonic()
        if not job.preview:
            return fastapi.Response(status_code=204)
        return fastapi.Response(job.preview, media_type="image/webp")

    @router.get("/inputs/{file_id}", response_class=fastapi.Response)
    async def given_file(file_id: Id):
        path = await in_thread(files.find, file_id)
        if path is None:
            raise ApiError(404, "no such input here", param="file_id")
        return fastapi.responses.FileResponse(await in_thread(local_file, path))

    @router.get("/models")
    async def models() -> ModelPage:
        return ModelPage(data=[Model(id=queue.model.name, created=started)])

    @router.get("/models/{model_id}")
    async def model(model_id: Id) -> Model:
        if model_id != queue.model.name:
            raise ApiError(404, f"No model {model_id[:60]!r} here", code="model_not_found", param="model_id")
        return Model(id=model_id, created=started)

    return router
