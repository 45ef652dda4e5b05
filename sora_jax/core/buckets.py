"""Paths in buckets, gs:// and s3://, with pathlib's methods; read and written through fsspec.

An epath.Path is nearly this. What it lacks means a file on this machine without a word (`resolve`), takes a bucket
that does not answer for an empty one (`exists`, `glob`), or publishes half a file (`open("wb")`).
"""

import contextlib
import dataclasses
import datetime
import fnmatch
import functools
import importlib.util
import logging
import os
import pathlib
import re
import stat
from collections.abc import Iterator
from typing import Any

from etils.epath.gpath import PosixGPath

from sora_jax.core.errors import InputError

SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}  # what begins a path in a bucket -> the package that reads it
EXTRAS = {"gs": "gcs", "s3": "s3"}
S3_TRIES = 8
SECONDS_TO_ANSWER = 120  # for one request; a bucket that hangs is an error, and is tried again

LOG_IN = {
    "gs": "run `gcloud auth application-default login`, or name a key file in GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`",
}
_UNREACHABLE = re.compile(r"Connect|Timeout|Disconnected|gaierror|EndpointConnection|TransportError")
_NO_CREDENTIALS = re.compile(r"NoCredentials|PartialCredentials|DefaultCredentials|RefreshError")


@functools.cache
def _set_options():
    """Options of the file systems, before the first of them is made."""
    import fsspec

    # They log a traceback for each request that they give up; the error says it in one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    logging.getLogger("s3fs").setLevel(logging.CRITICAL)
    # With TensorFlow installed epath would go through it, by other rules.
    os.environ["EPATH_USE_TF"] = "false"
    for name in ("gs", "gcs", "s3"):
        options = fsspec.config.conf.setdefault(name, {})
        # A listing that is kept never shows what other hosts write.
        options.setdefault("use_listings_cache", False)
        if name == "s3":
            # Standard: s3fs tries again itself, and waits longer each time.
            options.setdefault("config_kwargs", {"retries": {"mode": "standard", "max_attempts": S3_TRIES}})
            import s3fs

            s3fs.S3FileSystem.retries = S3_TRIES
            s3fs.core.set_custom_error_handler(lambda error: _status(error) == 429)
        else:
            options.setdefault("requests_timeout", SECONDS_TO_ANSWER)


def bucket_path(path: str) -> "BucketPath":
    """The path in a bucket. Raises: InputError if its scheme is unknown, or its extra is not installed."""
    scheme = path.partition("://")[0]
    if scheme not in SCHEMES:
        raise InputError(f"{path}: no storage {scheme}://; it is gs://BUCKET/..., s3://BUCKET/... or a folder")
    if not re.match(r"\w+://[^/]", path):
        raise InputError(f"{path}: names no bucket; it is {scheme}://BUCKET/...")
    if not importlib.util.find_spec(SCHEMES[scheme]):
        raise InputError(f"{path}: needs {SCHEMES[scheme]}; run `pip install 'sora_jax[{EXTRAS[scheme]}]'`")
    return BucketPath(path)


@dataclasses.dataclass(frozen=True)
class ObjectStatus:
    """What a bucket knows of an object; the names are os.stat's.

    version: changes whenever the object is written.
    md5: base64 of its MD5; "" if the bucket does not tell.
    """

    st_size: int
    st_mtime: float
    version: str
    md5: str

    st_mode = stat.S_IFREG

    @classmethod
    def of(cls, info: dict) -> "ObjectStatus":
        """What fsspec's description of an object says."""
        when = info.get("LastModified") or info.get("mtime")
        modified = when.timestamp() if isinstance(when, datetime.datetime) else 0.0
        version = str(info.get("generation") or info.get("ETag") or "")
        return cls(info.get("size") or 0, modified, version, info.get("md5Hash", ""))

    @property
    def st_mtime_ns(self) -> int:
        return int(self.st_mtime * 1e9)


class BucketPath(PosixGPath):
    """A path in a bucket. Errors that the user can mend are InputErrors; an absent object is FileNotFoundError."""

    @property
    def scheme(self) -> str:
        return self.parts[1]

    @property
    def bucket(self) -> str:
        return self.parts[2]

    @property
    def fs(self) -> Any:
        """The fsspec file system that holds it."""
        import fsspec

        _set_options()
        return fsspec.core.url_to_fs(str(self))[0]

    def resolve(self, strict: bool = False):
        return self

    absolute = expanduser = resolve

    def check_bucket(self):
        """Raise InputError if the bucket does not exist or can't be listed; one request."""
        with explained(self, writes=True):
            if self.scheme == "gs":
                self.fs.call("GET", "b/{}/o", self.bucket, maxResults=1)
            else:
                self.fs.call_s3("list_objects_v2", Bucket=self.bucket, MaxKeys=1)

    def _info(self) -> dict | None:
        if len(self.parts) < 3:  # above all buckets
            return None
        # fsspec's own `exists` is False after any error.
        with explained(self), contextlib.suppress(FileNotFoundError):
            return self.fs.info(str(self))

    def exists(self) -> bool:
        return self._info() is not None

    def is_dir(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def stat(self) -> Any:
        info = self._info()
        if info is None:
            raise FileNotFoundError(f"{self}: no such file")
        return ObjectStatus.of(info)

    def statuses(self) -> list[ObjectStatus]:
        """Of all files below it, in few requests."""
        with explained(self):
            return [ObjectStatus.of(info) for info in self.fs.find(str(self), detail=True).values()]

    def iterdir(self) -> Iterator["BucketPath"]:
        with explained(self):
            names = self.fs.ls(str(self), detail=False)
        folder = self.fs._strip_protocol(str(self)).rstrip("/")
        names = sorted({name.rstrip("/") for name in names} - {folder})
        return iter([self / name.rpartition("/")[2] for name in names])

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        first, _, rest = pattern.partition("/")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in self.iterdir():
                if fnmatch.fnmatchcase(path.name, first):
                    yield from path.glob(rest) if rest else [path]

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """The files below it; buckets have no folders without files."""
        with explained(self):
            names = self.fs.find(str(self))
        for name in sorted(names):
            path = type(self)(f"{self.scheme}://{name}")
            if fnmatch.fnmatchcase(path.name, pattern) and path != self:
                yield path

    def open(self, mode: str = "r", *, encoding: str | None = None, newline: str | None = None, **_) -> Any:
        """The object, for reading alone: what is written through an open file may be published half."""
        if set(mode) - set("rbt"):
            raise ValueError(f"{self}: mode {mode!r}; write a file in a bucket with storage.atomic_write")
        options = {} if "b" in mode else {"encoding": encoding or "utf-8", "newline": newline}
        with explained(self):
            return self.fs.open(str(self), mode, **options)

    def read_bytes(self) -> bytes:
        with explained(self):
            return self.fs.cat_file(str(self))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        with explained(self, writes=True):
            self.fs.pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def create(self, data: bytes) -> bool:
        """Write an object that does not exist yet; False if it does. Of several that try, one succeeds."""
        with explained(self, writes=True):
            try:
                self.fs.pipe_file(str(self), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _status(error) == 412 or "precondition" in str(error).lower():
                    return False
                raise
        return True

    def upload(self, file: pathlib.Path):
        """Write the object from a local file, whole or not at all."""
        with explained(self, writes=True):
            self.fs.put_file(str(file), str(self))

    def download(self, file: pathlib.Path):
        """Copy the object to a local file."""
        with explained(self):
            self.fs.get_file(str(self), str(file))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False):
        """Nothing: a folder is there once it holds a file."""

    def touch(self, mode: int = 0o666, exist_ok: bool = True):
        if not self.exists():
            self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False):
        try:
            with explained(self):
                self.fs.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False):
        with explained(self):
            files = self.fs.find(str(self))
            if not files and not missing_ok:
                raise FileNotFoundError(f"{self}: no such folder")
            if files:
                self.fs.rm(files)

    def replace(self, target):
        """Copy to another name, then remove this one: of a single object, within a bucket of the same kind."""
        target = type(self)(target)
        self.copy_to(target)
        self.unlink(missing_ok=True)
        return target

    rename = replace

    def copy_to(self, target):
        """Copy the object within the bucket, without its bytes passing here."""
        with explained(self):
            self.fs.cp_file(str(self), str(target))


@contextlib.contextmanager
def explained(path: BucketPath, *, writes: bool = False) -> Iterator[None]:
    """Turn an error of a bucket that the user can mend into an InputError.

    Args:
      writes: whether a missing object means that there is no such bucket.
    """
    try:
        yield
    except FileNotFoundError as error:
        if writes:
            raise InputError(f"{path}: no bucket {path.bucket}; make it, or correct the name") from error
        raise
    except FileExistsError:
        raise
    except Exception as error:  # aiohttp, botocore and google-auth share no class
        if reason := bucket_reason(error, path.scheme):
            raise InputError(f"{path}: {reason}") from error
        raise


def bucket_reason(error: BaseException, scheme: str) -> str:
    """What the user can mend of an error of a bucket; "" if nothing is known."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    names = " ".join(kind.__name__ for link in chain for kind in type(link).__mro__)
    text = " ".join(map(str, chain))
    status = next((code for link in chain if (code := _status(link))), 0)
    if found := re.search(r"HTTP response code: (\d{3})", text):  # TensorStore's
        status = int(found[1])
    if "NoSuchBucket" in text or "specified bucket does not exist" in text:
        return "no such bucket; make it, or correct the name"
    if status == 401 or _NO_CREDENTIALS.search(names) or "Anonymous caller" in text:
        return f"no credentials for it; {LOG_IN[scheme]}"
    if status == 403 or "PermissionError" in names or "PERMISSION_DENIED" in text or text.startswith("Forbidden"):
        return "forbidden; your account needs to list, read and write the objects of this bucket"
    if status in (429, 500, 502, 503, 504):
        return f"the bucket does not answer now (HTTP {status}, tried several times); run this again later"
    if _UNREACHABLE.search(names):
        return "the bucket is not reachable; check the network and the endpoint, then run this again"
    return ""


def _status(error: BaseException) -> int:
    """The HTTP status of an error; 0 if it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return int(code) if str(code).isdigit() else 0
