"""Latents made in the step: those that `prepare` would have written, in batches of one shape each."""

import collections
import io
import json
import shutil

import jax
import numpy as np
import pytest
import rich.console
import safetensors.numpy
import tiny

from sora_jax.checkpoint.model_folder import load_model, save_model
from sora_jax.cli.main import main
from sora_jax.cluster.heartbeat import STARTING, TRAINING, VARIABLE, read_beat
from sora_jax.config.load import to_json
from sora_jax.config.schema import AutoencoderSettings
from sora_jax.core.errors import InputError
from sora_jax.data.loader.conditioning_masks import draw_conditioning_masks
from sora_jax.data.loader.sequences import PackedSequences
from sora_jax.data.loader.stream import plan_sequences, train_sequences, validation_sequences
from sora_jax.data.prepare.prepare import Options, prepare
from sora_jax.data.records.records import Records
from sora_jax.models.autoencoder.model import Autoencoder
from sora_jax.models.encode_packed import encode_packed, place_packed
from sora_jax.train.monitoring.run_monitor import RunMonitor
from sora_jax.train.objectives.registry import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import init_state
from sora_jax.train.step import make_step
from sora_jax.worlds.shapes.renderer import World, write_world

CODER = tiny.CODER
CLIPS_IN_A_ROW = {(5, 16, 16): 2, (5, 8, 12): 3, (1, 16, 16): 3, (1, 8, 12): 3}


class Home:
    """Videos of six frames as pixels, and when it is asked for also as latents."""

    def __init__(self, folder):
        self.folder = folder
        write_world(folder / "world", 9, World(seed=1, sizes=("16x16",), lengths=(6,)))
        with jax.set_mesh(tiny.mesh_of()):
            save_model(folder / "coder", Autoencoder, CODER, tiny.random_params(Autoencoder, CODER))
        self.settings = tiny.change(
            tiny.SETTINGS,
            autoencoder={**vars(CODER), "latent_mean": (), "latent_std": ()},
            text={"vocabulary": 400},
            data={
                "path": str(folder / "pixels"),
                "autoencoder": str(folder / "coder"),
                "sizes": ("16x16", "12x8"),
                "frames": (5, 1),
                "validation": 0.3,
                "batch": 4,
                "sequence_length": 112,
                "text_length": 24,
                "caption_dropout": 0.25,
            },
            masks={"first_frame": 1.0},
            train={"steps": 3, "save_every": 2},
            sample={"size": "16x16", "frames": 5, "steps": 1},
        )
        prepare(self.settings, folder / "world", folder / "pixels")

    def latents(self):
        """Settings that train on the same clips, encoded by `prepare`."""
        settings = tiny.change(self.settings, data={"path": str(self.folder / "latents"), "autoencoder": ""})
        words = self.folder / "pixels/tokenizer.model"
        prepare(
            settings,
            self.folder / "world",
            self.folder / "latents",
            Options(autoencoder=self.folder / "coder", tokenizer=words),
        )
        return settings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("fly"))


def shape_of(batch):
    return batch.pixels.shape[2:5]


def test_each_batch_has_clips_of_one_shape_as_often_as_there_are_such_clips(home):
    stream, clips = train_sequences(home.settings), Records(home.folder / "pixels", "pixels").clips("train")
    count = 2048  # batches, over which the shares are exact
    there, come = collections.Counter(clip.shape[:3] for clip in clips), collections.Counter()
    batches = [stream.batch_at(step) for step in range(40)]
    assert {shape_of(batch) for batch in batches} == set(CLIPS_IN_A_ROW) == set(there)
    for batch in batches:
        assert batch.pixels.shape[:2] == (4, CLIPS_IN_A_ROW[shape_of(batch)])
        assert batch.patches is None
        assert batch.segment_ids.max(axis=1).tolist() == [batch.pixels.shape[1]] * 4
    for step in range(count):
        sources = stream.sources_at(step)
        come[len(sources) // 4] += len(sources)
    # Clips of three shapes come three to a row.
    share = there[5, 16, 16] / len(clips)
    assert abs(come[2] / sum(come.values()) - share) < 1 / count
    names = collections.Counter(source for step in range(400) for source in stream.sources_at(step))
    assert max(names.values()) < 1.1 * min(names.values())


def test_each_process_makes_its_sequences_and_a_restart_continues(home):
    stream = train_sequences(home.settings)
    halves = [train_sequences(home.settings, rows=rows) for rows in ([0, 1], [2, 3])]
    held = [validation_sequences(home.settings, rows=rows) for rows in (None, [0, 1], [2, 3])]
    for step in range(6):
        jax.tree.map(
            lambda whole, *parts: np.testing.assert_array_equal(whole, np.concatenate(parts)),
            stream.batch_at(step),
            *(half.batch_at(step) for half in halves),
        )
    clips = 0
    for whole, *parts in zip(*(stream.iterate() for stream in held), strict=True):
        jax.tree.map(lambda a, *b: np.testing.assert_array_equal(a, np.concatenate(b)), whole, *parts)
        clips += whole.segment_ids.max(axis=1).sum()
    assert clips == len(Records(home.folder / "pixels", "pixels").clips("validation")) == held[0].clips


def test_settings_that_do_not_fit_are_refused(home, tmp_path):
    settings = home.settings
    with pytest.raises(InputError, match="12 of 24 clips, one of 5 frames of 12x8, are no whole patches of 8x8"):
        train_sequences(tiny.change(settings, transformer={"patch": (1, 4, 4)}))
    with pytest.raises(InputError, match="ghosts: needs latents; `prepare` with --autoencoder"):
        train_sequences(tiny.change(settings, flow={"ghosts": 0.5}))
    with pytest.raises(InputError, match="latents are written, or made in the step; give one"):
        prepare(settings, home.folder / "world", tmp_path, Options(autoencoder=home.folder / "coder"))
    with pytest.raises(InputError, match="image-to-video models need latents in the data set"):
        tiny.change(settings, transformer={"condition_channels": 6})
    with pytest.raises(InputError, match="holds pixels, not latents"):
        train_sequences(tiny.change(settings, data={"autoencoder": ""}))
    with pytest.raises(InputError, match="sequence_length: 40 patches are too few for 6 of 24 clips"):
        train_sequences(tiny.change(settings, data={"sequence_length": 40}))


def test_a_new_shape_is_reported_as_starting(home, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "beat"))
    monitor = RunMonitor(home.settings, tmp_path, tiny.mesh_of(), rich.console.Console(file=io.StringIO()))
    doing = []
    for step, size in enumerate((1, 1, 1, 2, 1, 2, 2), start=1):
        monitor.on_batch({"pixels": np.zeros(size)})
        doing.append(read_beat(tmp_path / "beat").doing)
        monitor.after_step(step, None, last=False)
    assert doing == [STARTING, STARTING, TRAINING, STARTING, TRAINING, STARTING, TRAINING]


def updates(settings, batches, mesh):
    """The losses of an update on each of these batches, and the parameters in the end."""
    with jax.set_mesh(mesh):
        objective = make_objective(settings)
        optimizer = make_optimizer(settings.optimizer, settings.train.steps)
        step, frozen = make_step(objective, optimizer, settings), objective.frozen_params()
        state = init_state(objective, optimizer, jax.random.key(0))
        losses = []
        for batch in batches:
            state, values = step(state, frozen, objective.place(batch))
            losses.append(float(values["loss"]))
        return losses, jax.device_get(state.params)


@pytest.mark.slow
def test_training_on_the_fly_equals_training_on_prepared_latents(home):
    kinds = home.settings, home.latents()
    rows = [PackedSequences(settings, "train") for settings in kinds]
    plan, batches = plan_sequences(rows[0], home.settings), []
    grids = [rows[0].grids[plan[4 * step][0].clip] for step in range(40)]  # of each batch's clips
    encode = jax.jit(encode_packed, static_argnums=(0, 3))
    for step in (grids.index((3, 2, 3)), grids.index((3, 4, 4))):
        numbers = range(4 * step, 4 * step + 4)
        slots = [plan[number] for number in numbers]
        made = [each.assemble(slots, slots[0][0].clip, range(len(slots))) for each in rows]
        batches.append([draw_conditioning_masks(batch, numbers, home.settings) for batch in made])
        for mesh in (tiny.mesh_of(), tiny.mesh_of(data=2, ulysses=4)):
            with jax.set_mesh(mesh):
                params = load_model(home.folder / "coder", Autoencoder, AutoencoderSettings)[1]
                made = encode(CODER, params, place_packed(batches[-1][0]), (1, 2, 2))
            expected = batches[-1][1]
            for name in ("positions", "segment_ids", "conditioning_mask", "text", "text_segment_ids"):
                np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
            # What both round to bfloat16 may lie on either side of a half.
            patches = (np.asarray(batch.patches, np.float32) for batch in (made, expected))
            np.testing.assert_allclose(*patches, rtol=2**-7, atol=1e-5)
    assert any(batch.conditioning_mask.any() for batch, _ in batches)
    results = [
        updates(settings, [batch], tiny.mesh_of()) for settings, batch in zip(kinds, batches[0], strict=True)
    ]
    (losses, params), (others, expected) = results
    np.testing.assert_allclose(losses, others, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, expected)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_trains_samples_and_is_evaluated(home, capfd):
    settings = tiny.change(
        home.settings,
        data={"path": str(home.folder / "one"), "sizes": ("16x16",), "frames": (5,), "batch": 8},
        train={"steps": 2, "sample_every": 2, "sample_prompts": ("a red circle",)},
    )
    prepare(settings, home.folder / "world", home.folder / "one")
    config, run = home.folder / "settings.json", home.folder / "run"
    config.write_text(to_json(settings))
    command = ["train", f"--config={config}", f"--workdir={run}"]
    assert main(command) == 0
    assert (run / "samples/2/000.mp4").exists() and (run / "autoencoder/model.safetensors").exists()
    assert main(["evaluate", f"--checkpoint={run}", "--suite=loss"]) == 0
    values = json.loads((run / "evaluation/evaluation.json").read_text())["checkpoints"][0]["loss"]
    assert values["clips"] == len(Records(home.folder / "one", "pixels").clips("validation"))
    assert values["by_size"].keys() == {"16x16"} and values["by_task"].keys() == {"text", "first_frame"}
    shutil.copytree(home.folder / "coder", home.folder / "other")
    other = home.folder / "other/model.safetensors"
    weights = safetensors.numpy.load_file(other)
    safetensors.numpy.save_file({name: 2 * tensor for name, tensor in weights.items()}, other)
    capfd.readouterr()
    assert main([*command, f"--config.data.autoencoder={other.parent}", "--config.train.steps=3"]) == 2
    assert f"other is not the one that {run} began with; name {run}/autoencoder" in capfd.readouterr().err
