"""The filter that every request passes first: where it comes from, whose key it has, how large it is."""

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from sora_jax.serve.api.errors import ApiError
from sora_jax.serve.keys import COOKIE, ApiKeys

LOCAL = ("localhost", "127.0.0.1", "::1")
# Answered without a key: the page itself, which asks for it, and what load balancers ask.
OPEN = ("/", "/page.css", "/page.js", "/login", "/health", "/ready")
MAX_JSON = 16 * 2**20  # bytes of a JSON body, which is held in memory
SMALL = 2**20  # bytes of a body of which any number may come at once
MAX_LARGE = 8  # larger bodies at a time
BODY_SECONDS = 300  # in which a body has to come
# Browsers fetch nothing from elsewhere, whatever the page or a prompt in it says.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'none'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class RequestFilter:
    """An ASGI application around another one.

    Args:
      host: that the server listens at. At a local one, requests for other host names are refused: another site can
        make its name mean this machine (DNS rebinding).
      max_body: bytes of a body.
      keys: that a request must have one of; None: none is needed.
      on_answer: called with each request's scope, its answer's status, and the seconds until the answer began.
    """

    def __init__(
        self,
        app,
        *,
        host: str,
        max_body: int,
        keys: ApiKeys | None = None,
        on_answer: Callable[[dict, int, float], None] = lambda scope, status, seconds: None,
    ):
        self.app, self.max_body, self.keys, self._on_answer = app, max_body, keys, on_answer
        self.local = host in LOCAL
        self._large = 0  # bodies above SMALL that are being read

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        began, id = time.perf_counter(), f"req_{secrets.token_hex(12)}"

        async def sending(message):
            if message["type"] == "http.response.start":
                extra = [*_HEADERS, (b"x-request-id", id.encode())]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
                self._on_answer(scope, message["status"], time.perf_counter() - began)
            await send(message)

        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            self._check_origin(headers)
            self._check_key(scope, headers)
            large = self._check_size(scope, headers) > SMALL
        except ApiError as error:
            return await answer_error(error, sending)
        self._large += large
        try:
            await self.app(scope, _within(receive, BODY_SECONDS), sending)
        finally:
            self._large -= large

    def _check_origin(self, headers):
        try:
            host, origin = urlsplit(f"//{headers.get('host', '')}"), urlsplit(headers.get("origin", ""))
            name = host.hostname
        except ValueError:
            raise ApiError(400, "no valid Host or Origin") from None
        if self.local and name not in LOCAL:
            raise ApiError(403, "this server is for this machine alone", code="wrong_host")
        if "origin" in headers and origin.netloc != host.netloc:
            raise ApiError(403, "requests come from this server's own page alone", code="wrong_origin")

    def _check_key(self, scope, headers):
        if self.keys is None:
            return
        client = (scope.get("client") or ("",))[0]
        if scope["path"] in OPEN:
            if scope["path"] == "/login":
                self.keys.count_attempt(client)
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            key = cookie.value if cookie else ""
        number = self.keys.find(key)
        if number is None:
            self.keys.count_attempt(client)
            raise ApiError(401, "the key is absent or wrong", code="invalid_api_key")
        self.keys.count_request(number)

    def _check_size(self, scope, headers) -> int:
        """Bytes of the body."""
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or (scope["method"] == "POST" and not length.isdecimal()):
            raise ApiError(411, "a Content-Length is needed")
        size = int(length) if length.isdecimal() and len(length) < 16 else 0 if not length else self.max_body + 1
        most = min(self.max_body, MAX_JSON) if "json" in headers.get("content-type", "") else self.max_body
        if size > most:
            raise ApiError(413, f"the body is too large; at most {most / 2**20:g} MiB are taken")
        if size > SMALL and self._large >= MAX_LARGE:
            raise ApiError(503, "too many uploads at once", headers={"retry-after": "2"})
        return size


def _within(receive, seconds):
    """A `receive` whose body ends within so many seconds."""
    end, more = asyncio.get_running_loop().time() + seconds, True

    async def receiving():
        nonlocal more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, "the body came too slowly") from None
        more = message.get("more_body", False)
        return message

    return receiving


async def answer_error(error: ApiError, send):
    """Send an error as the whole answer."""
    body = json.dumps(error.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(key.encode(), value.encode()) for key, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
