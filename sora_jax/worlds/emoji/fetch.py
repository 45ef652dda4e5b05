"""Download the npm packages of animated emoji."""

import base64
import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable

from sora_jax.core.errors import InputError
from sora_jax.core.storage import explain_os_errors

VERSION = "1.0.0"
# Package -> bytes of its tar, SHA-512 as npm's `dist.integrity` has it.
PACKAGES = {
    "@lobehub/fluent-emoji-anim-1": (
        164_966_217,
        "/4m31vAuZEQ4aUJ5pxcOU5PVkuJya55GRxUZL7+zgLlxZXpzzE8jPqpDyhZICE3n47nS/Y9M5/vLdizi8201QA==",
    ),
    "@lobehub/fluent-emoji-anim-2": (
        181_915_962,
        "S6yzf0RZXrQbXdxCWuHA9BAoLdBRk2flX+ne4TPGEH/qApwisCAKHoAAGjKSlTY3OVeZ9b7t/NEbmpjawnQYJA==",
    ),
    "@lobehub/fluent-emoji-anim-3": (
        197_000_910,
        "UzRSUDMjdfdt9vER5bhjHkPqgc3EEgfGtYs6ndvizOTvQOxYQ57ow2RTkWSDZxwW30X4EYBi2eWTS7CXDDoFsg==",
    ),
    "@lobehub/fluent-emoji-anim-4": (
        185_915_894,
        "IIkl5ztSd1HrzvIDt/uGsFoC1WODXRdYq5uROrnkyqi9DbToEcJ1nlY86PnoUXeFS9nBCnHfiYk3ouSEGThFmA==",
    ),
}
DEFAULT_REGISTRY = "https://registry.npmjs.org"
_BLOCK = 2**20
_PATIENCE = 60  # seconds without a byte


def fetch(
    folder: pathlib.Path,
    *,
    packages: dict[str, tuple[int, str]] = PACKAGES,
    registry: str = "",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Download the packages into a folder. Those that are there are kept, and a part of one is continued.

    Args:
      packages: name -> (bytes, SHA-512 in base64).
      registry: address; "": the one that npm's settings name.
      progress: called with the bytes that are there and those of all packages.
    Raises: InputError if the registry can't be reached or a file is not the expected one.
    """
    total, before = sum(size for size, _ in packages.values()), 0
    registry = (registry or registry_address()).rstrip("/")
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, (size, checksum) in packages.items():
        stem = name.rpartition("/")[2]
        path = folder / f"{stem}-{VERSION}.tgz"
        if not path.exists():
            part = path.with_suffix(".part")
            _download(f"{registry}/{name}/-/{path.name}", part, size, lambda n: progress(before + n, total))  # noqa: B023
            if _sha512(part) != checksum:
                part.unlink()
                raise InputError(
                    f"{name}: what {registry} sent is not version {VERSION}; it is removed, try again"
                )
            part.replace(path)
        before += size
        progress(before, total)


def registry_address() -> str:
    """The registry of npm's settings: its environment variable, or npm's own answer; else the public one."""
    if address := os.environ.get("npm_config_registry"):  # noqa: SIM112 - npm's own spelling
        return address
    if npm := shutil.which("npm"):
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=30)
            if asked.returncode == 0 and asked.stdout.strip().startswith("http"):
                return asked.stdout.strip()
    return DEFAULT_REGISTRY


def _download(address: str, part: pathlib.Path, size: int, progress):
    """Append the missing bytes to `part`."""
    there = part.stat().st_size if part.exists() else 0
    if there >= size:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer, explain_os_errors(part):
            if there and answer.status != 206:  # the server begins anew
                there = 0
            with part.open("ab" if there else "wb") as file:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    there += len(block)
                    progress(there)
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"{address}: can't be downloaded ({reason}); the same command continues, or name a folder that has "
            f"the packages with --files"
        ) from error
    if there < size:
        raise InputError(
            f"{address}: the connection broke after {there:,} of {size:,} bytes; the same command continues"
        )


def _sha512(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
