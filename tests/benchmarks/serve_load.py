"""Load on `sora-jax serve`: clients that create, poll, download and delete, and others that misbehave.

    python tests/benchmarks/serve_load.py --seconds=600 --clients=200

Starts a server with the model of the shapes world and prints what came of it as JSON. Exit code 1: a job was lost
or doubled, or the server ended.
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

BODY = {"prompt": "a large red circle moves right on a black background", "frames": 9, "steps": 2, "size": "64x64"}
DELETED = 0.2  # share of the jobs that their client deletes at once
WARM_SECONDS = 30  # before memory is compared


@dataclasses.dataclass
class Counts:
    """What the clients saw."""

    times: dict = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    answers: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    wanted: set = dataclasses.field(default_factory=set)  # accepted and not deleted
    deleted: set = dataclasses.field(default_factory=set)
    ended: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    resident: list = dataclasses.field(default_factory=list)
    cut: int = 0  # connections of those that misbehave


class Client:
    """HTTP/1.1 over one connection, which is opened again when the server has closed it."""

    def __init__(self, port: int, counts: Counts):
        self.port, self.counts, self.writer = port, counts, None

    async def ask(self, kind: str, method: str, path: str, body: dict | None = None):
        """(status, headers, body); the time until the answer is counted as one of `kind`."""
        began = time.perf_counter()
        try:
            answer = await self._ask(method, path, body)
        except (OSError, asyncio.IncompleteReadError, ValueError):  # it was closed while it was idle: once more
            self.close()
            answer = await self._ask(method, path, body)
        self.counts.times[kind].append(time.perf_counter() - began)
        self.counts.answers[f"{kind} {answer[0]}"] += 1
        return answer

    async def _ask(self, method, path, body):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        sent = json.dumps(body).encode() if body else b""
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(sent)}\r\n"
        self.writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + sent)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        content = await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, content

    def close(self):
        if self.writer:
            self.writer.close()
        self.writer = None


async def use(port: int, counts: Counts, end: float):
    """One client: a video after the other."""
    client = Client(port, counts)
    while time.monotonic() < end:
        body = {**BODY, "seed": random.randrange(2**31)}
        status, headers, content = await client.ask("create", "POST", "/v1/videos", body)
        if status != 200:
            await asyncio.sleep(int(headers.get("retry-after", 1)) + random.random())
            continue
        id = json.loads(content)["id"]
        if random.random() < DELETED:
            counts.deleted.add(id)
            await client.ask("delete", "DELETE", f"/v1/videos/{id}")
            continue
        counts.wanted.add(id)
        while True:
            status, headers, content = await client.ask("status", "GET", f"/v1/videos/{id}")
            video = json.loads(content)
            if status != 200 or video["status"] in ("completed", "failed"):
                break
            await asyncio.sleep(int(headers["openai-poll-after-ms"]) / 1000)
        counts.ended[video.get("status", str(status))] += 1
        await client.ask("content", "GET", f"/v1/videos/{id}/content")
        await client.ask("list", "GET", "/v1/videos?limit=20")
    client.close()


async def misbehave(port: int, counts: Counts, end: float, kind: str):
    """One connection after the other that is silent, sends random bytes, or reads nothing of what it asked for."""
    sent = {
        "silent": b"",
        "half a request": b"POST /v1/videos HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-le",
        "half a body": b"POST /v1/videos HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n\r\n{",
        "no reader": b"GET /v1/videos?limit=100 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 2000,
    }
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            writer.write(sent.get(kind) or random.randbytes(3000))
            if kind == "no reader":
                await asyncio.sleep(min(60, max(0.0, end - time.monotonic())))
            else:
                await asyncio.wait_for(reader.read(), max(0.1, end - time.monotonic()))
        except (OSError, TimeoutError):
            pass
        counts.cut += 1
        writer.close()
        await asyncio.sleep(0.2)


async def watch(port: int, counts: Counts, end: float):
    """The server's memory, every five seconds."""
    client = Client(port, counts)
    while time.monotonic() < end:
        _, _, content = await client.ask("metrics", "GET", "/metrics")
        values = dict(line.rsplit(" ", 1) for line in content.decode().splitlines() if not line.startswith("#"))
        resident, files = (float(values[f"process_{name}"]) for name in ("resident_memory_bytes", "open_fds"))
        counts.resident.append((time.monotonic(), resident / 2**20, files))
        await asyncio.sleep(5)


async def load(port: int, seconds: float, clients: int) -> Counts:
    """Counts of a run: its clients, and one in twenty that misbehaves in each way."""
    counts, end = Counts(), time.monotonic() + seconds
    kinds = ("silent", "half a request", "half a body", "no reader", "random bytes")
    bad = [misbehave(port, counts, end, kind) for kind in kinds for _ in range(max(1, clients // 20))]
    await asyncio.gather(watch(port, counts, end), *(use(port, counts, end) for _ in range(clients)), *bad)
    return counts


async def listed(port: int) -> list[dict]:
    """All videos of the server, page after page."""
    client, found, after = Client(port, Counts()), [], ""
    while True:
        page = json.loads((await client.ask("", "GET", f"/v1/videos?limit=100&after={after}"))[2])
        found += page["data"]
        if not page["has_more"]:
            return found
        after = page["last_id"]


def report(counts: Counts, videos: list[dict]) -> dict:
    """Figures of a run; `lost` and `doubled` are 0 in a good one."""
    ids = collections.Counter(video["id"] for video in videos)
    warm = [item for item in counts.resident if item[0] - counts.resident[0][0] > WARM_SECONDS] or counts.resident
    third = max(1, len(warm) // 3)

    def figures(times):
        p50, p99 = np.percentile(times, (50, 99)) * 1000
        most = round(1000 * max(times), 1)
        return {"count": len(times), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "max_ms": most}

    return {
        "requests": {kind: figures(times) for kind, times in sorted(counts.times.items())},
        "answers": dict(sorted(counts.answers.items())),
        "jobs": dict(counts.ended),
        "lost": len(counts.wanted - set(ids)),
        "doubled": len(videos) - len(ids) + len(set(ids) - counts.wanted),
        "misbehaving connections": counts.cut,
        "resident_mib": {
            "first third": round(float(np.median([mib for _, mib, _ in warm[:third]]))),
            "last third": round(float(np.median([mib for _, mib, _ in warm[-third:]]))),
            "max": round(max(mib for _, mib, _ in warm)),
        },
        "open files at most": int(max(files for _, _, files in counts.resident)),
        "load average": round(os.getloadavg()[0], 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="sora_jax_load_") as folder:
        log = pathlib.Path(folder) / "log"
        command = [
            sys.executable,
            "-c",
            "import sys; from sora_jax.cli.main import main; sys.exit(main())",
            "serve",
        ]
        with log.open("w") as told:
            flags = [f"--port={port}", f"--out={folder}/out"]
            server = subprocess.Popen([*command, *flags], stdout=told, stderr=told)
        try:
            asyncio.run(begin(port, server, log))
            counts = asyncio.run(load(port, options.seconds, options.clients))
            figures = report(counts, asyncio.run(listed(port)))
            alive = server.poll() is None
        finally:
            server.terminate()
            server.wait(30)
    print(json.dumps(figures, indent=1))
    sys.exit(bool(figures["lost"] or figures["doubled"] or not alive))


async def begin(port: int, server: subprocess.Popen, log: pathlib.Path):
    """Wait until the server is ready and has made a first video, so that its programs are compiled."""
    client = Client(port, Counts())
    while True:
        assert server.poll() is None, log.read_text()
        try:
            if (await client.ask("", "GET", "/ready"))[0] == 200:
                break
        except OSError:
            await asyncio.sleep(0.5)
    _, _, content = await client.ask("", "POST", "/v1/videos", BODY)
    id = json.loads(content)["id"]
    while json.loads(content)["status"] in ("queued", "in_progress"):
        await asyncio.sleep(0.5)
        _, _, content = await client.ask("", "GET", f"/v1/videos/{id}")
    assert json.loads(content)["status"] == "completed", content
    await client.ask("", "DELETE", f"/v1/videos/{id}")
    client.close()


if __name__ == "__main__":
    main()
