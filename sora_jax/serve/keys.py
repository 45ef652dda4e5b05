"""Keys that open the server, and how many requests each may make."""

import hashlib
import math
import pathlib
import secrets
import time

import limits
import limits.storage
import limits.strategies

from sora_jax.core.errors import InputError
from sora_jax.serve.api.errors import ApiError

COOKIE = "sora_jax_key"
MIN_KEY = 16  # characters
ATTEMPTS_PER_MINUTE = 30  # with a wrong key, from one address


class ApiKeys:
    """Keys, of which only hashes are held.

    Args:
      keys: each opens the server.
      requests_per_minute: that each key may make.
    """

    def __init__(self, keys: list[str], requests_per_minute: int):
        self._hashes = [_hash(key) for key in keys]
        self._requests = limits.RateLimitItemPerMinute(requests_per_minute)
        self._attempts = limits.RateLimitItemPerMinute(ATTEMPTS_PER_MINUTE)
        self._limiter = limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage())

    def find(self, key: str) -> int | None:
        """The number of a key, None if it is none of them; in a time that does not depend on the key."""
        given = _hash(key)
        equal = [secrets.compare_digest(given, known) for known in self._hashes]
        return equal.index(True) if any(equal) else None

    def count_request(self, number: int):
        """Raise ApiError if a key's requests are used up."""
        self._count(self._requests, f"key {number}", "this key's requests of a minute are used up")

    def count_attempt(self, client: str):
        """Raise ApiError if too many wrong keys came from an address."""
        self._count(self._attempts, f"client {client}", "too many attempts with a wrong key")

    def _count(self, item, who, told):
        if not self._limiter.hit(item, who):
            wait = math.ceil(self._limiter.get_window_stats(item, who).reset_time - time.time())
            headers = {"retry-after": str(max(1, wait))}
            raise ApiError(429, told, code="rate_limit_exceeded", headers=headers)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: pathlib.Path) -> list[str]:
    """The keys in a file, one a line; # begins a comment. Raises: InputError for none, or a weak one."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise InputError(f"--api-key-file={path}: can't be read, {error.strerror}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"--api-key-file={path}: holds no key; write one a line, e.g. of openssl rand -hex 24")
    if any(len(key) < MIN_KEY or not key.isprintable() or " " in key for key in keys):
        raise InputError(f"--api-key-file={path}: a key needs {MIN_KEY} characters or more, without spaces")
    return keys
