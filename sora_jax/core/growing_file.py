"""Text files that grow while a program runs, such as a log: appended to on a disk, uploaded anew in a bucket."""

import pathlib
import threading

from sora_jax.core.errors import InputError
from sora_jax.core.storage import explain_os_errors, in_bucket

UPLOAD_SECONDS = 15  # between uploads: an object can't be appended to, so all of it is sent each time


def open_growing(path: pathlib.Path):
    """A text file to append to; a context manager. Raises: InputError if it can't be written."""
    if in_bucket(path):
        return UploadedFile(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")


class UploadedFile:
    """An object in a bucket that grows: its content is in memory, and a thread uploads it whenever it has changed.

    `write` never waits for the bucket; it raises the InputError of an upload that failed. `close` sends
    what is left.
    """

    def __init__(self, path):
        self.path = path
        self._content = bytearray(path.read_bytes() if path.exists() else b"")
        self._uploaded, self._error = len(self._content), None
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, text: str):
        if self._error is not None:
            raise self._error
        self._content += text.encode()

    def flush(self):
        """Nothing: the thread uploads what was written."""

    def sync(self):
        """Upload what was written, now. Raises: InputError if it can't be uploaded."""
        with self._lock:
            self._upload()

    def close(self):
        """Upload what is left. Raises: InputError if it can't be uploaded."""
        if not self._closed.is_set():
            self._closed.set()
            self._thread.join()
            self.sync()

    def _run(self):
        while not self._closed.wait(UPLOAD_SECONDS):
            try:
                self.sync()
                self._error = None
            except (InputError, OSError) as error:
                self._error = error

    def _upload(self):
        content = bytes(self._content)
        if len(content) > self._uploaded:
            self.path.write_bytes(content)
            self._uploaded = len(content)
