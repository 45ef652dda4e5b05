"""Every file of configs/ is a run that could start: it builds, its step type-checks, its commands parse."""

import itertools
import math
import pathlib
import re
import shlex

import jax
import pytest
from absl import flags

from sora_jax.cli.commands import COMMANDS
from sora_jax.cli.flags import settings_of
from sora_jax.cli.main import parse, underscored
from sora_jax.config.load import parse_size
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import AXES
from sora_jax.core.patches import patch_grid
from sora_jax.data.prepare.cut import check_cuts, fit_size
from sora_jax.models.autoencoder.model import Autoencoder, latent_statistics
from sora_jax.models.layers.params import abstract_params
from sora_jax.models.video_model import VideoModel
from sora_jax.plan.programs import abstract_batch, abstract_frozen, split_over
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.setup import check_batch
from sora_jax.train.state import abstract_state
from sora_jax.train.step import train_step

CONFIGS = sorted((pathlib.Path(__file__).parent.parent.parent / "configs").glob("*.py"))

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def parsed(command: str, arguments: list[str]) -> flags.FlagValues:
    """The flags of a command, read as the command line reads them."""
    return parse(COMMANDS[command], [f"sora-jax {command}", *map(underscored, arguments)])


def load(path: pathlib.Path, *overrides: str):
    return settings_of(parsed("train", ["--workdir=run", f"--config={path}", *overrides]))


def docstring(path: pathlib.Path) -> str:
    return path.read_text().split('"""')[1]


def mesh_of(path: pathlib.Path, settings) -> jax.sharding.AbstractMesh:
    """The mesh of the config over as many devices as its docstring names."""
    devices = int(re.search(r"^Devices: ([\d,]+)", docstring(path), re.MULTILINE)[1].replace(",", ""))
    sizes = [getattr(settings.mesh, axis) for axis in AXES]
    left, rest = divmod(devices, math.prod(size for size in sizes if size > 0))
    assert not rest, "the devices in the docstring do not divide by the mesh"
    types = (jax.sharding.AxisType.Explicit,) * len(AXES)
    sizes = tuple(left if size == -1 else size for size in sizes)
    return jax.sharding.AbstractMesh(sizes, AXES, axis_types=types)


def step_types(settings, mesh):
    """Types of a training state on a mesh, of the state after a step, and of the step's metrics."""
    check_batch(settings, mesh)
    objective = make_objective(settings, settings.autoencoder)
    optimizer = make_optimizer(settings.optimizer, settings.train.steps, objective.players, objective.rates)
    with jax.sharding.use_abstract_mesh(mesh):
        state = abstract_state(objective, optimizer)
        after, metrics = jax.eval_shape(
            lambda *arguments: train_step(objective, optimizer, settings, *arguments),
            state,
            abstract_frozen(settings),
            abstract_batch(settings),
        )
    return state, after, metrics


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, split_over(x)), tree)


@each_config
def test_a_train_step_type_checks_on_the_devices_that_the_config_names(path):
    settings = load(path)
    mesh = mesh_of(path, settings)
    state, after, metrics = step_types(settings, mesh)
    assert types_of(after) == types_of(state)
    if claimed := re.search(r"([\d,]+) parameters", docstring(path)):
        assert f"{sum(x.size for x in jax.tree.leaves(state.params)):,}" == claimed[1]
    assert {x.shape for x in jax.tree.leaves(metrics)} == {()}
    if mesh.shape["fsdp"] > 1:
        big = [x for x in jax.tree.leaves(state) if x.size > 2**22]
        assert big and all(split_over(x) for x in big)


PUBLISHED = {  # billions of parameters: transformer, text encoder, autoencoder
    "t2v_1_3b": (1.419, 5.68, 0.1269),
    "t2v_5b": (5.000, 5.68, 0.7047),
    "t2v_14b": (14.288, 5.68, 0.1269),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    path = CONFIGS[0].with_name(f"{name}.py")
    settings = load(path)
    with jax.sharding.use_abstract_mesh(mesh_of(path, settings)):
        params = abstract_params(VideoModel, settings)
        autoencoder = abstract_params(Autoencoder, settings.autoencoder)
    for tree, published in zip(
        (params["transformer"], params["text_encoder"], autoencoder), PUBLISHED[name], strict=True
    ):
        count = sum(x.size for x in jax.tree.leaves(tree)) / 1e9
        assert count == pytest.approx(published, rel=1e-3)


def variants(path: pathlib.Path) -> list[pathlib.Path]:
    """The config, and the same with the arguments that its docstring names."""
    names = re.findall(rf"--config=configs/{path.name}:(\w+)", docstring(path))
    return [path, *(path.with_name(f"{path.name}:{name}") for name in names)]


@pytest.mark.parametrize("path", [v for path in CONFIGS for v in variants(path)], ids=lambda path: path.name)
def test_every_clip_that_prepare_may_cut_fits_into_a_row(path):
    settings = load(path)
    data, model, transformer = settings.data, settings.autoencoder, settings.transformer
    multiple = tuple(model.spatial_stride * p for p in transformer.patch[1:])
    if settings.objective == "autoencoder":
        multiple = (model.spatial_stride,) * 2
    stride = model.temporal_stride
    check_cuts(data.sizes, data.frames, multiple=multiple, stride=stride, period=transformer.patch[0])
    latent_frames = (max(data.frames) - 1) // stride + 1
    # Aspect ratios of cinema, television, old television, both ways up.
    for width, height in [(2350, 1000), (1600, 900), (1200, 900), (1000, 1000), (900, 1200), (900, 1600)]:
        for size in data.sizes:
            made = fit_size(size, (height, width), multiple=multiple)
            if settings.objective == "autoencoder":
                assert all(side >= 64 for side in made), "smaller than the crop"
                continue
            if made is None:  # too small for that size, or of another shape: `prepare` leaves it out
                continue
            if settings.objective == "refine":  # it sees crops
                made = tuple(map(min, made, parse_size(data.crop_size, "crop_size")))
            rows, columns = (side // model.spatial_stride for side in made)
            clip = math.prod(patch_grid((latent_frames, rows, columns), transformer.patch))
            assert clip <= data.sequence_length, (width, height, size)


@each_config
def test_what_sample_makes_by_default_fits_the_model(path):
    settings = load(path)
    if settings.objective == "autoencoder":
        return
    width, height = map(int, settings.sample.size.split("x"))
    stride = settings.autoencoder.spatial_stride
    grid = patch_grid((1, height // stride, width // stride), settings.transformer.patch)
    assert grid[1] * stride * settings.transformer.patch[1] == height
    assert grid[2] * stride * settings.transformer.patch[2] == width
    assert (settings.sample.frames - 1) % settings.autoencoder.temporal_stride == 0
    mean, std = latent_statistics(settings.autoencoder)
    assert len(mean) == len(std) == settings.transformer.channels and (std > 0).all()


@each_config
def test_the_commands_in_the_docstring_parse(path):
    text = docstring(path).replace("\\\n", " ")
    commands = [
        shlex.split(line, comments=True)
        for line in re.findall(r"^ +(?:[A-Z_]+=\S+ )*(sora-jax .+)$", text, re.MULTILINE)
    ]
    assert {command[1] for command in commands} >= {"prepare", "train", "evaluate"}
    for _, *words in commands:
        arguments = list(itertools.dropwhile(lambda word: not word.startswith("-"), words))
        command = " ".join(words[: len(words) - len(arguments)])
        values = parsed(command, arguments)
        if COMMANDS[command].config:
            named = next(a.partition("=")[2] for a in arguments if a.startswith("--config="))
            assert pathlib.Path(named).name.partition(":")[0] == path.name
            settings_of(values)
    overrides = re.findall(r"--config\.[a-z_.0-9]+=(?:\([^)]*\)|[\w.]+)", text)
    assert overrides
    load(path, *overrides)


@each_config
def test_an_unknown_key_names_the_nearest(path):
    with pytest.raises(InputError, match=r"transformer\.widht: no such key, did you mean 'width'"):
        load(path, "--config.transformer.widht=3")
    with pytest.raises(InputError, match="autoencoder: a group; its keys are blocks"):
        load(path, "--config.autoencoder=3")


def test_an_unknown_key_in_a_file_is_told_with_the_nearest(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from sora_jax.config.load import default_config\n\n\n"
        "def get_config():\n    config = default_config()\n    config.train.stpes = 3\n    return config\n"
    )
    with pytest.raises(InputError, match=r"stpes.*steps"):
        load(file)
