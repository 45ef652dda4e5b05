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


class _Api:
    """What the routes share: the queue, the given files, and threads for what would block the event loop."""

    def __init__(self, queue: JobQueue, limits: Limits):
        self.queue, self.files = queue, GivenFiles(queue, limits)
        self._decoders = anyio.CapacityLimiter(DECODERS)

    async def in_thread(self, work: Callable, *args):
        """work(*args), in one of the few threads that decode files."""
        return await anyio.to_thread.run_sync(work, *args, limiter=self._decoders)

    def answer(self, response: fastapi.Response, job: Job) -> Video:
        """The Video of a job; while it is not over, with the time after which to ask again."""
        if not job.over:
            soon = self.queue.seconds_left(job) < SOON_SECONDS
            response.headers["openai-poll-after-ms"] = str(POLL_MS if soon else LONG_POLL_MS)
        return describe(self.queue, job)

    def refuse_if_full(self):
        """Raise the error of a full queue before a request waits for a thread and its files are decoded."""
        try:
            self.queue.check_room()
        except QueueFull as full:
            raise _full_error(full) from None

    def submit(self, body: pydantic.BaseModel, task: str, source: str | None) -> Job:
        """The job of a body. Raises: ApiError if it is refused."""
        try:
            return self.queue.submit(make_request(self.files, body, task), source=source)
        except QueueFull as full:
            raise _full_error(full) from None
        except StorageError as error:
            raise ApiError(503, str(error), headers={"retry-after": "30"}) from None
        except InputError as error:
            raise bad_request(error, fields=body.model_fields_set) from None


def _full_error(full: QueueFull) -> ApiError:
    return ApiError(429, str(full), code="queue_full", headers={"retry-after": str(full.retry_after)})


def make_router(queue: JobQueue, limits: Limits) -> fastapi.APIRouter:
    """The routes for a queue."""
    router, api = fastapi.APIRouter(prefix="/v1", responses=_ERRORS), _Api(queue, limits)
    for add in (_add_creation, _add_videos, _add_files, _add_models):
        add(router, api)
    return router


def _add_creation(router: fastapi.APIRouter, api: _Api):
    @router.post("/videos", openapi_extra=_takes("CreateBody"))
    async def create(request: Request, response: fastapi.Response) -> Video:
        body = await read_body(request, CreateBody)
        api.refuse_if_full()
        return api.answer(response, await api.in_thread(api.submit, body, "", None))

    @router.post("/videos/edits", openapi_extra=_takes("EditBody"))
    async def edit(request: Request, response: fastapi.Response) -> Video:
        body = await read_body(request, EditBody)
        source = body.video.id if isinstance(body.video, Reference) else None
        return api.answer(response, await api.in_thread(api.submit, body, "edit", source))

    @router.post("/videos/extensions", openapi_extra=_takes("ExtendBody"))
    async def extend(request: Request, response: fastapi.Response) -> Video:
        body = await read_body(request, ExtendBody)
        return api.answer(response, await api.in_thread(api.submit, body, "extend", None))

    @router.post("/videos/{video_id}/remix", openapi_extra=_takes("RemixBody"))
    async def remix(video_id: Id, request: Request, response: fastapi.Response) -> Video:
        fields = await read_body(request, RemixBody)
        source = completed_job(api.queue, video_id, "video_id")
        given = {**source.request.changes, **fields.model_dump(exclude_unset=True)}
        body = EditBody(**given, video=Reference(id=video_id))
        return api.answer(response, await api.in_thread(api.submit, body, "edit", video_id))

    @router.post("/videos/characters", status_code=404, response_model=Error)
    @router.get("/videos/characters/{character_id}", status_code=404, response_model=Error)
    async def characters():
        raise ApiError(404, "this server has no characters; describe them in the prompt", code="not_supported")


def _add_videos(router: fastapi.APIRouter, api: _Api):
    @router.get("/videos")
    async def list_videos(
        after: Annotated[str, fastapi.Query(max_length=100)] = "",
        limit: Annotated[int, fastapi.Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoPage:
        jobs = list(api.queue.newest())
        if order == "asc":
            jobs.reverse()
        if after:
            place = next((n for n, job in enumerate(jobs) if job.id == after), None)
            if place is None:
                raise ApiError(400, f"after: no video {after[:60]!r} here", param="after")
            jobs = jobs[place + 1 :]
        data = [describe(api.queue, job) for job in jobs[:limit]]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoPage(data=data, has_more=len(jobs) > limit, first_id=first, last_id=last)

    @router.get("/videos/{video_id}")
    async def retrieve(video_id: Id, response: fastapi.Response) -> Video:
        job = api.queue.get(video_id)
        if job is None:
            raise not_found(video_id)
        return api.answer(response, job)

    @router.delete("/videos/{video_id}")
    async def delete(video_id: Id) -> Deleted:
        if not await anyio.to_thread.run_sync(api.queue.delete, video_id):  # it waits for no decoder
            raise not_found(video_id)
        return Deleted(id=video_id)


def _add_files(router: fastapi.APIRouter, api: _Api):
    @router.get(
        "/videos/{video_id}/content",
        response_class=fastapi.Response,
        responses={200: {"content": {kind: {} for kind in ("video/mp4", "image/webp", "image/jpeg")}}, 206: {}},
    )
    async def content(video_id: Id, variant: Literal["video", "thumbnail", "spritesheet"] = "video"):
        job = completed_job(api.queue, video_id, "video_id")
        path = api.queue.store.video(job)
        try:
            if variant == "thumbnail":
                return fastapi.Response(await api.in_thread(thumbnail, path), media_type="image/webp")
            if variant == "spritesheet":
                return fastapi.Response(await api.in_thread(spritesheet, path), media_type="image/jpeg")
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
        job = api.queue.get(video_id)
        if job is None:
            raise not_found(video_id)
        job.looked = time.monotonic()
        if not job.preview:
            return fastapi.Response(status_code=204)
        return fastapi.Response(job.preview, media_type="image/webp")

    @router.get("/inputs/{file_id}", response_class=fastapi.Response)
    async def given_file(file_id: Id):
        path = await api.in_thread(api.files.find, file_id)
        if path is None:
            raise ApiError(404, "no such input here", param="file_id")
        return fastapi.responses.FileResponse(await api.in_thread(local_file, path))


def _add_models(router: fastapi.APIRouter, api: _Api):
    started = int(time.time())

    @router.get("/models")
    async def models() -> ModelPage:
        return ModelPage(data=[Model(id=api.queue.model.name, created=started)])

    @router.get("/models/{model_id}")
    async def model(model_id: Id) -> Model:
        if model_id != api.queue.model.name:
            raise ApiError(404, f"No model {model_id[:60]!r} here", code="model_not_found", param="model_id")
        return Model(id=model_id, created=started)
