"""The command `serve`: the videos API and its page for a trained model."""

import dataclasses
import pathlib
import sys

import rich.console

from sora_jax.core.errors import InputError
from sora_jax.generate.generator import read_run
from sora_jax.serve.app import make_app
from sora_jax.serve.job_queue import JobQueue, Retention
from sora_jax.serve.jobs import JobStore
from sora_jax.serve.keys import ApiKeys
from sora_jax.serve.loaded_model import LoadedModel, Loading
from sora_jax.serve.metrics import Metrics
from sora_jax.serve.page_data import page_data
from sora_jax.serve.priority import giving_way
from sora_jax.serve.request_filter import LOCAL, RequestFilter
from sora_jax.serve.server import listen, serve_app
from sora_jax.serve.uploads import Limits

SWITCH_SECONDS = 0.0005


@dataclasses.dataclass(frozen=True)
class Access:
    """Where the server listens, and who may use it.

    host, port: the address; beyond this machine keys are needed.
    keys: each opens the server; (): it is open.
    requests_per_minute: that each key may make.
    """

    host: str
    port: int
    keys: tuple[str, ...] = ()
    requests_per_minute: int = 1200


def serve(
    checkpoint: pathlib.Path,
    out: pathlib.Path,
    *,
    access: Access,
    examples: list[str],
    loading: Loading,
    retention: Retention,
    console: rich.console.Console,
    limits: Limits | None = None,
):
    """Serve until the process is told to end.

    Args:
      checkpoint: workdir of a training run, or a released model.
      out: folder for videos, their records, and copies of their inputs.
      examples: prompts to try.
      loading: how the checkpoint is loaded.
      retention: how long videos stay.
      limits: of uploads and videos; None: those of `Limits`.
    Raises: InputError if a key is missing, the port is taken, or there is no checkpoint; before the parameters are
      read.
    """
    if access.host not in LOCAL and not access.keys:
        raise InputError(
            f"--host={access.host}: others reach it, so it needs --api-key-file; or forward a port, "
            f"ssh -L {access.port}:127.0.0.1:{access.port} HOST"
        )
    read_run(checkpoint)
    # While the sampler's thread runs Python, an answer waits this long for each of its system calls.
    sys.setswitchinterval(SWITCH_SECONDS)
    limits, metrics = limits or Limits(), Metrics()
    with listen(access.host, access.port) as listening:
        model = giving_way(LoadedModel, checkpoint, loading, limits=limits, console=console)
        store = JobStore(out.resolve())
        queue = JobQueue(model, store, console=console, retention=retention, on_end=metrics.on_end)
        app = make_server_app(queue, limits, metrics, access=access, examples=examples)
        told = f"the page and the API; videos lie in {out}"
        try:
            serve_app(app, listening, (access.host, access.port), told, console)
        finally:
            queue.release()


def make_server_app(queue: JobQueue, limits: Limits, metrics: Metrics, *, access: Access, examples: list[str]):
    """The application with its filter."""
    keys = ApiKeys(list(access.keys), access.requests_per_minute) if access.keys else None
    app = make_app(queue, limits, metrics=metrics, page=page_data(queue.model, limits, examples), keys=keys)
    max_body = limits.bytes + 2**20
    return RequestFilter(app, host=access.host, max_body=max_body, keys=keys, on_answer=metrics.on_answer)
