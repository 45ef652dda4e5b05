"""The command `serve`: a page in the browser for a trained model."""

import dataclasses
import errno
import importlib.util
import os
import pathlib
import socket
import tempfile
from collections.abc import Sequence

import rich.console

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path
from sora_jax.generate.generator import read_run
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.request_filter import LOCAL, RequestFilter
from sora_jax.serve.uploads import Limits


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a checkpoint is loaded.

    dtype: to compute in; "": as the checkpoint says.
    lora: adapters to add, each PATH or PATH:STRENGTH.
    """

    mesh: MeshSettings
    dtype: str = ""
    lora: Sequence[str] = ()


def serve(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    *,
    address: tuple[str, int],
    examples: list[str],
    loading: Loading,
    console: rich.console.Console,
    limits: Limits | None = None,
):
    """Serve the page until the process is told to end.

    Args:
      checkpoint: workdir of a training run.
      out: folder for videos and copies of their inputs.
      address: (host, port) that the server listens at.
      examples: prompts to try.
      loading: how the checkpoint is loaded.
      limits: of uploads and videos; None: those of `Limits`.
    Raises: InputError if Gradio is absent, the port is taken, or there is no checkpoint; before the parameters are
      read.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'sora_jax[serve]'")
    read_run(checkpoint)
    host, port = address
    listening = listen(host, port)
    limits = limits or Limits()
    with listening, tempfile.TemporaryDirectory(prefix="sora_jax_serve_") as uploads:
        # Gradio reads these when it is imported.
        os.environ |= {
            "GRADIO_TEMP_DIR": uploads,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        from sora_jax.serve.app import make_app

        out.mkdir(parents=True, exist_ok=True)
        queue = JobQueue(
            checkpoint,
            out.resolve(),
            mesh=loading.mesh,
            limits=limits,
            console=console,
            dtype=loading.dtype,
            lora=loading.lora,
        )
        folder = as_path(uploads)
        app = make_app(queue, folder, examples)
        app = RequestFilter(app, uploads=folder, max_bytes=limits.bytes, host=host)
        serve_app(app, listening, address, f"the page; videos lie in {out}", console)


def serve_app(app, listening: socket.socket, address: tuple[str, int], what: str, console: rich.console.Console):
    """Serve an application until the process is told to end; `what` it shows is told with its address."""
    import uvicorn

    host, port = address
    shown = f"[{host}]" if ":" in host else host
    console.print(f"http://{shown}:{port}: {what}", soft_wrap=True)
    if host not in LOCAL:
        console.print(f"note: everybody who reaches {host} can use it: there are no passwords")
    # The end does not wait for videos that stream to a browser.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
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
