"""Safetensors files written tensor by tensor, so that no more than one tensor is in memory."""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sora_jax.core.storage import atomic_write
from sora_jax.interop.tensors import DTYPES

ALIGNMENT = 8  # bytes, of where the data begin


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor to write: its name, shape and type (as safetensors names it: BF16)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def write_tensors(
    path: pathlib.Path,
    entries: Sequence[Entry],
    parts: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
):
    """Write a safetensors file; it appears whole or not at all.

    Args:
      entries: its tensors.
      parts: their data in the same order, each tensor as one array or as several that lie one after the other,
        already of the tensor's type.
      metadata: {name: text} for the file's header.
    Raises: InputError if it can't be written, ValueError if the parts are not as long as the entries say.
    """
    header: dict[str, dict] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.bytes],
        }
        end += entry.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with atomic_write(path) as temporary:
        written = 0
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for part in parts:
                bits = np.ascontiguousarray(part.view(f"u{part.itemsize}"))  # many times faster than in bfloat16
                written += file.write(bits.reshape(-1).view(np.uint8).data)
        if written != end:
            raise ValueError(f"{path}: {written} bytes of data, the header says {end}")
