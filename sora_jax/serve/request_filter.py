"""A filter of HTTP requests before Gradio, which would serve more than this page needs.

Requests from other sites, for other hosts, and for Gradio's proxy and downloads are refused. Every file that a
request names must lie in the folder of uploads.
"""

import json
import pathlib
from urllib.parse import urlsplit

LOCAL = ("localhost", "127.0.0.1", "::1")
API = "/gradio_api"
CLOSED = tuple(f"{API}/{name}" for name in ("proxy=", "run", "api", "call", "stream", "dev", "deep_link"))
MAX_BODY = 2**20  # bytes of a request that is no upload, and of an upload's form around the file
# Browsers fetch nothing from elsewhere, whatever the page or a prompt in it says.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'; form-action 'self'"
)


class RequestFilter:
    """An ASGI application around another one.

    Args:
      uploads: the folder in which files that a request names must lie.
      max_bytes: of an upload.
      host: that the server listens at. At a local one, requests for other host names are refused: another site can
        make its name mean this machine (DNS rebinding).
    """

    def __init__(self, app, *, uploads: pathlib.Path, max_bytes: int, host: str):
        self.app, self.uploads, self.max_bytes = app, uploads.resolve(), max_bytes
        self.local = host in LOCAL

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if not refused and scope["method"] == "POST" and not _is_upload(scope["path"]):
            receive, refused = await self._checked(receive)
        if refused:
            return await _answer(send, *refused)
        return await self.app(scope, receive, _with_policy(send))

    def _refused(self, scope, headers):
        """(status, reason), or None."""
        host = urlsplit(f"//{headers.get('host', '')}")
        if self.local and host.hostname not in LOCAL:
            return 403, "this page is for this machine alone"
        origin = headers.get("origin")
        if origin and urlsplit(origin).netloc != host.netloc:
            return 403, "requests come from this page alone"
        path = scope["path"]
        if path.startswith(CLOSED) or (path.startswith(f"{API}/file=") and not path.startswith(f"{API}/file=/")):
            return 404, "not here"
        length = headers.get("content-length", "")
        if scope["method"] == "POST" and not length.isdecimal():
            return 411, "a Content-Length is needed"
        limit = MAX_BODY + (self.max_bytes if _is_upload(path) else 0)
        if scope["method"] == "POST" and int(length) > limit:
            return 413, "too large"
        return None

    async def _checked(self, receive):
        """(a `receive` that gives the body again; why it is refused, or None)."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return receive, (400, "cut off")
            body += message.get("body", b"")
            more = message.get("more_body", False)

        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again():
            return waiting.pop() if waiting else await receive()

        try:
            values = json.loads(body) if body else None
        except ValueError:
            return again, (400, "not JSON")
        if not all(map(self._is_allowed, _files(values))):
            return again, (403, "a file that was not uploaded here")
        return again, None

    def _is_allowed(self, file):
        path, url = file.get("path"), file.get("url")
        if isinstance(url, str) and url.startswith("data:"):
            return False
        if path is None:
            return True
        return isinstance(path, str) and pathlib.Path(path).resolve().is_relative_to(self.uploads)


def _is_upload(path):
    return path.rstrip("/") == f"{API}/upload"


def _files(value):
    """Every object in a JSON value that names a file."""
    if isinstance(value, dict):
        if "path" in value or "url" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _files(item)


def _with_policy(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            extra = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        await send(message)

    return sending


async def _answer(send, status, reason):
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
