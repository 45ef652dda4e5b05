"""The commands of `sora-jax` by name."""

from sora_jax.cli import (
    caption,
    checkpoint,
    convert,
    data,
    demo,
    evaluate,
    plan,
    prepare,
    recipe,
    sample,
    serve,
    train,
)

COMMANDS = {
    "caption": caption.COMMAND,
    "prepare": prepare.COMMAND,
    "data verify": data.VERIFY,
    "data emoji": data.EMOJI,
    "data shapes": data.SHAPES,
    "train": train.COMMAND,
    "convert": convert.COMMAND,
    "sample": sample.COMMAND,
    "serve": serve.COMMAND,
    "evaluate": evaluate.COMMAND,
    "plan": plan.COMMAND,
    "checkpoint inspect": checkpoint.INSPECT,
    "checkpoint verify": checkpoint.VERIFY,
    "checkpoint prune": checkpoint.PRUNE,
    "checkpoint release": checkpoint.RELEASE,
    "demo": demo.COMMAND,
    "recipe shapes": recipe.SHAPES,
    "recipe shapes-ablations": recipe.ABLATIONS,
    "recipe emoji": recipe.EMOJI,
}
