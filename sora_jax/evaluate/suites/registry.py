"""The benchmarks for any model, by name."""

from sora_jax.evaluate.suites.clip_score import CLIP
from sora_jax.evaluate.suites.fvd import FVD
from sora_jax.evaluate.suites.loss import LOSS
from sora_jax.evaluate.suites.reconstruction import RECONSTRUCTION
from sora_jax.evaluate.suites.temporal import TEMPORAL
from sora_jax.evaluate.suites.vbench import VBENCH

BENCHMARKS = {
    "loss": LOSS,
    "reconstruction": RECONSTRUCTION,
    "temporal": TEMPORAL,
    "fvd": FVD,
    "clip": CLIP,
    "vbench": VBENCH,
}
