"""Recipes: their commands parse, what is done is skipped, and one runs from nothing to a release."""

import dataclasses
import json
import pathlib
import shlex

import pytest

from sora_jax.cli.commands import COMMANDS
from sora_jax.cli.flags import settings_of
from sora_jax.cli.main import parse, split_name, underscored
from sora_jax.config.load import from_json
from sora_jax.config.schema import Settings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.worlds import recipe as recipes
from sora_jax.worlds.recipe import Plan, Recipe, Stage, run_recipe
from sora_jax.worlds.recipes import RECIPES
from sora_jax.worlds.shapes.recipe import SHAPES

SMALL = (
    " --config.transformer.layers=1 --config.transformer.unroll=1 --config.transformer.width=32"
    " --config.transformer.mlp=32 --config.data.batch=2 --config.sample.steps=2"
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])


@pytest.mark.parametrize("name", RECIPES)
def test_every_command_of_a_recipe_parses_and_its_plan_takes_its_hours(name, tmp_path):
    recipe = RECIPES[name]
    plan = Plan(recipe, tmp_path, None)
    for stage in recipe.stages:
        words = shlex.split(plan.command(stage).replace("DECAY", "10").replace("UPDATES", "20"))
        command, arguments = split_name(words)
        values = parse(COMMANDS[command], [command, *map(underscored, arguments)])
        if COMMANDS[command].config:
            assert isinstance(settings_of(values), Settings)
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages)
    assert len({plan.key(stage) for stage in recipe.stages}) == len(recipe.stages)
    own = [stage for stage in recipe.stages if name == "shapes" or stage not in SHAPES.stages]
    assert sum(stage.minutes for stage in own) <= 60 * recipe.hours


def test_fewer_hours_are_fewer_clips_samples_and_minutes(tmp_path):
    stages = {stage.name: stage for stage in SHAPES.stages}
    plan = Plan(SHAPES, tmp_path, 0.5)
    assert "--share=0.1" in plan.command(stages["videos"])
    assert "minutes=8" in plan.command(stages["short"])
    assert "--samples=50" in plan.command(stages["evaluate"])


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A recipe of two stages whose program writes down its arguments, and fails while there is a file `broken`."""
    program = (
        "import pathlib, sys; work = pathlib.Path(sys.argv[2]); file = work / 'calls';"
        "file.open('a').write(' '.join(sys.argv[1:]) + '\\n');"
        "sys.exit(3 * (sys.argv[1] == 'b' and (work / 'broken').exists()))"
    )
    monkeypatch.setattr(recipes, "PROGRAM", program)
    return Recipe("two", "of a test", 1.0, 0.0, (Stage("first", "a {work}", 1), Stage("second", "b {work}", 1)))


def calls(tmp_path):
    return [line[0] for line in (tmp_path / "calls").read_text().splitlines()]


def test_a_stage_that_is_done_is_skipped_and_one_that_failed_runs_again(two, tmp_path):
    quiet = Console(quiet=True)
    (tmp_path / "broken").touch()
    with pytest.raises(InputError, match="second: ended with exit code 3"):
        run_recipe(Plan(two, tmp_path, None), quiet)
    (tmp_path / "broken").unlink()
    run_recipe(Plan(two, tmp_path, None), quiet)
    assert calls(tmp_path) == ["a", "b", "b"]
    run_recipe(Plan(two, tmp_path, None), quiet)
    assert calls(tmp_path) == ["a", "b", "b"]
    run_recipe(Plan(two, tmp_path, None), quiet, only="first")
    run_recipe(Plan(two, tmp_path, None), quiet, first="second")
    assert calls(tmp_path) == ["a", "b", "b", "a", "b"]
    with pytest.raises(InputError, match="no stage 'frist', did you mean 'first'"):
        run_recipe(Plan(two, tmp_path, None), quiet, only="frist")


def test_a_decay_that_was_interrupted_keeps_its_length(tmp_path, monkeypatch):
    stage = Stage("decay", "train --a={decay} --b={updates}", 1, decay=("run", 0.25))
    recipe = Recipe("one", "of a test", 1.0, 0.0, (stage,))
    assert Plan(recipe, tmp_path, None).command(stage) == "train --a=DECAY --b=UPDATES"
    monkeypatch.setattr(recipes, "find_checkpoint", lambda path: (path, 100))
    Plan(recipe, tmp_path, None).begin(stage)
    monkeypatch.setattr(recipes, "find_checkpoint", lambda path: (path, 110))
    assert Plan(recipe, tmp_path, None).command(stage) == "train --a=25 --b=125"


@pytest.mark.exhaustive
def test_the_shapes_recipe_runs_from_nothing_to_a_released_and_measured_model(tmp_path):
    of_transformer = "train --config={configs}/shapes.py"
    small = [
        dataclasses.replace(
            stage, devices=1, command=stage.command + SMALL * stage.command.startswith(of_transformer)
        )
        for stage in SHAPES.stages
    ]
    recipe = dataclasses.replace(SHAPES, stages=tuple(small))
    # A model that has learned nothing: the last stage says so.
    with pytest.raises(InputError, match="evaluate: the model does not do what its prompts say"):
        run_recipe(Plan(recipe, tmp_path, 0.001), Console(quiet=True))
    settings = from_json(
        Settings, json.loads((tmp_path / "release/model/settings.json").read_text()), "settings.json"
    )
    assert settings.transformer.layers == 1 and settings.flow.ghosts > 0
    (found,) = json.loads((tmp_path / "evaluation/evaluation.json").read_text())["checkpoints"]
    assert 0 <= found["numbers"]["shapes.all_together"]["value"] < 0.5
