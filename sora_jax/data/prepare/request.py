"""What a data set was asked for: written beside it, compared when the same command runs again."""

import json
import pathlib

from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import atomic_write, content_hash, digest
from sora_jax.data.prepare.captions import Source
from sora_jax.data.prepare.encode import Encoders

FORMAT = 2  # version of the data set's format; data sets of another version are prepared anew
UNFINISHED = ".unfinished"  # folder of the shards of a run that is not complete

# Values of keys that older data sets lack.
_DEFAULTS = {"text encoder": "", "tokens": 0}
# Keys whose values are hashes: meaningless to people.
_HASHES = ("videos", "captions", "autoencoder", "tokenizer", "image encoder", "text encoder")


def hash_sources(sources: list[Source]) -> dict[str, str]:
    """The content hash of each source, by name. Of a file that can't be read, the hash of its name."""
    hashes = {}
    for source in sources:
        try:
            hashes[source.name] = content_hash(source.path)
        except (InputError, OSError):
            hashes[source.name] = digest(source.name)
    return hashes


def describe(
    settings: Settings,
    sources: list[Source],
    hashes: dict[str, str],
    encoders: Encoders,
    tokenizer: pathlib.Path | None,
    multiple: tuple[int, int],
) -> dict:
    """Everything that the data set depends on, as plain values for JSON.

    Args:
      hashes: of the sources, by name.
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
        "validation": data.validation,
        "autoencoder": video.digest if video else "",
        "arrays": {name: list(shape) for name, shape in encoders.arrays.items()},
        "image encoder": video.image_digest if video else "",
        "text encoder": text.digest if text else "",
        "tokens": settings.text.max_tokens if text else 0,
        "tokenizer": content_hash(tokenizer) if tokenizer else f"at most {vocabulary} tokens",
        "videos": digest(sorted(hashes.items())),
        "captions": digest([(source.name, source.captions) for source in sources]),
    }


def check_same(out: pathlib.Path, found: dict, request: dict):
    """Raise InputError, which names the differences, if a data set was asked for otherwise."""
    different = [key for key in request if found.get(key, _DEFAULTS.get(key)) != request[key]]
    if different:
        changes = [key if key in _HASHES else f"{key} ({found.get(key)}, not {request[key]})" for key in different]
        raise InputError(f"--out: {out} was made of other {', '.join(changes)}; remove it or name another folder")


def open_unfinished(out: pathlib.Path, request: dict) -> pathlib.Path:
    """The folder of the shards of an unfinished run; made if it is absent.

    Raises: InputError if it belongs to another request, or `out` holds something else.
    """
    unfinished = out / UNFINISHED
    description = unfinished / "request.json"
    if description.exists():
        check_same(out, json.loads(description.read_text()), request)
        return unfinished
    if out.is_dir() and any(path.name != UNFINISHED for path in out.iterdir()):
        raise InputError(f"--out: {out} holds other files; name a new folder")
    unfinished.mkdir(parents=True, exist_ok=True)
    with atomic_write(description) as path:
        path.write_text(json.dumps(request))
    return unfinished
