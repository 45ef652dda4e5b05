"""The recipes by name."""

from sora_jax.worlds.emoji.recipe import EMOJI
from sora_jax.worlds.shapes.recipe import ABLATIONS, SHAPES

RECIPES = {recipe.name: recipe for recipe in (SHAPES, ABLATIONS, EMOJI)}
