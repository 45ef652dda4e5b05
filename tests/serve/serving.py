"""A server of the videos API in a thread, with a model that draws instead of sampling."""

import contextlib
import pathlib
import socket
import threading
import time
import types

import numpy as np
import rich.console
import uvicorn
from test_tasks import settings_of

from sora_jax.config.schema import MeshSettings
from sora_jax.generate.output.writer import VideoWriter
from sora_jax.serve.job_queue import JobQueue, Retention
from sora_jax.serve.jobs import JobStore
from sora_jax.serve.loaded_model import LoadedModel, Loading
from sora_jax.serve.metrics import Metrics
from sora_jax.serve.serve import Access, make_server_app
from sora_jax.serve.server import BoundedProtocol, listen
from sora_jax.serve.uploads import Limits

LIMITS = Limits(bytes=2**20, pixels=256 * 256, frames=60)
STEPS = 4


class DrawingModel(LoadedModel):
    """The checks of a model, and frames drawn from the seed.

    step_seconds: how long a step takes.
    made: the requests that it was given; batches: how many at a time.
    """

    def __init__(self, step_seconds: float = 0.0):
        self.name, self.limits, self.step_seconds = "drawing", LIMITS, step_seconds
        self._loading = Loading(MeshSettings())
        settings = settings_of()
        self.generator = types.SimpleNamespace(settings=settings, low_noise=None)
        self.defaults, self.made, self.batches = settings.sample, [], []

    def make(self, assignments):
        self.batches.append(len(assignments))
        outcomes = []
        for one in assignments:
            try:
                outcomes.append(self.draw(one.request, one.out, one.on_progress, one.on_preview))
            except Exception as error:
                outcomes.append(error)
        return outcomes

    def draw(self, request, out, on_progress, on_preview=lambda frame: None):
        self.made.append(request)
        (width, height), fps, frames = self.check(request)
        steps = request.settings(self.defaults).steps
        for done in range(steps):
            time.sleep(self.step_seconds)
            on_progress(done + 1, steps)
            on_preview(lambda: np.full((height, width, 3), 200, np.uint8))
        colours = np.random.default_rng(request.seed).integers(0, 255, 3)
        with VideoWriter(out, fps, metadata={"prompt": ""}) as video:
            video.write(np.broadcast_to(colours, (frames, height, width, 3)).astype(np.uint8))
        return ["drawn"]


class Server:
    """A server on a port of its own; `url` ends in /v1."""

    def __init__(self, out: pathlib.Path, *, step_seconds=0.0, retention=None, keys=(), rate=1200):
        self.model, metrics = DrawingModel(step_seconds), Metrics()
        self.queue = JobQueue(
            self.model,
            JobStore(out),
            console=rich.console.Console(quiet=True),
            retention=retention or Retention(),
            on_end=metrics.on_end,
        )
        self.listening = listen("127.0.0.1", free_port())
        self.port = self.listening.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.address}/v1"
        access = Access("127.0.0.1", self.port, keys, rate)
        app = make_server_app(self.queue, LIMITS, metrics, access=access, examples=["a bird"])
        config = uvicorn.Config(app, http=BoundedProtocol, ws="none", log_level="error", access_log=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]}, daemon=True)
        self.thread.start()

    def close(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.listening.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serving(out: pathlib.Path, **options):
    server = Server(out, **options)
    try:
        yield server
    finally:
        server.close()
