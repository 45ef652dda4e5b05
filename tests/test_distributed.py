"""Many processes: two of four devices each do what one of eight does, and any quiet difference stops them."""

import json
import shutil

import jax
import numpy as np
import processes
import pytest
import tiny

from sora_jax import distributed
from sora_jax.cli import main
from sora_jax.data.clips import probe, read_clip
from sora_jax.data.records import Records
from sora_jax.data.shapes import write_world
from sora_jax.errors import InputError
from sora_jax.mesh import local_rows, make_mesh, place
from sora_jax.models.autoencoder import Autoencoder
from sora_jax.models.module import init_params
from sora_jax.settings import AutoencoderSettings, MeshSettings
from sora_jax.weights.store import load_model, save_model

CONFIG = """
import tiny
from sora_jax.settings import to_config

def get_config():
    return to_config(tiny.change(
        tiny.SETTINGS,
        data={"fps": 16.0, "sizes": ("32",), "frames": (9, 1), "validation": 0.3, "row_patches": 64,
              "row_tokens": 64, "row_clips": 4, "crop_size": "32x32", "crop_frames": 5},
        text={"vocabulary": 400, "max_tokens": 16, "heads": 8},
        transformer={"heads": 8, "width": 96},
        train={"steps": 2, "save_every": 1, "log_every": 1},
    ))
"""
ROWS = ["--config.mesh.data=8"]
WITHIN = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.context=2"]
# Each process holds every row, and half of the tokens.
ACROSS = ["--config.mesh.data=1", "--config.mesh.context=4", "--config.mesh.tensor=2"]


class Home:
    """Ten short videos, a tiny autoencoder, and the verbs that lead from them to a report, in a folder of runs."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        write_world(folder / "videos", 10, seed=1, sizes=("32x32",), lengths=(9, 18, 1))
        settings = tiny.SETTINGS.autoencoder
        with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
            params = jax.jit(lambda: init_params(Autoencoder, settings, jax.random.key(0)))()
            save_model(folder / "autoencoder", Autoencoder, settings, params)

    def prepare(self, run, *flags):
        out = f"--out={self.folder}/{run}/data"
        return ["prepare", f"--config={self.folder}/config.py", f"--videos={self.folder}/videos", out, *flags]

    def latents(self, run):
        return self.prepare(run, f"--autoencoder={self.folder}/autoencoder")

    def train(self, run, steps, *flags):
        folder = self.folder / run
        named = [f"--config.data.path={folder}/data", f"--workdir={folder}/model"]
        return ["train", f"--config={self.folder}/config.py", f"--config.train.steps={steps}", *named, *flags]

    def sample(self, run):
        folder = self.folder / run
        wish = ["--prompt=a red circle", "--prompt=a blue square", "--size=32x32", "--frames=5", "--steps=2"]
        return [
            "sample",
            f"--checkpoint={folder}/model",
            f"--out={folder}/videos",
            *wish,
            "--mesh=data=2,context=4",
        ]

    def evaluate(self, run):
        return ["evaluate", f"--checkpoint={self.folder}/{run}/model", "--mesh=data=4,context=2"]

    def latents_of_one(self):
        """A data set that this process has prepared, once."""
        if not (self.folder / "latents").exists():
            assert main(self.latents("latents")) == 0
        return self.folder / "latents/data"

    def report(self, run):
        return json.loads((self.folder / run / "model/evaluation/evaluation.json").read_text())

    def losses(self, run):
        lines = (self.folder / run / "model/metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("distributed"))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(home):
    """The same loss at each update, with the rows of the batch split over the processes."""
    for run in ("pair", "alone"):
        shutil.copytree(home.latents_of_one(), home.folder / run / "data")
    (code, first), (other_code, other) = processes.run(home.train("pair", 2, *ROWS))
    assert (code, other_code) == (0, 0), first + other
    assert "step 2/2" in first and "step" not in other
    assert main(home.train("alone", 2, *ROWS)) == 0
    np.testing.assert_allclose(home.losses("pair"), home.losses("alone"), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_prepare_train_restore_sample_and_evaluate_as_one_does(home):
    def way(run):
        return [
            home.latents(run),
            home.train(run, 2, *WITHIN),
            home.train(run, 3, *ACROSS),
            home.sample(run),
            home.evaluate(run),
        ]

    (code, first), (other_code, other) = processes.run(*way("two"))
    assert (code, other_code) == (0, 0), first + other
    assert "step 2 of 3" in first and "loss" not in other
    for verb in way("one"):
        assert main(verb) == 0
    made = [Records(home.folder / run / "data", "latents") for run in ("one", "two")]
    assert made[0].manifest == made[1].manifest
    assert all(np.array_equal(*(records.read("train", n) for records in made)) for n in range(3))
    np.testing.assert_allclose(home.losses("two"), home.losses("one"), rtol=1e-5)
    assert len(home.losses("two")) == 3
    reports = [home.report(run) for run in ("one", "two")]
    assert reports[0].keys() == reports[1].keys()
    np.testing.assert_allclose(reports[1]["loss"], reports[0]["loss"], rtol=1e-5)
    for name in ("000.mp4", "001.mp4"):
        one, two = (probe(home.folder / run / "videos" / name) for run in ("one", "two"))
        made = [read_clip(video, (32, 32), fps=16.0, frames=5).astype(int) for video in (one, two)]
        assert np.abs(made[0] - made[1]).max() <= 2 and made[0].std() > 1


@pytest.mark.slow
def test_two_processes_train_write_and_evaluate_an_autoencoder_as_one_does(home):
    """Its weights lie over both processes, and one of them writes them out."""

    def way(run):
        flags = ["--config.objective=autoencoder", "--config.mesh.data=1", "--config.mesh.fsdp=8"]
        return [home.prepare(run), home.train(run, 2, *flags), home.evaluate(run)]

    ended = processes.run(*way("two-pixels"))
    assert [code for code, _ in ended] == [0, 0], ended
    for verb in way("one-pixels"):
        assert main(verb) == 0
    np.testing.assert_allclose(home.losses("two-pixels"), home.losses("one-pixels"), rtol=1e-5)
    two, one = (
        load_model(home.folder / run / "model/autoencoder", Autoencoder, AutoencoderSettings)
        for run in ("two-pixels", "one-pixels")
    )
    np.testing.assert_allclose(two[0].latent_mean, one[0].latent_mean, rtol=1e-3, atol=1e-5)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-4), two[1], one[1]))
    reports = [home.report(run) for run in ("one-pixels", "two-pixels")]
    np.testing.assert_allclose(reports[1]["psnr"], reports[0]["psnr"], rtol=1e-3)


# What stops all processes with the same line: verbs and environment of the second one, and the line's words.
ASKED = ["train", "--config.train.steps=100", "--workdir=nowhere"]
QUIET = {
    "config": (
        {"others": [["train", "--config.train.steps=200", "--workdir=nowhere"]]},
        {},
        "config.train.steps differs between hosts: 100 on process 0",
    ),
    "flags of the compiler": (
        {},
        {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"},
        "XLA_FLAGS differs between hosts: none on process 0",
    ),
    "devices": ({}, {"JAX_NUM_CPU_DEVICES": "3"}, "process 1 has 3 devices, most have 4"),
}


def one_line_of(ended) -> str:
    """The one line that every process has said, each having ended with 2."""
    said = {line for code, text in ended for line in text.splitlines() if not line.startswith("[Gloo]")}
    assert [code for code, _ in ended] == [2] * len(ended) and len(said) == 1, ended
    return said.pop()


@pytest.mark.parametrize("case", QUIET)
def test_a_difference_between_hosts_stops_them_all(case):
    verbs, changes, words = QUIET[case]
    assert words in one_line_of(processes.run(ASKED, **verbs, **changes))


def test_another_source_of_sora_jax_is_another_version(tmp_path):
    shutil.copytree(
        processes.ROOT / "sora_jax", tmp_path / "sora_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (tmp_path / "sora_jax/mesh.py").open("a") as file:
        file.write("# a change that was not copied to every host\n")
    line = one_line_of(processes.run(ASKED, PYTHONPATH=str(tmp_path)))
    assert "sora_jax differs between hosts: " in line and line.count("source ") == 2


def test_a_process_that_does_not_come_is_told():
    line = one_line_of(processes.run(ASKED, count=1, seconds=3))
    assert "process 0 waited 3 s for the others: process 0 listens at localhost:" in line


def test_a_machine_alone_starts_nothing():
    distributed.start({"config": {"train": {"steps": 1}}})
    assert not jax.distributed.is_initialized()
    work = []
    distributed.on_first(lambda: work.append(1))
    distributed.agree({"a": "1"})
    distributed.wait_for_all()
    assert work == [1]


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"NUM_PROCESS": "2"}, "SORA_JAX_NUM_PROCESS: no such variable, did you mean SORA_JAX_NUM_PROCESSES?"),
        ({"NUM_PROCESSES": "two"}, "a whole number is needed, 1 or more"),
        ({"NUM_PROCESSES": "2"}, "JAX finds no cluster here"),
        ({"COORDINATOR": "here"}, "write host:port"),
        (
            {"COORDINATOR": "a:1", "NUM_PROCESSES": "2"},
            "SORA_JAX_PROCESS_ID: is missing beside SORA_JAX_COORDINATOR=a:1",
        ),
        ({"COORDINATOR": "a:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"}, "of 2 processes; count from 0"),
        ({"NUM_DEVICES": "16"}, "8 cpu devices are there, 8 in each of 1 processes, but SORA_JAX_NUM_DEVICES=16"),
    ],
)
def test_what_is_promised_wrongly_is_told(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(f"SORA_JAX_{name}", value)
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        distributed.start({})
    assert words in str(error.value)


def test_promises_that_are_kept_pass(monkeypatch):
    monkeypatch.setenv("SORA_JAX_NUM_DEVICES", "8")
    monkeypatch.setenv("SORA_JAX_NUM_PROCESSES", "1")
    distributed.start({})
    assert not jax.distributed.is_initialized()


def slurm(monkeypatch, **variables):
    """The environment of a task on a node of eight GPUs."""
    usual = {
        "JOB_ID": "7",
        "STEP_NODELIST": "a[1-4]",
        "NTASKS": "4",
        "PROCID": "0",
        "LOCALID": "0",
        "GPUS_ON_NODE": "8",
    }
    for name, value in (usual | variables).items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.mark.parametrize(
    "tasks, devices", [("1(x4)", list(range(8))), ("1", list(range(8))), ("8(x4)", None), ("2,1", None)]
)
def test_one_task_of_a_slurm_node_has_all_of_its_gpus(monkeypatch, tasks, devices):
    slurm(monkeypatch, STEP_TASKS_PER_NODE=tasks)
    assert distributed._arguments({}).get("local_device_ids") == devices


def test_a_process_alone_in_a_slurm_job_can_say_so(monkeypatch):
    slurm(monkeypatch, STEP_TASKS_PER_NODE="1(x4)")
    monkeypatch.setenv("SORA_JAX_NUM_PROCESSES", "1")
    assert distributed._arguments(distributed.promised()) is None


def test_pods_of_a_job_do_not_each_train_alone(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    with pytest.warns(UserWarning, match="kubernetes"), pytest.raises(InputError, match="a pod of an indexed Job"):
        distributed.start({})


def test_dumps_of_the_compiler_may_differ_its_flags_may_not(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/here --xla_a=true")
    assert distributed.environment()["XLA_FLAGS"] == "--xla_a=true"


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "context": 2}, {"context": 4, "tensor": 2}, {"data": 8}])
def test_place_lays_out_the_rows_that_a_process_holds(sizes):
    batch = {"text": np.arange(16 * 4 * 2).reshape(16, 4, 2), "kind": np.arange(16)}
    mesh = make_mesh(MeshSettings(**({"data": 1} | sizes)))
    assert local_rows(mesh, 16) == list(range(16))
    with jax.set_mesh(mesh):
        placed = place(batch, "batch tokens")
    assert all(np.array_equal(placed[name], batch[name]) for name in batch)
    with pytest.raises(InputError, match="3 rows cannot be split over data x fsdp"):
        local_rows(make_mesh(MeshSettings(data=8)), 3)
