"""Bodies of requests: their fields, from multipart forms and from JSON."""

import dataclasses
import json
from typing import Annotated, Any

import fastapi
import pydantic
import starlette.requests
from starlette.datastructures import UploadFile

from sora_jax.config.fields import declarations
from sora_jax.config.schema import SampleSettings
from sora_jax.generate.request import DIRECTIONS, MAX_SECONDS, SEEDS, TASKS
from sora_jax.generate.sampling.pipeline import MAX_PROMPT
from sora_jax.serve.api.errors import ALIASES, ApiError

MAX_FIELD = 2**20  # bytes of a field of a form that is no file
MAX_FIELDS, MAX_FILES = 64, 16
# The model's own, or with a declaration below.
_OWN = ("dtype", "negative_prompt", "size")


class Reference(pydantic.BaseModel):
    """A file that is named instead of sent."""

    model_config = pydantic.ConfigDict(extra="forbid")
    id: str | None = pydantic.Field(default=None, description="Id of a completed video of this server.")
    file_id: str | None = pydantic.Field(
        default=None, description="An input of an earlier video, as its `inputs` says."
    )
    image_url: str | None = pydantic.Field(
        default=None, description="data:image/png;base64,...; nothing is fetched."
    )


def _lines(value):
    lines = value.splitlines() if isinstance(value, str) else value
    return [line.strip() for line in lines if line.strip()] if isinstance(lines, list) else value


File = fastapi.UploadFile | Reference
Story = Annotated[list[str], pydantic.BeforeValidator(_lines)]
Seconds = Annotated[float, pydantic.Field(gt=0, le=MAX_SECONDS)]
Strength = Annotated[float, pydantic.Field(ge=0, le=1)]


class _Fields(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    prompt: str = pydantic.Field(min_length=1, max_length=MAX_PROMPT, description="What the video shows.")
    model: str = pydantic.Field("", description="Any name: the server has one model, and answers with its own.")
    seed: int | None = pydantic.Field(None, ge=0, lt=SEEDS, description="Of the noise; drawn anew if absent.")
    negative_prompt: str | None = pydantic.Field(None, description="What the video should not show.")
    watermark: str = pydantic.Field("", max_length=100, description="A text in the corner.")
    size: str | None = pydantic.Field(None, pattern=r"^\d{1,5}x\d{1,5}$", description="WIDTHxHEIGHT, in pixels.")


_TYPES: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(SampleSettings)}
_SETTINGS: dict[str, Any] = {
    name: (_TYPES[name] | None, pydantic.Field(None, description=declared.meaning))
    for name, declared in declarations(SampleSettings).items()
    if name not in _OWN
}
_ALIASES: dict[str, Any] = {
    alias: (_TYPES[name] | None, pydantic.Field(None, description=f"The same as {name}."))
    for alias, name in ALIASES.items()
}
# Settings of the sampler, each as `config.sample` declares it.
Settings: Any = pydantic.create_model("Settings", __base__=_Fields, **_SETTINGS, **_ALIASES)


class CreateBody(Settings):
    """A new video, of any task."""

    task: str = pydantic.Field("", json_schema_extra={"enum": ["", *TASKS]}, description="Empty: text or image.")
    seconds: Seconds | None = pydantic.Field(None, description="Length; absent: the model's own.")
    input_reference: File | None = pydantic.Field(None, description="A picture that the video begins with.")
    last_image: File | None = pydantic.Field(None, description="A picture that the video ends with.")
    video: File | None = pydantic.Field(None, description="A given video.")
    second_video: File | None = pydantic.Field(None, description="The second one, of the task connect.")
    mask: File | None = pydantic.Field(None, description="A picture, white where the task inpaint paints.")
    keyframe: dict[str, File] = pydantic.Field({}, description="Seconds -> the picture at that time.")
    direction: str = pydantic.Field("", json_schema_extra={"enum": ["", *DIRECTIONS]}, description="Of extend.")
    strength: Strength | None = pydantic.Field(None, description="Share of the steps that an edit runs.")
    story: Story = pydantic.Field([], description="Prompts, one a line, which take turns over a long video.")
    rolling: bool = pydantic.Field(False, description="Finish the frames of a long video one after the other.")


class EditBody(Settings):
    """A variation of a video."""

    video: File
    strength: Strength | None = pydantic.Field(None, description="0: the video itself; 1: another one.")


class ExtendBody(Settings):
    """The continuation of a video."""

    video: File
    seconds: Seconds = pydantic.Field(description="Length of the new part.")
    direction: str = pydantic.Field(
        "", json_schema_extra={"enum": ["", *DIRECTIONS]}, description="Empty: forward."
    )
    story: Story = pydantic.Field([], description="Prompts, one a line, which take turns.")


class RemixBody(Settings):
    """A variation of a video of this server."""

    strength: Strength | None = pydantic.Field(None, description="0: the video itself; 1: another one.")


async def read_body(request: starlette.requests.Request, kind: type[pydantic.BaseModel]):
    """The fields of a request's body. Raises: ApiError for one that is malformed or has a wrong field."""
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content in ("multipart/form-data", "application/x-www-form-urlencoded"):
        values = await _read_form(request)
    elif content == "application/json":
        values = _read_json(await request.body())
    else:
        raise ApiError(415, "the body must be multipart/form-data or application/json")
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise validation_error(error.errors(include_url=False, include_context=False)) from None


def validation_error(errors) -> ApiError:
    """The answer to a request of which pydantic says so."""
    first = errors[0]
    where = [
        str(part) for part in first["loc"] if part not in ("body", "query", "path", "UploadFile", "Reference")
    ]
    param = where[0] if where else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{'.'.join(where)}: unknown field", param=param, code="unknown_parameter")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{'.'.join(where) or 'body'}: {first['msg']}", param=param, code=code)


def _read_json(body: bytes):
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON") from None


async def _read_form(request) -> dict:
    limits = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD}
    values: dict[str, Any] = {}
    form = await request.form(**limits)
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            value = fastapi.UploadFile(value.file, size=value.size, filename=value.filename, headers=value.headers)
        elif value == "":
            continue  # an empty field of a form is one that is not filled in
        field, bracket, key = name.partition("[")
        place = values
        if bracket and key.endswith("]"):
            place, key = values.setdefault(field, {}), key[:-1]  # field[key], as the `openai` client sends objects
        else:
            key = name
        if not isinstance(place, dict) or key in place:
            raise ApiError(400, f"{name}: is given twice", param=field)
        place[key] = value
    return values
