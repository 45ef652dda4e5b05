"""The HTTP server: a socket, and connections that end when the other side falls silent."""

import asyncio
import errno
import socket

import rich.console
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sora_jax.core.errors import InputError

MAX_CONNECTIONS = 500  # above it requests are answered with 503, above twice as many connections are cut
CHECK_SECONDS = 5.0
REQUEST_SECONDS = 20.0  # for the head of a request to come
STALLED_SECONDS = 120.0  # in which the other side must take some of an answer


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for a request, and for an answer to be read."""

    def connection_made(self, transport: asyncio.Transport):  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since, self._paused_since = self.loop.time(), 0.0
        self._check = self.loop.call_later(CHECK_SECONDS, self._end_if_silent)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None):
        self._check.cancel()
        super().connection_lost(exc)

    def on_response_complete(self):
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self):
        self._paused_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self):
        self._paused_since = 0.0
        super().resume_writing()

    def _end_if_silent(self):
        now = self.loop.time()
        answered = self.cycle is None or self.cycle.response_complete
        unread = self.transport.get_write_buffer_size() > 0
        idle = answered and now - self._idle_since > (STALLED_SECONDS if unread else REQUEST_SECONDS)
        if idle or (self._paused_since and now - self._paused_since > STALLED_SECONDS):
            self.transport.abort()
        else:
            self._check = self.loop.call_later(CHECK_SECONDS, self._end_if_silent)


def serve_app(app, listening: socket.socket, address: tuple[str, int], what: str, console: rich.console.Console):
    """Serve an application until the process is told to end; `what` it shows is told with its address."""
    host, port = address
    shown = f"[{host}]" if ":" in host else host
    console.print(f"http://{shown}:{port}: {what}", soft_wrap=True)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,  # the end does not wait for videos that stream to a browser
    )
    uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises: InputError if that can't be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host={host}: no address of this machine, such as 127.0.0.1") from None
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        reasons = {
            errno.EADDRINUSE: f"--port={port}: is taken; name another one",
            errno.EACCES: f"--port={port}: only root may take it; name one above 1023",
            errno.EADDRNOTAVAIL: f"--host={host}: no address of this machine, such as 127.0.0.1",
        }
        if error.errno not in reasons:
            raise
        raise InputError(reasons[error.errno]) from None
    return listening
