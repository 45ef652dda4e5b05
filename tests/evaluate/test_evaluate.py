"""Benchmarks on videos whose content is known, from the renderer in place of a model."""

import dataclasses
import io
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import rich.console
import scipy.stats
import tiny

from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe
from sora_jax.data.media.write import write_clip
from sora_jax.evaluate.benchmark import Options, terminal_table
from sora_jax.evaluate.evaluate import evaluate
from sora_jax.evaluate.metrics.motion import MEASURES, measure_motion
from sora_jax.evaluate.suites.loss import validation_losses
from sora_jax.evaluate.suites.registry import BENCHMARKS
from sora_jax.evaluate.verdict.statistics import wilson
from sora_jax.generate.output.writer import read_metadata
from sora_jax.models.layers.params import init_params
from sora_jax.models.video_model import VideoModel
from sora_jax.train.state import TrainState
from sora_jax.worlds.shapes.benchmarks import BENCHMARKS as SHAPES_BENCHMARKS
from sora_jax.worlds.shapes.captions import caption
from sora_jax.worlds.shapes.long_suite import measure_spans
from sora_jax.worlds.shapes.prompt_suite import ALL, ATTRIBUTES, SEED, agreement, make_prompts, summarize
from sora_jax.worlds.shapes.renderer import render, sample_scene

SAMPLES = 32
SETTINGS = tiny.change(tiny.SETTINGS, sample={"size": "64x64", "frames": 17, "steps": 2})
QUIET = rich.console.Console(file=io.StringIO(), width=200)


def checkpoint(folder: pathlib.Path, step: int = 3) -> pathlib.Path:
    """A workdir with a checkpoint, whose videos come from a Model."""
    state = TrainState(jnp.asarray(step), {"x": jnp.ones(2)}, {"x": jnp.ones(2)}, ())
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, SETTINGS, "")
    return folder


class Model:
    """A sampler that renders `scene(n)` for prompt n, and lists the prompts that it was asked for."""

    def __init__(self, scene, change=lambda video: video):
        self.scene, self.change, self.made = scene, change, []

    def __call__(self, prompts, cell, first):
        width, height = map(int, cell.size.split("x"))
        for number in range(first, first + len(prompts)):
            self.made.append(number)
            yield self.change(render(self.scene(number), frames=cell.frames, size=(height, width)))


def asked(number):
    return sample_scene(SEED, number, held_out=True)


def another(number):
    """A scene that no prompt asked for, as of a model that ignores its text."""
    return sample_scene(SEED + 1, number, held_out=True)


def never_denoised(video):
    """Noise with a trace of the video, as of a model that is given one time always."""
    noise = np.random.default_rng(int(video[0, 0, 0, 0])).normal(0, 90, video.shape)
    return np.clip(video * 0.3 + 90 + noise, 0, 255).astype(np.uint8)


def run(folder, out, model, *suite, samples=SAMPLES, **options):
    return evaluate(
        folder if isinstance(folder, list) else [folder],
        out,
        benchmarks=BENCHMARKS | SHAPES_BENCHMARKS,
        suite=suite,
        options=Options(samples=samples, sampler=model, **options),
        mesh=MeshSettings(2, ulysses=4),
        console=QUIET,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two checkpoints, the first one evaluated with a model that obeys."""
    home = tmp_path_factory.mktemp("home")
    checkpoint(home / "good")
    checkpoint(home / "other")
    model = Model(asked)
    values = run(home / "good", home / "report", model, "shapes")
    assert model.made == list(range(SAMPLES))
    return home, values["checkpoints"][0]["shapes"]


# Loss ------------------------------------------------------------------------------------------------------------


def test_loss_by_task_leaves_out_what_is_given():
    settings = tiny.change(tiny.SETTINGS, masks={"first_frame": 1.0, "last_frame": 1.0})
    batch = tiny.random_batch(0, settings)
    batch.patches[(batch.positions[:, :, 0] == 0) & (batch.segment_ids > 0)] += 100.0
    with jax.set_mesh(tiny.mesh_of(2)):
        params = init_params(VideoModel, settings, jax.random.key(0))
        values = validation_losses(settings, params, [batch], lambda: None)
    # A fresh model predicts nothing: where a first frame is not given, its 100 stays in the error.
    assert set(values["by_task"]) == {"text", "first_frame", "last_frame"} and values["loss"] > 1000
    assert (
        values["by_task"]["first_frame"]
        < 10
        < 1000
        < min(values["by_task"]["text"], values["by_task"]["last_frame"])
    )


# Shapes ----------------------------------------------------------------------------------------------------------


def test_a_model_that_obeys_agrees_in_every_attribute(home):
    _, values = home
    assert values["faults"] == [] and values["no_scene"] == 0
    for name in (*ATTRIBUTES, ALL):
        found = values["adherence"][name]
        assert found["share"] == 1.0 and found["low"] > values["shuffled"][name], name
    assert values["adherence"]["background"]["of"] == SAMPLES > values["adherence"]["speed"]["of"] > 0


def test_the_control_is_at_chance(home):
    """One of n options agrees in about 1/n of the cases; two things agree less often."""
    _, values = home
    for name, least, most in (
        ("colour", 0.03, 0.25),
        ("shape", 0.1, 0.4),
        ("background", 0.1, 0.3),
        (ALL, 0, 0.03),
    ):
        assert least <= values["shuffled"][name] <= most, name


@pytest.mark.parametrize("samples", [5, 8, 20])
def test_few_samples_are_judged_over_all_attributes_together(samples):
    prompts = make_prompts(samples, size=(64, 64), frames=17, fps=16.0)
    assert summarize(prompts, [asked(n) for n in range(samples)])["faults"] == []
    (fault,) = summarize(prompts, [another(n) for n in range(samples)])["faults"]
    assert f"{samples} samples do not show that the prompts are heard" in fault
    values = summarize(prompts[:2], [another(n) for n in range(2)])
    assert values["faults"] == [] and "too few to tell" in values["notes"][0]


def test_a_damaged_sample_and_damaged_values_are_made_anew(home, tmp_path):
    model = Model(asked)
    run(home[0] / "good", tmp_path, model, "shapes", samples=5)
    first, *_, last = sorted(tmp_path.rglob("samples/*/*.mp4"))
    first.write_bytes(first.read_bytes()[:-300])
    next(tmp_path.glob("*/shapes-*.json")).write_text('{"asked"')
    values = run(home[0] / "good", tmp_path, model, "shapes", samples=5)["checkpoints"][0]["shapes"]
    assert model.made == [*range(5), 0, 1] and values["adherence"][ALL]["share"] == 1
    assert probe(first).frames == probe(last).frames == 17


def test_a_copy_or_a_new_time_measures_nothing_anew(home, tmp_path):
    shutil.copytree(home[0] / "good", tmp_path / "copy")
    (tmp_path / "copy/checkpoints/3").touch()
    model = Model(asked)
    shutil.copytree(home[0] / "report", tmp_path / "report")
    values = run(tmp_path / "copy", tmp_path / "report", model, "shapes")
    assert model.made == [] and values["checkpoints"][0]["name"] == "copy"


def test_other_processes_need_not_have_read_the_samples(home, tmp_path, monkeypatch):
    """A process after the first: what the first one does alone is left out."""
    for name in ("evaluate.evaluate", "evaluate.benchmark", "worlds.shapes.prompt_suite"):
        monkeypatch.setattr(f"sora_jax.{name}.run_on_first_host", lambda work: None)
    values = run(home[0] / "good", tmp_path, Model(asked), "shapes", samples=2)
    assert values["checkpoints"][0]["shapes"] == {} and not (tmp_path / "index.html").exists()


def test_tasks_and_long_videos_take_no_other_sampler(home, tmp_path):
    with pytest.raises(InputError, match="takes no other sampler"):
        run(home[0] / "good", tmp_path, Model(asked), "tasks")
    with pytest.raises(InputError, match="takes no other sampler"):
        run(home[0] / "good", tmp_path, Model(asked), "long")


@pytest.mark.parametrize(
    ("model", "samples", "at_fault"),
    [
        # Attention to the text is cut; the embedding of time is frozen.
        pytest.param(
            Model(another), 60, "no better than with shuffled prompts: shape, colour", marks=pytest.mark.slow
        ),
        pytest.param(Model(asked, never_denoised), 8, "8 of 8 samples show no scene"),
    ],
    ids=["deaf", "frozen"],
)
def test_a_broken_model_fails_loudly(home, tmp_path, model, samples, at_fault):
    with pytest.raises(InputError) as told:
        run(home[0] / "good", tmp_path, model, "shapes", samples=samples)
    assert at_fault in str(told.value) and "\n" not in str(told.value)
    values = json.loads((tmp_path / "evaluation.json").read_text())["checkpoints"][0]["shapes"]
    assert values["adherence"][ALL]["share"] < 0.3
    assert "FAULT" in (tmp_path / "index.html").read_text() and "FAULT" in QUIET.file.getvalue()


def test_a_model_that_ignores_its_text_is_at_chance_in_everything():
    prompts = make_prompts(200, size=(64, 64), frames=17, fps=16.0)
    (fault,) = summarize(prompts, [another(number) for number in range(len(prompts))])["faults"]
    assert fault == f"shapes: no better than with shuffled prompts: {', '.join((*ATTRIBUTES, ALL))}"


def test_an_ignored_attribute_is_named_alone():
    prompts = make_prompts(120, size=(64, 64), frames=17, fps=16.0)
    draw = np.random.default_rng(0)

    def with_another_motion(number):
        scene = asked(number)
        motions = ("left", "right", "still")
        things = tuple(dataclasses.replace(thing, motion=str(draw.choice(motions))) for thing in scene.things)
        return dataclasses.replace(scene, things=things)

    reads = [with_another_motion(number) for number in range(len(prompts))]
    (fault,) = summarize(prompts, reads)["faults"]
    assert fault == "shapes: no better than with shuffled prompts: motion"


def test_only_attributes_that_a_prompt_names_are_judged():
    prompt = "a small red circle moves left on a black background"
    scene = next(s for s in map(asked, range(2000)) if s.background == "black" and len(s.things) == 1)
    thing = dataclasses.replace(scene.things[0], shape="circle", colour="red", size="small", motion="left")
    for speed in ("slow", "fast"):
        read = dataclasses.replace(scene, things=(dataclasses.replace(thing, speed=speed),))
        found = agreement(prompt, read)
        assert all(found.values()) and "speed" not in found
    found = agreement(prompt.replace("moves", "moves slowly"), read)
    assert [name for name, right in found.items() if not right] == ["speed"]
    assert not any(agreement(prompt, None).values())


def test_intervals_are_those_of_scipy():
    for right, count in ((0, 10), (8, 10), (97, 100), (500, 500), (250, 500)):
        low, high = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(wilson(right / count, count), (low, high), atol=1e-4)


def test_existing_values_and_samples_are_kept_and_more_samples_add_to_them(home, tmp_path):
    model = Model(asked)
    run(home[0] / "other", tmp_path, model, "shapes", samples=4)
    assert model.made == [0, 1, 2, 3]
    videos = sorted(tmp_path.rglob("*.mp4"))
    assert read_metadata(videos[2])["prompt"] == make_prompts(4, size=(64, 64), frames=17, fps=16.0)[2]
    before = {path: path.read_bytes() for path in videos}
    run(home[0] / "other", tmp_path, model, "shapes", samples=4)  # the values are there
    next(tmp_path.glob("*/shapes-*.json")).unlink()
    videos[1].unlink()  # as if a kill had come between
    run(home[0] / "other", tmp_path, model, "shapes", samples=6)
    assert model.made == [0, 1, 2, 3, 0, 1, 4, 5]  # in groups of two
    del before[videos[1]]
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*.mp4")}.items()
    # Another checkpoint has samples of its own.
    checkpoint(home[0] / "other", step=4)
    values = run(home[0] / "other", tmp_path, Model(another), "shapes", samples=4)["checkpoints"][0]["shapes"]
    assert values["adherence"][ALL]["share"] == 0


@pytest.mark.slow
def test_checkpoints_stand_side_by_side_by_size_and_length(home, tmp_path):
    folders = [home[0] / "good", checkpoint(tmp_path / "second")]
    model = Model(asked)
    options = {"samples": 6, "sizes": ("64x64", "96x64"), "frames": (5, 17)}
    values = run(folders, tmp_path / "report", model, "shapes", **options)
    assert [found["name"] for found in values["checkpoints"]] == ["good", "second"]
    shapes = values["checkpoints"][1]["shapes"]
    assert set(shapes["by_size"]) == {"64x64", "96x64"} and set(shapes["by_frames"]) == {"5", "17"}
    assert shapes["by_aspect"]["3:2"][ALL]["of"] == 12
    page = (tmp_path / "report/index.html").read_text()
    assert "Samples of good" in page and "Samples of second" in page and page.count("<video") == 16 + 2 * 8
    with PIL.Image.open(next(path for path in (tmp_path / "report").glob("*/shapes-*.png"))) as sheet:
        assert min(sheet.size) > 500


# Motion ----------------------------------------------------------------------------------------------------------


def test_motion_of_videos_with_known_motion():
    still = np.full((17, 32, 32, 3), 90, np.uint8)
    still[:, 8:16, 8:16] = 200
    found = measure_motion(still, 4)
    assert found["motion"] == found["flicker"] == found["drift"] == 0
    assert found["seam"] is None and found["sharpness"] == 1
    flickering = still.copy()
    flickering[::2] += 10
    assert measure_motion(flickering, 4)["flicker"] == pytest.approx(10)
    brighter = still + (2 * np.arange(17, dtype=np.uint8))[:, None, None, None]
    found = measure_motion(brighter, 4)
    assert found["flicker"] == 0 and found["motion"] == pytest.approx(2) and found["seam"] == pytest.approx(1)
    # From the middle of the first four frames to that of the last four: 13 frames, 2 levels in 3 channels.
    assert found["drift"] == pytest.approx(13 * 2 * 3**0.5, rel=1e-4)
    jumping = still.astype(int)
    steps = np.where(np.arange(16) % 4 == 0, 6, 2)
    jumping = (jumping + np.concatenate([[0], np.cumsum(steps)])[:, None, None, None]).astype(np.uint8)
    assert measure_motion(jumping, 4)["seam"] == pytest.approx(3)
    blurred = still.astype(float)
    blurred[8:] = 90 + (blurred[8:] - 90) / 2
    assert measure_motion(blurred.astype(np.uint8), 4)["sharpness"] == pytest.approx(0.5, rel=0.05)
    with pytest.raises(InputError, match="3 frames or more"):
        measure_motion(still[:2], 4)


def test_the_temporal_suite_measures_samples_beside_real_videos(home, tmp_path):
    (tmp_path / "real").mkdir()
    for number in range(3):
        write_clip(tmp_path / f"real/{number}.mp4", render(asked(number), frames=34, size=(64, 64)), fps=16.0)
    (tmp_path / "real/short.mp4").write_bytes((tmp_path / "real/0.mp4").read_bytes())
    flicker = np.where(np.arange(17) % 2, 12, 0).astype(np.uint8)[:, None, None, None]
    model = Model(asked, lambda video: np.minimum(video, 240) + flicker)
    values = run(
        home[0] / "good",
        tmp_path / "out",
        model,
        "temporal",
        samples=4,
        prompts=("a", "b"),
        videos=str(tmp_path / "real"),
    )
    (found,) = values["checkpoints"][0]["temporal"]["by_cell"].values()
    assert found["samples"]["videos"] == found["real"]["videos"] == 4
    assert found["samples"]["flicker"] > 8 > 1 > found["real"]["flicker"]
    assert set(MEASURES) < set(found["real"]) and "Motion" in (tmp_path / "out/index.html").read_text()


# Long videos -----------------------------------------------------------------------------------------------------


def test_changes_of_a_long_video_are_measured_span_by_span():
    scene = dataclasses.replace(asked(0), things=asked(0).things[:1])
    prompt = caption(scene, "plain", moving=True, bounced=[False])
    video = render(scene, frames=90, size=(64, 64)).astype(float)
    video[30:60] = np.minimum(video[30:60] + 20, 255)
    video[60:] = video[60:].mean(axis=(1, 2), keepdims=True)
    spans = [part.astype(np.uint8) for part in np.split(video, 3)]
    first, brighter, flat = measure_spans(spans, prompt, window=17, fps=16.0)
    assert first == {"colour": 0, "sharpness": 1, "motion": 1, "as asked": 1}
    assert brighter["colour"] == pytest.approx(20 * 3**0.5, rel=0.2) and brighter["sharpness"] > 0.9
    assert flat["sharpness"] < 0.05 and flat["as asked"] == 0
    ((*_, still),) = [measure_spans([spans[0], spans[0][-1:].repeat(17, 0)], "a cat", window=17, fps=16.0)]
    assert still["motion"] == 0 and still["as asked"] is None


def test_an_absent_value_leaves_its_cell_empty():
    console = rich.console.Console(file=io.StringIO(), width=80)
    console.print(terminal_table(("task", "join"), [("loop", None), ("connect", 1.21512)]))
    printed = console.file.getvalue()
    assert "None" not in printed and "1.215 " in printed


# VBench ----------------------------------------------------------------------------------------------------------


def test_samples_for_vbench_are_named_as_its_tool_reads_them(home, tmp_path):
    prompts = ("a cat, in the style of Ukiyo", "a dog", "a cat, in the style of Ukiyo")
    model = Model(asked)
    values = run(home[0] / "good", tmp_path, model, "vbench", samples=2, prompts=prompts)
    folder = pathlib.Path(values["checkpoints"][0]["vbench"]["folder"])
    names = [f"{prompt}-{n}.mp4" for prompt in prompts[:2] for n in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert probe(folder / names[0]).frames == 17 and model.made == [0, 1, 2, 3]
    assert read_metadata(folder / names[3])["prompt"] == "a dog"
    with pytest.raises(InputError, match=r"number 1\) can't be a file name"):
        run(home[0] / "good", tmp_path, model, "vbench", prompts=("either/or",))


# Mistakes --------------------------------------------------------------------------------------------------------


def test_the_folder_for_the_report_is_checked_before_anything_is_computed(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(home[0])
    (tmp_path / "file").write_text("")
    for out, words in {
        tmp_path / "file": "file: is a file; name a folder",
        tmp_path / "file/below": "a file stands where a folder should be",
        "/proc/nowhere": "no folder can be made there",
    }.items():
        assert main(["evaluate", "--checkpoint=good", "--mesh=data=8", "--suite=shapes", f"--out={out}"]) == 2
        err = capsys.readouterr().err
        assert words in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--suite=shape"], "no benchmark 'shape', did you mean 'shapes'?"),
        (["--suite=reconstruction"], "does not apply to good, a flow; loss, temporal"),
        (["--suite=shapes", "--size=60x64"], "the width 60 is no multiple of 16"),
        (["--suite=shapes", "--frames=16"], "must be 4 n + 1"),
        (["--suite=shapes", "--frames=many"], "whole numbers are needed"),
        (["--suite=shapes", "--samples=-1"], "--samples=-1"),
        (["--suite=vbench"], "--prompts is missing"),
        (["--suite=fvd"], "--videomae is missing"),
        (["--suite=fvd", "--videomae=nowhere"], "nowhere: no such folder"),
        (["--suite=clip"], "--clip is missing"),
        (["--suite=temporal", "--frames=1", "--prompts=p.txt"], "motion needs 3 frames or more, not 1"),
        (["--suite=long", "--frames=5", "--prompts=p.txt"], "5 frames are too few; 9 are enough"),
        (["--suite=long", "--seconds=0", "--prompts=p.txt"], "--seconds=0: must be above 0"),
        (["--suite=long", "--seconds=1", "--prompts=p.txt"], "6 spans of 3 frames or more"),
        (["--suite=temporal", "--data=nowhere"], "--data: no folder nowhere"),
        (["--checkpoint=good", "--out=x"], "is named twice"),
        (["--suite=shapes", "--prompts=p.txt"], "--prompts: --suite=shapes does not use it; temporal"),
        (["--suite=shapes", "--lpips=x"], "--lpips: --suite=shapes does not use it; reconstruction do"),
        (["--suite=shapes", "--require=shapes.all 3"], "write a measure, >= or <=, and a number"),
        (["--suite=shapes", "--require=loss.loss <= 3"], "loss.loss is none of --suite=shapes"),
        (["--suite=shapes", "--baseline=nowhere.json"], "nowhere.json: no such file"),
        (["--suite=shapes", "--step=4"], "no complete checkpoint of step 4; there are 3"),
        (["--suite=shapes", "--step=each"], "write a number, all, or every:N"),
        (["--suite=shapes", "--step=every:2"], "has no such step, only 3"),
        (["--suite=shapes", "--format=html"], "known: csv, junit, markdown"),
        (["--suite=shapes", "--subject=other --stps=4", "--out=x"], "no key 'stps', did you mean 'steps'?"),
        (["--suite=shapes", "--subject=other --steps=few", "--out=x"], "steps=few is no whole number"),
        (["--checkpoint=other"], "--out is missing"),
    ],
)
def test_errors_come_before_anything_is_computed(home, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(home[0])
    pathlib.Path("p.txt").write_text("a cat\n")
    assert main(["evaluate", "--checkpoint=good", "--mesh=data=8", *flags]) == 2
    err = capsys.readouterr().err
    assert words in err.splitlines()[-1] and "Traceback" not in err
    assert not (home[0] / "good/evaluation").exists()
