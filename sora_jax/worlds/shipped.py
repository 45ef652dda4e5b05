"""The models of the worlds, by the names that --model takes, and what they know of a prompt."""

import pathlib

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path
from sora_jax.worlds import emoji, shapes
from sora_jax.worlds.emoji.prompts import remark as emoji_remark
from sora_jax.worlds.shapes.prompts import read_prompt
from sora_jax.worlds.shapes.renderer import SHAPES

MODELS = {"shapes": shapes.SHIPPED_MODEL, "emoji": emoji.SHIPPED_MODEL}
DEFAULT = "shapes"


def model_folder(name: str) -> pathlib.Path:
    """The folder of a model: of a world by its name, or any other by its path.

    Raises: InputError for the model of a world that this package does not have.
    """
    folder = MODELS.get(name)
    if folder is None:
        return as_path(name)
    if not folder.is_dir():
        raise InputError(
            f"--model={name}: this package does not have its weights; train it as docs/guide/emoji.md says, and "
            f"name its workdir, --model=runs/{name}"
        )
    return folder


def refiner_folder(
    given: pathlib.Path | None, checkpoint: pathlib.Path = MODELS[DEFAULT], flag: str = "checkpoint"
) -> pathlib.Path:
    """The folder of a refiner: the given one, or `refiner` in the folder of a model.

    Raises: InputError if none is given, and the model has none.
    """
    folder = given or checkpoint / "refiner"
    if given is None and not folder.is_dir():
        raise InputError(
            f"--{flag}: {checkpoint} has no refiner; train one as docs/guide/refining.md says, and name its "
            f"workdir, --{flag}=runs/refiner"
        )
    return folder


def remark(name: str, prompt: str) -> str:
    """What the model of a world does not know of a prompt, with the nearest that it knows; "" for other models."""
    if name == "emoji":
        return emoji_remark(prompt)
    if name == "shapes":
        try:
            read_prompt(prompt)
        except InputError:
            things = ", ".join(SHAPES)
            return (
                f'{prompt[:60]!r}: this model draws one or two of {things}, as in "a small red circle moves left"'
            )
    return ""
