"""The provenance of a video: a manifest in the form of C2PA, hashes, and a visible watermark."""

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import sora_jax
from sora_jax.checkpoint.checksums import checksums
from sora_jax.core.storage import atomic_write, sha256

# IPTC's vocabulary of digital source types, which C2PA uses.
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_MARK_SHARE = 1 / 20  # height of the text, as a share of the picture's
_DARKENED = 0.4  # brightness of the ground that is left


def params_hash(params: dict) -> str:
    """A hash of the parameters, 16 hex digits, the same on every mesh."""
    sums = json.dumps(checksums(params), sort_keys=True)
    return hashlib.sha256(sums.encode()).hexdigest()[:16]


def write_manifest(path: pathlib.Path, metadata: Mapping, ingredients: Sequence[pathlib.Path]):
    """Write `NAME.c2pa.json` beside the file: how it was made, and from which files; not signed.

    Source: C2PA technical specification 2.1, sections 9 (ingredients) and 18 (assertions).
    """
    kind = "compositeWithTrainedAlgorithmicMedia" if ingredients else "trainedAlgorithmicMedia"
    action = {
        "action": "c2pa.edited" if ingredients else "c2pa.created",
        "digitalSourceType": SOURCE + kind,
        "softwareAgent": {"name": "sora_jax", "version": sora_jax.__version__},
        "description": "AI-generated video",
    }
    manifest = {
        "claim_generator": f"sora_jax/{sora_jax.__version__}",
        "title": path.name,
        "format": "video/mp4",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": "c2pa.hash.data", "data": {"alg": "sha256", "hash": sha256(path)}},
            {"label": "sora_jax.generation", "data": dict(metadata)},
        ],
        "ingredients": [
            {"title": item.name, "relationship": "inputTo", "alg": "sha256", "hash": sha256(item)}
            for item in ingredients
        ],
    }
    with atomic_write(path.with_suffix(".c2pa.json")) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")


@functools.lru_cache(maxsize=4)
def _mark(text: str, H: int, W: int):
    """(rows and columns of the watermark; how much of each pixel it covers, [h, w] in [0, 1])."""
    font = ImageFont.load_default(size=max(6, round(H * _MARK_SHARE)))
    left, top, right, bottom = font.getbbox(text)
    drawn = Image.new("L", (min(W, right - left), min(H, bottom - top)))
    ImageDraw.Draw(drawn).text((-left, -top), text, fill=255, font=font)
    cover = np.asarray(drawn, np.float32) / 255
    h, w = cover.shape
    edge = min(max(1, H // 50), H - h, W - w)
    return (slice(H - edge - h, H - edge), slice(W - edge - w, W - edge)), cover


def marked(frames: np.ndarray, text: str) -> np.ndarray:
    """Frames [F, H, W, 3] uint8 with a text in the lower right corner, white on a darkened ground."""
    place, cover = _mark(text, *frames.shape[1:3])
    shown = frames.copy()
    ground = shown[:, *place].astype(np.float32) * _DARKENED
    shown[:, *place] = np.rint(ground + (255 - ground) * cover[..., None])
    return shown
