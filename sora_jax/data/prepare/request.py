"""What a data set was asked for: kept in it, and compared when `prepare` runs again."""

import json
import pathlib
from concurrent.futures import ThreadPoolExecutor

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import HashCache, atomic_write, content_hash, digest
from sora_jax.data.prepare.encode import Encoders
from sora_jax.data.prepare.sources import Source

FORMAT = 3  # version of the data set's format; data sets of another version are prepared anew
HASHES = ".hashes.json"  # content hashes of the sources, so that they are read once
UNFINISHED = ".unfinished"  # folder of the shards of a run that is not complete

_THREADS = 16  # that wait for a disk or a bucket

# Keys whose values are hashes: meaningless to people.
_HASHES = ("autoencoder", "tokenizer", "image encoder", "text encoder")


def hash_sources(sources: list[Source], cache: HashCache) -> dict[str, str]:
    """The content hash of each source, by name. Of a file that can't be read, the hash of its name."""

    def hash_of(source: Source) -> str:
        try:
            return cache.get(source.path, source.hash, str(source.span or ""))
        except (InputError, OSError):
            return digest(source.name)

    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip([s.name for s in sources], threads.map(hash_of, sources), strict=True))


def describe(
    settings: Settings, encoders: Encoders, tokenizer: pathlib.Path | None, multiple: tuple[int, int]
) -> dict:
    """Everything but the files that the data set depends on, as plain values for JSON.

    Args:
      multiple: heights and widths are multiples of these.
    """
    data, vocabulary = settings.data, settings.text.vocabulary
    video, text = encoders.video, encoders.text
    return {
        "format": FORMAT,
        "kind": "latents" if video else "pixels",
        "fps": data.fps,
        "sizes": list(data.sizes),
        "frames": list(data.frames),
        "multiple": list(multiple),
        "background": list(data.background),
        "deinterlace": data.deinterlace,
        "max_gap": data.max_gap,
        "validation": data.validation,
        "autoencoder": video.digest if video else "",
        "arrays": {name: list(shape) for name, shape in encoders.arrays.items()},
        "image encoder": video.image_digest if video else "",
        "text encoder": text.digest if text else "",
        "tokens": settings.text.max_tokens if text else 0,
        "tokenizer": content_hash(tokenizer) if tokenizer else f"at most {vocabulary} tokens",
    }


def check_same(out: pathlib.Path, found: dict, request: dict):
    """Raise InputError, which names the differences, if a data set was asked for otherwise."""
    if found.get("format") != FORMAT:
        raise InputError(
            f"--out: {out} was prepared by another version of sora_jax, which `train` still reads; "
            f"to add files to it, name another folder"
        )
    different = [key for key in request if found.get(key) != request[key]]
    if different:
        changes = [key if key in _HASHES else f"{key} ({found.get(key)}, not {request[key]})" for key in different]
        raise InputError(f"--out: {out} was made of other {', '.join(changes)}; remove it or name another folder")


def open_unfinished(out: pathlib.Path, request: dict, limit: int, *, finished: bool) -> tuple[pathlib.Path, int]:
    """The folder of the shards of an unfinished run, and the number of sources in a shard; made if absent.

    Args:
      limit: the largest number of sources in a shard, if the folder is made now.
      finished: whether `out` holds a data set of this request already, to which files are added.
    Raises: InputError if it belongs to another request, or `out` holds something else.
    """
    unfinished = out / UNFINISHED
    description = unfinished / "request.json"
    if description.exists():
        found = json.loads(description.read_text())
        check_same(out, found["request"], request)
        return unfinished, found["sources_per_shard"]
    if not finished and out.is_dir() and any(path.name not in (UNFINISHED, HASHES) for path in out.iterdir()):
        raise InputError(f"--out: {out} holds other files; name a new folder")
    unfinished.mkdir(parents=True, exist_ok=True)
    with atomic_write(description) as path:
        path.write_text(json.dumps({"request": request, "sources_per_shard": limit}))
    return unfinished, limit
