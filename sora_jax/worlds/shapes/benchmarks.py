"""The benchmarks of the shapes world, by name."""

from sora_jax.worlds.shapes.long_suite import LONG
from sora_jax.worlds.shapes.prompt_suite import SHAPES
from sora_jax.worlds.shapes.task_suite import TASKS

BENCHMARKS = {"shapes": SHAPES, "tasks": TASKS, "long": LONG}
