"""The web application: the videos API, the page, and what operators ask."""

import pathlib
from typing import Any

import fastapi
import fastapi.responses
import pydantic
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

import sora_jax
from sora_jax.serve.api.body import validation_error
from sora_jax.serve.api.errors import ApiError
from sora_jax.serve.api.routes import BODIES, make_router
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.keys import COOKIE, ApiKeys
from sora_jax.serve.metrics import Metrics
from sora_jax.serve.uploads import Limits

PAGE = pathlib.Path(__file__).with_name("page")
_TYPES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class Login(pydantic.BaseModel):
    """What the page sends to open the server."""

    key: str = pydantic.Field(max_length=1000)


def make_app(
    queue: JobQueue,
    limits: Limits,
    *,
    metrics: Metrics,
    page: dict[str, Any],
    keys: ApiKeys | None = None,
) -> fastapi.FastAPI:
    """The application.

    Args:
      page: what the page shows of the model.
      keys: that open the server; None: it is open.
    """
    app = fastapi.FastAPI(title="sora_jax videos API", version=sora_jax.__version__, docs_url=None, redoc_url=None)
    app.include_router(make_router(queue, limits))
    app.include_router(_page_router(page, keys), include_in_schema=False)

    @app.get("/health", include_in_schema=False)
    async def health():
        return {"status": "ok"}

    @app.get("/ready", include_in_schema=False)
    async def ready():
        if not queue.alive:
            raise ApiError(503, "the queue has ended")
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def measured():
        return fastapi.Response(metrics.text(queue), media_type="text/plain; version=0.0.4; charset=utf-8")

    _answer_errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _page_router(page, keys) -> fastapi.APIRouter:
    router = fastapi.APIRouter()

    @router.get("/")
    async def index():
        return fastapi.responses.HTMLResponse((PAGE / "index.html").read_bytes())

    @router.get("/page.css")
    async def style():
        return fastapi.Response((PAGE / "page.css").read_bytes(), media_type=_TYPES["page.css"])

    @router.get("/page.js")
    async def script():
        return fastapi.Response((PAGE / "page.js").read_bytes(), media_type=_TYPES["page.js"])

    @router.get("/page.json")
    async def shown():
        return page

    @router.post("/login")
    async def login(given: Login):
        if keys is None or keys.find(given.key) is None:
            raise ApiError(401, "the key is wrong", code="invalid_api_key")
        response = fastapi.responses.JSONResponse({})
        response.set_cookie(COOKIE, given.key, httponly=True, samesite="strict", max_age=30 * 86_400)
        return response

    return router


def _answer_errors(app: fastapi.FastAPI):
    """Give every error the form of the API."""

    def answer(error: ApiError):
        return fastapi.responses.JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def refused(request, error):
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return answer(validation_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(request, error):
        told = f"{request.method} {request.url.path[:100]}: {error.detail}"
        headers = dict(error.headers or {})
        return answer(ApiError(error.status_code, told, code=_CODES.get(error.status_code), headers=headers))

    @app.exception_handler(Exception)
    async def failed(request, error):
        return answer(ApiError(500, "the server failed; its log says why"))


def _openapi(app: fastapi.FastAPI) -> dict:
    """The OpenAPI document, with the bodies that forms and JSON share."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    models: Any = [(model, "validation") for model in BODIES.values()]
    _, bodies = models_json_schema(models, ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= bodies["$defs"]
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's own; here it is a 400
    return document
