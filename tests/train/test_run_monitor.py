"""What people watch of a run: samples, the page, profiles, the last line; and ending when it is told to."""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import signal

import jax
import numpy as np
import PIL.Image
import pytest
import rich.console
import tiny
from tensorboardX.proto.event_pb2 import Event
from tiny_run import compiled_once, write_data

from sora_jax.cluster.heartbeat import VARIABLE, read_beat
from sora_jax.cluster.preemption import preemption
from sora_jax.config.schema import MeshSettings, SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.data.media.video import probe
from sora_jax.generate.output.writer import read_metadata
from sora_jax.train import loop
from sora_jax.train.loop import train
from sora_jax.train.monitoring.profiler import covered, own_times
from sora_jax.train.monitoring.run_history import RunHistory, run_totals
from sora_jax.train.monitoring.sample_videos import check_samples

PROMPTS = ("a rabbit & a bird", "a bird")


class Home:
    """Data, and a run of four steps that is told to end after the third one and is then begun again."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.workdir = folder, folder / "run"
        write_data(folder / "data", "latents", tiny.SETTINGS.autoencoder)
        self.settings = tiny.change(
            tiny.SETTINGS,
            data={"path": str(folder / "data"), "batch": 2},
            mesh={"data": 1},
            text={"vocabulary": 400},
            train={
                "steps": 4,
                "sample_every": 2,
                "sample_prompts": PROMPTS,
                "profile": "2:3",
            },
            sample={"size": "32x32", "frames": 5, "steps": 1, "fps": 8.0},
        )

    def run(self, workdir: pathlib.Path) -> tuple[object, str]:
        """The last state, and what was printed."""
        text = io.StringIO()
        return train(self.settings, workdir, console=rich.console.Console(file=text, width=400)), text.getvalue()


def told_after(step: int):
    """Stands in for SIGTERM, heard after that step."""

    @contextlib.contextmanager
    def preemption(start):
        yield lambda n: n == step

    return preemption


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("watch"))
    sign = home.folder / "sign"
    with compiled_once(home.folder / "compiled"), pytest.MonkeyPatch.context() as patch:
        # One device: the least to compile.
        patch.setattr(loop, "make_mesh", lambda mesh: make_mesh(MeshSettings(), jax.devices()[:1]))
        patch.setenv(VARIABLE, str(sign))
        patch.setattr(loop, "preemption", told_after(3))
        _, home.first = home.run(home.workdir)
        home.sign = read_beat(sign)
        (home.workdir / "profile").touch()
        patch.setattr(loop, "preemption", preemption)
        home.state, home.second = home.run(home.workdir)
        home.last_sign = read_beat(sign)
        patch.delenv(VARIABLE)
        home.settings = tiny.change(home.settings, train={"sample_every": 0, "sample_prompts": (), "profile": ""})
        home.plain, _ = home.run(home.folder / "plain")
    return home


@pytest.mark.slow
def test_a_run_that_is_told_to_end_saves_and_goes_on_to_the_bits_of_one_left_alone_and_unwatched(home):
    assert "stopped and saved; the same command continues: 3 steps, " in home.first
    assert (home.sign.doing, home.sign.step) == ("preempted", 3)
    assert "step 3 of 4" in home.second
    assert (home.last_sign.doing, home.last_sign.start, home.last_sign.step) == ("done", 3, 4)
    assert jax.tree.all(jax.tree.map(np.array_equal, home.state, home.plain))
    assert not any((home.folder / "plain" / name).exists() for name in ("samples", "index.html", "profiles"))


@pytest.mark.slow
def test_the_last_line_tells_what_the_run_came_to(home):
    line = home.second.splitlines()[-1]
    found = re.fullmatch(r"done: 4 steps, (\d+) patches, [^,]+ s, goodput ([\d.]+)%, 1 restarts", line)
    assert found and 0 < float(found[2]) <= 100
    # Rows of up to three clips of 2 x 2 x 2 patches; two rows a step.
    assert 4 * 2 * 8 <= int(found[1]) <= 4 * 2 * 24


@pytest.mark.slow
def test_samples_are_videos_pictures_and_in_tensorboard(home):
    for step in (2, 4):
        for n, prompt in enumerate(PROMPTS):
            video = home.workdir / f"samples/{step}/{n:03}.mp4"
            assert (probe(video).width, probe(video).frames) == (32, 5)
            assert read_metadata(video)["prompt"] == prompt and read_metadata(video)["checkpoint_step"] == step
            with PIL.Image.open(video.with_suffix(".webp")) as image:
                assert image.size == (32, 32)
                assert shown_for(image) == 5 * 125  # milliseconds; frames that are alike are kept as one
    shown = {}
    for file in (home.workdir / "tensorboard").glob("events*"):
        for value, step in pictures(file):
            shown[value.tag, step] = value.image
    assert set(shown) == {(f"samples/{n:03}", step) for n in range(len(PROMPTS)) for step in (2, 4)}
    for image in shown.values():
        with PIL.Image.open(io.BytesIO(image.encoded_image_string)) as gif:
            assert (gif.format, gif.n_frames, gif.size) == ("GIF", 5, (image.width, image.height))
            assert gif.info["duration"] == 120  # 1/8 of a second, in the hundredths that GIF has


def shown_for(image) -> float:
    """How long an animation lasts, in milliseconds."""
    total = 0
    for number in range(image.n_frames):
        image.seek(number)
        image.load()
        total += image.info["duration"]
    return total


def pictures(file: pathlib.Path):
    """(value, step) of each picture in a file of events."""
    data = file.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        yield from ((value, event.step) for value in event.summary.value if value.HasField("image"))
        data = data[16 + length :]


@pytest.mark.slow
def test_the_page_shows_steps_by_prompts_newest_first_and_the_loss(home):
    page = (home.workdir / "index.html").read_text()
    assert page.index(">4</th>") < page.index(">2</th>")
    assert "<th>a rabbit &amp; a bird</th>" in page
    for link in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (home.workdir / link).is_file(), link
    assert page.count("<img ") == 5 and "loss.png" in page


@pytest.mark.slow
def test_a_profile_has_a_table_of_operations_and_is_made_on_demand(home):
    assert "profile of steps 2 to 3: " in home.first
    assert not (home.workdir / "profile").exists()
    assert "profile of steps 4 to 4: " in home.second
    for span in ("2-3", "4-8"):
        table = (home.workdir / f"profiles/{span}/operations.txt").read_text()
        assert "own ms a step" in table and re.search(r"fusion\S* +│ +[\d.]+ │ +[\d.]+ │ +[\d.]+% │", table), table
        assert "1 devices, busy " in table


def test_own_time_leaves_out_what_an_operation_contains():
    events = [
        (0.0, 100.0, "while"),
        (10.0, 30.0, "dot"),
        (12.0, 15.0, "add"),
        (40.0, 90.0, "dot"),
        (100.0, 101.0, "b"),
    ]
    own = own_times(events)
    assert sorted(own) == [("add", 3.0), ("b", 1.0), ("dot", 17.0), ("dot", 50.0), ("while", 30.0)]
    assert sum(time for _, time in own) == covered(events) == 101.0
    assert covered([(0.0, 2.0, "a"), (1.0, 3.0, "b"), (5.0, 6.0, "c")]) == 4.0


def test_sigterm_is_heard_in_a_process_alone_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with preemption(0) as told:
        assert not told(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert told(2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_time_down_after_a_death_counts_and_after_an_end_in_order_does_not(tmp_path):
    RunHistory(tmp_path, 0, 100.0, lambda: 30.0)  # dies
    RunHistory(tmp_path, 4, 200.0, lambda: 50.0).end(9)
    history = RunHistory(tmp_path, 9, 900.0, lambda: 100.0)
    assert history.seconds == 100 + 50 + 100
    assert [start["step"] for start in json.loads((tmp_path / "run_history.json").read_text())] == [0, 4, 9]


def test_the_time_budget_counts_what_is_in_the_checkpoints_alone(tmp_path):
    died = RunHistory(tmp_path, 0, 100.0, lambda: 20.0)
    died.save()
    died._elapsed = lambda: 90.0
    RunHistory(tmp_path, 4, 1000.0, lambda: 50.0).end(9)
    assert RunHistory(tmp_path, 9, 5000.0, lambda: 7.0).busy_seconds == 20 + 50 + 7


def test_a_clock_that_is_set_back_makes_no_time_negative(tmp_path):
    RunHistory(tmp_path, 0, 1000.0, lambda: 30.0)  # dies, and the clock is set back by an hour
    RunHistory(tmp_path, 4, -2600.0, lambda: 50.0).end(9)
    history = RunHistory(tmp_path, 9, -9999.0, lambda: 100.0)
    assert history.seconds == 0 + 50 + 100
    lines = [{"step_seconds": 5.0, "patches_per_s": 1.0}]
    assert 0 < run_totals(lines, 9, history.seconds, 3, "patches")["goodput"] <= 1


def test_goodput_is_the_time_of_all_updates_by_the_whole():
    lines = [
        {"step_seconds": s, "patches_per_s": 10 / s, "mfu": m} for s, m in ((9.0, 0.1), (2.0, 0.4), (2.0, 0.4))
    ]
    values = run_totals(lines, 30, 100.0, 3, "patches")
    assert values["goodput"] == 0.6 and values["mfu"] == 0.4 and values["restarts"] == 2
    assert values["patches"] == pytest.approx(300)
    none = run_totals([], 0, 1.0, 1, "patches")
    assert math.isnan(none["goodput"]) and "mfu" not in none


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train": {"sample_every": 2}}, "set both or neither"),
        ({"train": {"sample_prompts": ("a bird",)}}, "set both or neither"),
        ({"train": {"profile": "5"}}, "write FIRST:LAST"),
        ({"train": {"profile": "5:4"}}, "write FIRST:LAST"),
    ],
)
def test_settings_of_what_is_watched_are_checked(changes, words):
    with pytest.raises(InputError, match=words):
        tiny.change(tiny.SETTINGS, **changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"flow": {"time_min": 0.5}}, "an expert of a part of the times"),
        ({"transformer": {"condition_channels": 8}}, "this model needs images"),
        ({"sample": {"size": "40x32"}}, "is no multiple of 16"),
        ({"train": {"sample_prompts": (" ",)}}, "is empty"),
    ],
)
def test_samples_that_can_not_be_made_are_refused_before_training(one_device, changes, words):
    asked = tiny.change(
        tiny.SETTINGS,
        train={"sample_every": 2, "sample_prompts": ("a bird",)},
        sample={"size": "32x32", "frames": 5},
    )
    check_samples(asked, one_device)
    with pytest.raises(InputError, match=words):
        check_samples(tiny.change(asked, **changes), one_device)


def test_sample_settings_of_a_mesh_that_splits_tokens_are_checked():
    asked = tiny.change(tiny.SETTINGS, train={"sample_every": 2, "sample_prompts": ("a bird",)})
    sample = SampleSettings(size="48x16", frames=1)  # three patches
    with pytest.raises(InputError, match="its 3 patches"):
        check_samples(dataclasses.replace(asked, sample=sample), tiny.mesh_of(ulysses=2))
