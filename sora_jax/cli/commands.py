"""The commands of `sora-jax` by name, in groups."""

from sora_jax.cli import (
    caption,
    checkpoint,
    completion,
    convert,
    data,
    demo,
    doctor,
    evaluate,
    plan,
    prepare,
    recipe,
    refine,
    sample,
    serve,
    train,
)

GROUPS = {
    "Videos": {"sample": sample.COMMAND, "refine": refine.COMMAND, "serve": serve.COMMAND},
    "Data": {
        "caption": caption.COMMAND,
        "prepare": prepare.COMMAND,
        "data verify": data.VERIFY,
        "data emoji": data.EMOJI,
        "data shapes": data.SHAPES,
    },
    "Models": {
        "train": train.COMMAND,
        "evaluate": evaluate.COMMAND,
        "plan": plan.COMMAND,
        "convert": convert.COMMAND,
        "checkpoint inspect": checkpoint.INSPECT,
        "checkpoint verify": checkpoint.VERIFY,
        "checkpoint prune": checkpoint.PRUNE,
        "checkpoint release": checkpoint.RELEASE,
    },
    "Examples from beginning to end": {
        "demo": demo.COMMAND,
        "recipe shapes": recipe.SHAPES,
        "recipe shapes-ablations": recipe.ABLATIONS,
        "recipe emoji": recipe.EMOJI,
    },
    "This installation": {
        "doctor": doctor.COMMAND,
        "completion bash": completion.BASH,
        "completion zsh": completion.ZSH,
        "completion fish": completion.FISH,
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def subcommands(name: str) -> list[str]:
    """The commands of two words that begin with this one."""
    return [known for known in COMMANDS if known.startswith(f"{name} ")]
