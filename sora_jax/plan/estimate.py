"""FLOPs (exact), memory and traffic (rough) of a step by formulas, without compiling.

Used for chips without a compiler on this machine, and to choose what to compile. tests/plan/test_plan.py compares
the FLOPs with those of compiled programs.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.config.schema import Settings
from sora_jax.core.mesh import AXES, axes_of, num_shards
from sora_jax.core.patches import PatchBatch
from sora_jax.plan.collectives import ring_bytes
from sora_jax.plan.programs import abstract_frozen, chip_bytes
from sora_jax.plan.topology import Topology
from sora_jax.train.monitoring.flops import text_flops, train_flops, transformer_flops
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import abstract_state

# Matrix products of attention's backward pass by kernel; the forward pass has 2. All but one recompute the logits.
BACKWARD = {"xla": 4, "chunked": 5, "pallas": 5}
# Peak bytes per token of a block's backward pass, as multiples of the model width and of the MLP's width.
# Estimated from the block's arrays; the compiler's number is the one to trust.
WIDTHS, MLPS = 40, 8


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Estimated seconds per step of computation, memory and each link, each taken alone.

    Args:
      serial: whether computation and memory traffic do not overlap, because kernels run one after the other (GPU).
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    serial: bool

    @property
    def least(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.compute, self.hbm, self.ici, self.dcn)

    @property
    def most(self) -> float:
        """Seconds if nothing overlaps."""
        busy = self.compute + self.hbm if self.serial else max(self.compute, self.hbm)
        return busy + self.ici + self.dcn


def useful_flops(settings: Settings, what: str, shape: tuple[int, int, int] | None) -> float | None:
    """FLOPs of the model in one run, over all chips, as `train` counts them for its MFU; None: not counted.

    Each sequence is taken as one clip with a caption of the maximum length. Packed clips need less attention.
    """
    if shape is None:
        return None
    B, N, S = shape
    S = min(S, settings.text.max_tokens)
    if what == "sample":
        return B * transformer_flops(settings.transformer, N, S)
    ones = (np.broadcast_to(np.int32(1), (1, n)) for n in (N, S))
    row = PatchBatch(None, None, next(ones), None, None, next(ones))
    return B * train_flops(settings, row)


def executed_flops(settings: Settings, what: str, shape: tuple[int, int, int] | None) -> float | None:
    """FLOPs executed in one run, over all chips, with recomputation and padded text; None: not counted."""
    if shape is None:
        return None
    (B, N, S), model = shape, settings.transformer
    attention = model.layers * 4 * model.width * N * (N + S)
    linear = transformer_flops(model, N, S) - attention
    if what == "sample":
        return B * (linear + attention)
    again = model.remat not in ("none", "save_products")
    passes = (1 if settings.lora.rank else 2) + 1 + again
    products = 2 * (1 + (model.remat in ("full", "offload"))) + BACKWARD.get(model.attention, 5)
    text = 1 if settings.text.weights or settings.lora.rank else 4
    text = 0 if settings.data.embeddings else text
    return B * (passes * linear + products / 2 * attention + text * text_flops(settings.text, S))


def plain(settings: Settings) -> Settings:
    """The settings with defaults for everything that only changes how the state is sharded."""
    default = Settings()
    train = dataclasses.replace(default.train, init_from=settings.train.init_from)
    model = dataclasses.replace(settings.transformer, remat="full", attention="xla")
    data = dataclasses.replace(default.data, embeddings=settings.data.embeddings)
    return dataclasses.replace(settings, mesh=default.mesh, data=data, train=train, transformer=model)


@functools.cache
def _types(settings: Settings):
    """(state, frozen) as types, which are the same on every mesh but for the sizes of its axes."""
    mesh = jax.sharding.AbstractMesh(
        (2,) * len(AXES), AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES)
    )
    with jax.sharding.use_abstract_mesh(mesh):
        objective = make_objective(settings, settings.autoencoder)
        optimizer = make_optimizer(settings.optimizer, settings.train.steps, objective.players, objective.rates)
        return abstract_state(objective, optimizer), abstract_frozen(settings)


def held(settings: Settings, sizes: dict[str, int]) -> dict[str, int]:
    """Exact bytes of each part of the training state on one device."""
    return _held(plain(settings), tuple(sizes.items()))


@functools.cache
def _held(settings, sizes):
    state, frozen = _types(settings)
    parts = {"weights": state.params, "average": state.ema, "optimizer": state.opt_state, "frozen": frozen}
    return {name: chip_bytes(tree, dict(sizes)) for name, tree in parts.items()}


def divides(settings: Settings, sizes: dict[str, int]) -> bool:
    """Whether a mesh of these sizes divides every weight."""
    return _divides(plain(settings), tuple(sizes.items()))


@functools.cache
def _divides(settings, sizes):
    sizes = dict(sizes)
    for x in jax.tree.leaves(_types(settings)[0].params):
        for size, axes in zip(x.shape, x.sharding.spec, strict=False):
            if size % math.prod(sizes[axis] for axis in ([axes] if isinstance(axes, str) else axes or ())):
                return False
    return True


def peak_memory(settings: Settings, sizes: dict[str, int]) -> float:
    """Estimated peak bytes on one device in a training step."""
    model, parts = settings.transformer, held(settings, sizes)
    D, M, L = model.width, model.mlp / num_shards("mlp", sizes), model.layers
    block = WIDTHS * D + MLPS * M
    # Saved per token of a layer: its input, unless that goes to the host, and by policy some outputs.
    kept_input = jnp.dtype(model.dtype).itemsize * D
    kept = {
        "full": kept_input,
        "save_attention": 3 * kept_input,  # outputs of self-attention and cross-attention
        "save_products": 10 * kept_input + kept_input * M / D,
        "offload": 0,
        "none": block,
    }[model.remat]
    tokens = tokens_at_once(settings, sizes)
    gradients = parts["weights"] * (2 if settings.train.accumulate > 1 else 1)
    # The weights of two layers in bfloat16: one in use, the next being gathered.
    gathered = 2 * 2 * (8 * D * D + 2 * D * model.mlp) / num_shards("mlp", sizes)
    return sum(parts.values()) + gradients + tokens * (L * kept + block) + gathered


def tokens_at_once(settings: Settings, sizes: dict[str, int]) -> float:
    """Patches on one device in a micro-batch."""
    data = settings.data
    rows = data.batch / settings.train.accumulate / num_shards("batch", sizes)
    return rows * data.sequence_length / num_shards("tokens", sizes)


def traffic(settings: Settings, sizes: dict[str, int], topology: Topology) -> dict[tuple[str, str], float]:
    """Estimated bytes that a device sends in a training step, by (mesh axis, link)."""
    model, micro, weights = settings.transformer, settings.train.accumulate, held(settings, sizes)["weights"]
    # Weights gathered over "embed", in bfloat16; on a device they are float32.
    whole = weights * num_shards("embed", sizes) / 2
    tokens = tokens_at_once(settings, sizes) * micro
    activation = tokens * model.width * 2 * model.layers / num_shards("heads", sizes)
    passes = 3 if model.remat == "none" else 4  # forward, recomputation, and twice as much backward
    sent, inner = {}, 1
    for axis, n in reversed(sizes.items()):
        inner *= n
        total = 0.0
        if axis in axes_of("embed"):  # gathered forward and backward; gradients are scattered
            total += 3 * micro * ring_bytes("all-gather", whole, n)
        elif axis in axes_of("batch"):
            total += ring_bytes("all-reduce", weights, n)
        if axis in axes_of("mlp"):
            total += passes * ring_bytes("all-reduce", 2 * activation * n, n)
        elif axis in axes_of("heads_all"):  # queries, keys, values and outputs
            total += passes * ring_bytes("all-to-all", 4 * activation, n)
        elif axis in axes_of("tokens"):  # keys and values go round the ring
            total += passes * 2 * activation * (n - 1)
        link = "DCN" if inner > (topology.chip.node or topology.devices // topology.slices) else "ICI"
        if n > 1:
            sent[axis, link] = total
    return sent


def roofline(settings: Settings, sizes: dict[str, int], topology: Topology, flops: float) -> Roofline:
    """Estimated times of a training step without compiling; HBM is left out."""
    chip, seconds = topology.chip, {"ICI": 0.0, "DCN": 0.0}
    for (_, link), sent in traffic(settings, sizes, topology).items():
        seconds[link] += sent / (chip.dcn if link == "DCN" else chip.ici / max(chip.dims, 1))
    compute = flops / topology.devices / chip.peak
    return Roofline(compute, 0.0, seconds["ICI"], seconds["DCN"], serial=chip.node > 0)
