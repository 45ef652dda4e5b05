"""The lock on a workdir in a bucket, where an object that must not exist yet has one writer."""

import json
import secrets
import time
from contextlib import suppress

from sora_jax.core.buckets import BucketPath
from sora_jax.core.errors import InputError
from sora_jax.core.storage import in_bucket
from sora_jax.train import workdir_lock
from sora_jax.train.workdir_lock import WorkdirLock, is_dead, is_local, valid_owner

SETTLE_SECONDS = 2  # after which two that took over the same dead lock see which of them has it


class BucketLock(WorkdirLock):
    """A WorkdirLock in a bucket: its owner writes the object again and again, so that it is seen to live."""

    path: BucketPath

    def __init__(self, workdir):
        super().__init__(workdir)
        # Two starts of one process within a second differ in nothing else.
        self._me |= {"id": secrets.token_hex(8)}

    def __exit__(self, *_):
        self._released.set()
        with suppress(OSError, InputError):
            if self._is_mine(self._read()[0]):
                self.path.unlink()

    def _acquire(self):
        seen, deadline, taken_over = None, time.monotonic() + workdir_lock.STALE_SECONDS, False
        while True:
            if self.path.create(json.dumps(self._me).encode()):
                if not taken_over:
                    return
                time.sleep(SETTLE_SECONDS)
            owner, version = self._read()
            if self._is_mine(owner):
                return
            seen = seen or version
            dead = owner is None or is_dead(owner, self._me)
            if not dead and (is_local(owner, self._me) or version != seen):
                raise InputError(self.held_by(owner))
            if dead or time.monotonic() > deadline:
                self.path.unlink(missing_ok=True)
                taken_over = True
            else:
                time.sleep(1)

    def _touch(self):
        touched = 0
        while not self._released.wait(workdir_lock.TOUCH_SECONDS):
            with suppress(OSError, InputError):  # the bucket does not answer: the next touch may come through
                owner, _ = self._read()
                if owner is not None and not self._is_mine(owner):
                    self._lost.set()
                    return
                touched += 1
                if not self._released.is_set():
                    self.path.write_text(json.dumps(self._me | {"touched": touched}))

    def _read(self) -> tuple[dict | None, str]:
        """(the owner that the object names, None if there is none; the version of the object)."""
        try:
            version = self.path.stat().version
            return valid_owner(self.path.read_bytes()), version
        except FileNotFoundError:
            return None, ""

    def _is_mine(self, owner: dict | None) -> bool:
        return owner is not None and {key: owner.get(key) for key in self._me} == self._me


def lock_of(workdir) -> WorkdirLock:
    """The lock of a workdir on a disk or in a bucket."""
    return BucketLock(workdir) if in_bucket(workdir) else WorkdirLock(workdir)
