"""What a request may ask of the server, whatever the page's own library would answer.

Requests from other sites, for other hosts, for the library's proxy and its download of addresses are refused, and
every file that a request names must lie in the folder of uploads.
"""

import json
import pathlib
from urllib.parse import urlsplit

LOCAL = ("localhost", "127.0.0.1", "::1")
API = "/gradio_api"
CLOSED = tuple(f"{API}/{name}" for name in ("proxy=", "run", "api", "call", "stream", "dev", "deep_link"))
WORDS = 2**20  # bytes of a request that is no upload
# Nothing is fetched from anywhere else, whatever the page or a prompt in it says.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'; form-action 'self'"
)


class Guard:
    """An ASGI application around another one.

    Args:
      uploads: the folder in which files that a request names must lie.
      most: bytes of an upload.
      host: that the server listens at; for one of this machine alone, requests for other names are refused, which
        a page of another site could send after its name was made to mean this machine.
    """

    def __init__(self, app, *, uploads: pathlib.Path, most: int, host: str):
        self.app, self.uploads, self.most = app, uploads.resolve(), most
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
            return 411, "its length is to be named"
        # A form's own words around the file.
        if scope["method"] == "POST" and int(length) > (self.most + WORDS if _is_upload(path) else WORDS):
            return 413, "larger than is taken here"
        return None

    async def _checked(self, receive):
        """A `receive` that gives the body again, and why it is refused, or None."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return receive, (400, "broken off")
            body += message.get("body", b"")
            more = message.get("more_body", False)

        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def again():
            return waiting.pop() if waiting else await receive()

        try:
            values = json.loads(body) if body else None
        except ValueError:
            return again, (400, "no JSON")
        if not all(map(self._may_be_named, _files(values))):
            return again, (403, "a file that was not uploaded here")
        return again, None

    def _may_be_named(self, file):
        path, url = file.get("path"), file.get("url")
        if isinstance(url, str) and url.startswith("data:"):
            return False
        if path is None:
            return True
        return isinstance(path, str) and pathlib.Path(path).resolve().is_relative_to(self.uploads)


def _is_upload(path):
    return path.rstrip("/") == f"{API}/upload"


def _files(value):
    """Every object of a JSON value that names a file."""
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
