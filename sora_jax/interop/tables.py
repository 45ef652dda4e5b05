"""Foreign weights in and out: a table gives the name and layout that each of our tensors has elsewhere.

A table is {our dotted name: Tensor}. The blocks of a stack are one tensor of ours, and one of theirs each.
Reading takes from each foreign tensor only what this process's chips hold, one tensor at a time.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import einops
import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.checkpoint.model_folder import named
from sora_jax.core.errors import InputError, did_you_mean
from sora_jax.models.layers.params import abstract_params


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of our tensors elsewhere.

    name: theirs; {} stands for the number of the block in a stack.
    pattern: einops, their axes -> ours (of one block).
    sizes: of axes that the pattern splits.
    part: (start, stop) on their second axis, if ours is only a part of theirs.
    factor: ours divided by theirs.
    """

    name: str
    pattern: str = "a -> a"
    sizes: tuple[tuple[str, int], ...] = ()
    part: tuple[int, int] | None = None
    factor: float = 1.0

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        if self.part:
            theirs = theirs[:, slice(*self.part)]
        return self._times(einops.rearrange(theirs, self.pattern, **dict(self.sizes)), self.factor)

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        left, right = self.pattern.split("->")
        return self._times(einops.rearrange(ours, f"{right} -> {left}", **dict(self.sizes)), 1 / self.factor)

    def read(self, tensor, index: tuple[slice, ...]) -> np.ndarray:
        """`index` of ours from an array or a tensor in a file, read as far as the pattern needs."""
        if self.pattern == LINEAR:
            return self._times(tensor[index[1], index[0]].T, self.factor)
        if self.pattern == "a -> a":
            return self._times(tensor[index], self.factor)
        return self.ours(tensor[...])[index]

    @staticmethod
    def _times(array, factor):
        return array if factor == 1 else array * np.asarray(factor, array.dtype)


LINEAR = "o i -> i o"
Table = Mapping[str, Tensor]


def linear(ours: str, theirs: str, *, bias=True) -> dict[str, Tensor]:
    """A linear layer: their weight is [out, in], ours [in, out]."""
    table = {f"{ours}.kernel": Tensor(f"{theirs}.weight", LINEAR)}
    return table | ({f"{ours}.bias": Tensor(f"{theirs}.bias")} if bias else {})


def norm(ours: str, theirs: str, *, bias=False) -> dict[str, Tensor]:
    table = {f"{ours}.scale": Tensor(f"{theirs}.weight")}
    return table | ({f"{ours}.bias": Tensor(f"{theirs}.bias")} if bias else {})


def foreign_shapes(table: Table, module_class, settings) -> dict[str, tuple[int, ...]]:
    """{their name: their shape} of all tensors that the model needs."""
    return _shapes(table, abstract_params(module_class, settings))


def _shapes(table: Table, abstract: dict) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in to_foreign(table, dict(named(abstract)), blank)}


def load_foreign(
    tensors: Mapping,
    table: Table,
    module_class,
    settings,
    *,
    where: str,
    unused: Iterable[str] = (),
    dtype: str = "float32",
) -> dict:
    """Parameters of a model from foreign tensors; arguments and errors as of `load_tensors`."""
    abstract = abstract_params(module_class, settings)
    return load_tensors(tensors, table, abstract, where=where, unused=unused, dtype=dtype)


def load_tensors(
    tensors: Mapping,
    table: Table,
    abstract: dict,
    *,
    where: str,
    unused: Iterable[str] = (),
    dtype: str = "float32",
) -> dict:
    """Parameters from foreign tensors, laid out on the current mesh.

    Args:
      tensors: {their name: array or tensor in a file}.
      abstract: shapes and shardings of the parameters, nested.
      where: file or folder of the tensors, for errors.
      unused: names of theirs that the model has no place for and does not need.
    Raises: InputError naming a tensor that is missing, extra or of another shape.
    """
    check_tensors(tensors, _shapes(table, abstract), where, unused)
    arrays = [load_leaf(tensors, table[name], leaf, jnp.dtype(dtype)) for name, leaf in named(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def check_tensors(tensors: Mapping, shapes: Mapping[str, tuple[int, ...]], where: str, unused: Iterable[str] = ()):
    """Raise InputError for the first tensor that is missing, extra or not of the shape that it should have."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise InputError(f"{where}: tensor {name!r} is missing; {did_you_mean(name, tensors)}")
        if (found := tuple(tensors[name].shape)) != shape:
            raise InputError(f"{where}: tensor {name!r} has shape {list(found)}, the model asks for {list(shape)}")
    unused = set(unused)
    for extra in sorted(name for name in tensors if name not in shapes and name not in unused):
        raise InputError(f"{where}: tensor {extra!r} has no place in the model; {did_you_mean(extra, shapes)}")


def load_leaf(tensors: Mapping, tensor: Tensor, leaf: jax.ShapeDtypeStruct, dtype) -> jax.Array:
    """One of our tensors, laid out on the current mesh as `leaf` says; each process reads what its chips hold."""

    def read(index):
        index = tuple(slice(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True))
        if "{}" not in tensor.name:
            return tensor.read(tensors[tensor.name], index).astype(dtype)
        first, *rest = index
        made = np.empty([part.stop - part.start for part in index], dtype)
        for row, block in enumerate(range(first.start, first.stop)):
            made[row] = tensor.read(tensors[tensor.name.format(block)], tuple(rest))
        return made

    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jnp.asarray(read((slice(None),) * len(leaf.shape)))
    spec = leaf.sharding.spec if leaf.sharding is not None else jax.P()
    return jax.make_array_from_callback(leaf.shape, jax.NamedSharding(mesh, spec), read)


def leaf_parts(tensors: Mapping, tensor: Tensor, shape: tuple[int, ...], dtype) -> Iterator[np.ndarray]:
    """One of our tensors in numpy, a block of its stack at a time, in the order in which they lie in a file."""
    names = [tensor.name.format(block) for block in range(shape[0])] if "{}" in tensor.name else [tensor.name]
    for name in names:
        whole = (slice(None),) * (len(shape) - ("{}" in tensor.name))
        yield tensor.read(tensors[name], whole).astype(dtype, copy=False)


def stored_dtype(tensors: Mapping, tensor: Tensor, layers: int) -> str:
    """The safetensors type that holds one of our tensors without loss: that of all its blocks, or F32."""
    names = [tensor.name.format(block) for block in range(layers)] if "{}" in tensor.name else [tensor.name]
    types = {tensors[name].dtype for name in names}
    types = {"BF16" if kind.startswith("F8") else kind for kind in types}
    return types.pop() if len(types) == 1 and types < {"BF16", "F16", "F32"} else "F32"


def to_foreign(table: Table, params: Mapping[str, object], get=jax.device_get) -> Iterator[tuple[str, np.ndarray]]:
    """Their (name, array) of each tensor of ours, one of ours in memory at a time.

    Args:
      params: {our dotted name: array, or tensor in a file, which is read a block at a time}.
      get: makes something that numpy can index of one of them.
    """
    parts: dict[str, list] = {}
    for name, leaf in params.items():
        tensor = table[name]
        array = get(leaf)
        blocks = range(array.shape[0]) if "{}" in tensor.name else [...]
        for block in blocks:
            foreign = tensor.name.format(block)
            found = tensor.theirs(np.asarray(array[block]))
            if tensor.part is None:
                yield foreign, found
                continue
            # Several of our tensors are one of theirs: yield it when its last part is there.
            parts.setdefault(foreign, []).append((tensor.part, found))
            if len(parts[foreign]) == sum(table[other].name == tensor.name for other in params):
                of_all = sorted(parts.pop(foreign), key=lambda part: part[0])
                yield foreign, np.concatenate([x for _, x in of_all], axis=1)


def blank(leaf) -> np.ndarray:
    """Zeros of an array's shape that take no memory: `to_foreign` of them gives names and shapes."""
    return np.broadcast_to(np.float32(0), leaf.shape)
