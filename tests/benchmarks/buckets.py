"""What a bucket costs, against emulators on this machine.

python tests/benchmarks/buckets.py overhead     200 updates with a save each 20, on a disk and in buckets
python tests/benchmarks/buckets.py reads        requests and bytes of each of 64 hosts in an epoch
python tests/benchmarks/buckets.py start        seconds until the first record of 10,000 shards
"""

import argparse
import collections
import contextlib
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import bucket_faults
import bucket_servers
import jax
import numpy as np
import tiny
import tiny_run

from sora_jax.cli.main import main
from sora_jax.core import local_cache
from sora_jax.core.storage import as_path, copy_files
from sora_jax.data.loader.stream import train_sequences
from sora_jax.data.records.records import Clip, Records
from sora_jax.data.records.write import finish, write_shard

STEPS, SAVE_EVERY, HOSTS, SHARDS = 200, 20, 64, 10_000
CONFIG = """
import tiny
from sora_jax.config.load import to_config

def get_config():
    return to_config(tiny.change(tiny.SETTINGS, text={{"vocabulary": 400}},
        train={{"steps": {steps}, "save_every": {save_every}, "keep": 2, "log_every": 10}}))
"""


@contextlib.contextmanager
def bucket(storage: str, *, counted: bool = False):
    """(path of a new bucket, counts of a proxy before it) while a server of the storage runs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(bucket_servers.SERVERS[storage]())
        path = bucket_servers.new_bucket(storage, server)
        faults = None
        if counted:
            server, faults = stack.enter_context(bucket_faults.proxy(server))
        os.environ.update(bucket_servers.environment(storage, server))
        yield as_path(path), faults


def overhead(folder: pathlib.Path):
    (folder / "config.py").write_text(CONFIG.format(steps=STEPS, save_every=SAVE_EVERY))
    os.environ[local_cache.VARIABLE] = str(folder / "cache")

    def run(place, name) -> float:
        began = time.perf_counter()
        flags = [f"--config={folder}/config.py", f"--config.data.path={place}/data", f"--workdir={place}/{name}"]
        assert main(["train", *flags]) == 0
        return time.perf_counter() - began

    with bucket("gs") as (gs, _), bucket("s3") as (s3, _):
        places = {"disk": folder, "gs": gs, "s3": s3}
        for place in places.values():
            tiny_run.write_data(place / "data", "latents", tiny.SETTINGS.autoencoder)
        run(folder, "warm")
        seconds = collections.defaultdict(list)
        for turn in range(3):
            for name, place in places.items():
                seconds[name].append(run(place, f"run{turn}"))
    for name, found in seconds.items():
        more = np.median(found) / np.median(seconds["disk"]) - 1
        print(f"{name}: {', '.join(f'{x:.1f}' for x in found)} s, median {more:+.0%} to the disk")


def reads(folder: pathlib.Path):
    with bucket("gs", counted=True) as (gs, counts):
        tiny_run.write_data(folder / "data", "latents", tiny.SETTINGS.autoencoder)
        copy_files(folder / "data", gs / "data")
        copy_files(folder / "data/autoencoder", gs / "data/autoencoder")
        data = {"path": f"{gs}/data", "batch": HOSTS, "threads": 1}
        settings = tiny.change(tiny.SETTINGS, text={"vocabulary": 400}, data=data)
        for named in (False, True):
            os.environ.pop(local_cache.VARIABLE, None)
            if named:
                os.environ[local_cache.VARIABLE] = str(folder / "cache")
            found = []
            for host in range(HOSTS):
                before = counts.seen
                stream = train_sequences(settings, rows=[host])
                opened = counts.seen - before
                for step in range(4):
                    stream.batch_at(step)
                found.append((opened, counts.seen - before - opened))
            start, steps = np.array(found).T
            how = "with the cache" if named else "direct"
            print(
                f"{how}: {HOSTS} hosts, requests of a host to start {start.min()} to {start.max()}, "
                f"for 4 updates of a row each {steps.min()} to {steps.max()}, mean {steps.mean():.1f}"
            )


def start(folder: pathlib.Path):
    clip = Clip("train", "a.mp4", 0.0, 1.0, 16.0, 1, 8, 8, (1, 8, 8, 3), ("a",), (2,))
    array = np.zeros((1, 8, 8, 3), np.uint8)
    arrays = {"pixels": (None, None, None, 3)}
    clips, digest = write_shard(folder / "one", arrays, [(clip, {"pixels": array})])
    for name, storage in (("disk", None), ("gs", "gs")):
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(bucket(storage))[0] if storage else folder / "disk"
            began = time.perf_counter()
            content = (folder / "one").read_bytes()
            (place / "raw").mkdir(parents=True, exist_ok=True)
            parts = []
            for number in range(SHARDS):
                (place / f"raw/{number}").write_bytes(content)
                parts.append((place / f"raw/{number}", clips, digest))
            wrote = time.perf_counter() - began
            finish(place, arrays, {"train": parts, "validation": []}, {"kind": "pixels", "generation": 1}, {})
            finished = time.perf_counter() - began - wrote
            os.environ.pop(local_cache.VARIABLE, None)
            began = time.perf_counter()
            records = Records(place, "pixels")
            lines = len(records.clips("train"))
            manifest = time.perf_counter() - began
            records.read("train", 0)
            print(
                f"{name}: {lines} shards written in {wrote:.1f} s, finished in {finished:.1f} s; manifest read in "
                f"{manifest:.1f} s, first record after {time.perf_counter() - began:.1f} s"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "reads", "start"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with tempfile.TemporaryDirectory() as temporary:
        globals()[parser.parse_args().what](pathlib.Path(temporary))
