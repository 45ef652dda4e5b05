"""The commands `recipe shapes`, `recipe shapes-ablations` and `recipe emoji`."""

import functools

from sora_jax.cli.flags import Command, Flag
from sora_jax.core.storage import as_path


def run(values, console, *, name: str):
    from sora_jax.worlds.recipe import Plan, run_recipe
    from sora_jax.worlds.recipes import RECIPES

    plan = Plan(RECIPES[name], as_path(values.workdir), values.hours)
    run_recipe(plan, console, first=values["from"].value, only=values.only, dry_run=values.dry_run)


def _command(name: str, summary: str) -> Command:
    return Command(
        summary,
        {
            "Output": (Flag("workdir", "Folder for everything that the recipe makes.", example=f"runs/{name}"),),
            "Selection": (
                Flag("dry-run", "Only print the command of each stage.", bool, False),
                Flag("from", "Stage to begin with; it and those after it run even if they are done.", default=""),
                Flag("only", "The only stage to run.", default=""),
                Flag(
                    "hours",
                    "Time for the whole plan: it scales clips, samples and the minutes of training; default: as "
                    "declared.",
                    float,
                    min=1e-4,
                ),
            ),
        },
        functools.partial(run, name=name),
        about="Each stage is a command of its own, which is printed. The same command again skips what is done "
        "and continues what was interrupted.",
        examples=(f"--workdir=runs/{name}", f"--workdir=runs/{name} --dry-run"),
    )


SHAPES = _command("shapes", "nothing -> the shapes model: data, autoencoder, transformer, evaluation, release")
EMOJI = _command("emoji", "nothing -> the emoji model: data, autoencoder, transformer, evaluation, release")
ABLATIONS = _command("shapes-ablations", "nothing -> the settings of the shapes model compared")
