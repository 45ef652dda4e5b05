"""VBench's dimensions that are measured here: networks, where their weights are, and how values are normalised.

Source: Huang et al. 2023 (arXiv 2311.17982); the ranges and weights are those of its leaderboard.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.core.mesh import make_mesh
from sora_jax.core.storage import as_path
from sora_jax.data.media.video import probe
from sora_jax.evaluate.benchmark import read_video
from sora_jax.evaluate.suites.clip_score import load_tokenizer
from sora_jax.evaluate.vbench import measures
from sora_jax.interop.metric_backbones import load_clip
from sora_jax.interop.vbench import load_aesthetic_head, load_amt, load_dino, load_musiq, load_raft, load_viclip

WEIGHTS = "model.safetensors"
STATIC = "static"
GUIDE = "docs/guide/vbench.md"


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A dimension of VBench.

    Args:
      low, high: values that count as 0 and 1 in scores.
      weight: in the quality score; 0: it is no part of it.
      networks: folders of the networks that it needs.
    """

    name: str
    low: float
    high: float
    weight: float
    networks: tuple[str, ...]

    def normalised(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


DIMENSIONS = {
    dimension.name: dimension
    for dimension in (
        Dimension("subject_consistency", 0.1462, 1.0, 1, ("dino",)),
        Dimension("background_consistency", 0.2615, 1.0, 1, ("clip-b32",)),
        Dimension("temporal_flickering", 0.6293, 1.0, 1, ()),
        Dimension("motion_smoothness", 0.706, 0.9975, 1, ("amt",)),
        Dimension("dynamic_degree", 0.0, 1.0, 0.5, ("raft",)),
        Dimension("aesthetic_quality", 0.0, 1.0, 1, ("clip-l14", "aesthetic")),
        Dimension("imaging_quality", 0.0, 1.0, 1, ("musiq",)),
        Dimension("overall_consistency", 0.0, 0.364, 0, ("viclip",)),
        # The share of videos that the filter for temporal flickering keeps: no dimension of its own.
        Dimension(STATIC, 0.0, 1.0, 0, ("raft",)),
    )
}
# How each network's weights are got.
SOURCES = {
    "dino": "hf download facebook/dino-vitb16 model.safetensors --local-dir {}",
    "clip-b32": "hf download openai/clip-vit-base-patch32 model.safetensors config.json --local-dir {}",
    "clip-l14": "hf download openai/clip-vit-large-patch14 model.safetensors config.json --local-dir {}",
    "aesthetic": f"sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor, made {{}}/{WEIGHTS} as in {GUIDE}",
    "raft": f"raft-things.pth of princeton-vl/RAFT, made {{}}/{WEIGHTS} as in {GUIDE}",
    "amt": f"amt-s.pth of MCG-NKU/AMT, made {{}}/{WEIGHTS} as in {GUIDE}",
    "musiq": f"musiq_spaq_ckpt-358bb6af.pth of chaofengc/IQA-PyTorch, made {{}}/{WEIGHTS} as in {GUIDE}",
    "viclip": f"ViClip-InternVid-10M-FLT.pth of OpenGVLab, made {{}}/{WEIGHTS} as in {GUIDE}, and beside it "
    "tokenizer.json of openai/clip-vit-large-patch14",
}


def chosen_dimensions(names) -> list[Dimension]:
    """The dimensions of these names; without names all but the static filter, which costs more than all of them.

    Raises: InputError for an unknown one.
    """
    for name in names:
        if name not in DIMENSIONS:
            raise InputError(f"--dimensions: no dimension {name!r}, {did_you_mean(name, DIMENSIONS)}")
    return [DIMENSIONS[name] for name in names or DIMENSIONS if names or name != STATIC]


def missing_weights(dimension: Dimension, weights: str) -> str:
    """How to get the weights that a dimension lacks; "" if all are there."""
    folder = as_path(weights)
    lacking = [name for name in dimension.networks if not any((folder / name).glob("*.safetensors"))]
    return "; ".join(SOURCES[name].format(folder / name) for name in lacking)


class DimensionMeasure:
    """Measures a dimension of videos with networks that are read once, on the current mesh.

    Args:
      weights: the folder of the networks' folders.
    Raises: InputError if weights are damaged, or of another network; names the tensor.
    """

    def __init__(self, dimension: Dimension, weights: str):
        self.dimension = dimension
        folders = [str(as_path(weights) / name) for name in dimension.networks]
        loaders = {
            "dino": load_dino, "clip-b32": load_clip, "clip-l14": load_clip, "raft": load_raft, "amt": load_amt,
            "musiq": load_musiq, "viclip": load_viclip, "aesthetic": lambda folder: (load_aesthetic_head(folder),),
        }  # fmt: skip
        self.loaded: list = [
            part
            for name, folder in zip(dimension.networks, folders, strict=True)
            for part in loaders[name](folder)
        ]
        if dimension.name == "overall_consistency":
            self.tokenizer = load_tokenizer(folders[0], self.loaded[0].text.tokens)

    def measure(self, path: pathlib.Path, prompt: str) -> float | None:
        """The value of a video; None if it has too few frames."""
        frames, name = read_video(path), self.dimension.name
        if name == "dynamic_degree":
            return measures.dynamic_degree(frames, probe(path).fps or 1.0, *self.loaded)
        if name == "overall_consistency":
            return measures.overall_consistency(frames, self.tokenizer.encode(prompt).ids, *self.loaded)
        if name == STATIC:
            return float(measures.is_static(frames, *self.loaded))
        return getattr(measures, name)(frames, *self.loaded)


def mean(values) -> float | None:
    """The mean of the values that there are; None if there are none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def quality_score(values: Mapping[str, float | None]) -> tuple[float | None, list[str]]:
    """VBench's quality score, and the dimensions that it lacks.

    Returns: the weighted mean of the normalised values, None if there are none; names of the missing dimensions.
    """
    parts = [dimension for dimension in DIMENSIONS.values() if dimension.weight]
    there = [dimension for dimension in parts if values.get(dimension.name) is not None]
    missing = [dimension.name for dimension in parts if dimension not in there]
    if not there:
        return None, missing
    total = sum(dimension.weight * dimension.normalised(values[dimension.name]) for dimension in there)
    return total / sum(dimension.weight for dimension in there), missing


def frames_mesh():
    """A mesh of all devices of this process, which take frames."""
    return make_mesh(MeshSettings(data=-1), jax.local_devices())
