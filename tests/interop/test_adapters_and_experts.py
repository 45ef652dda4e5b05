"""Adapters and pairs of experts through `sample`, `train` and `serve`: small models of random numbers."""

import json
import pathlib

import jax
import numpy as np
import pytest
import rich.console
import safetensors.numpy
import tiny
import tiny_run

from sora_jax.checkpoint.frozen_params import load_base
from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import named
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cli.main import main
from sora_jax.config.schema import MeshSettings
from sora_jax.core.storage import copy_files
from sora_jax.data.media.video import probe, read_clip
from sora_jax.generate.generator import load_generator
from sora_jax.generate.output.writer import read_metadata
from sora_jax.generate.request import Request
from sora_jax.generate.sampling import pipeline
from sora_jax.models.video_model import VideoModel
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.jobs import COMPLETED, JobStore
from sora_jax.serve.loaded_model import LoadedModel, Loading
from sora_jax.serve.uploads import Limits

SETTINGS = tiny.change(tiny_run.SETTINGS, sample={"size": "32x32", "frames": 5, "steps": 2, "solver": "euler"})
BOUNDARY = 0.7
HALF = 0.5  # the expert for low noise has the other one's parameters times this


def write_adapter(path: pathlib.Path, layer: str, seed: int, **header: str) -> np.ndarray:
    """A file with an adapter of one layer of both blocks.

    Returns: its differences as our kernels lie, [2, in, out].
    """
    draw, sizes = np.random.default_rng(seed), (48, 64) if layer == "ffn.net.0.proj" else (64, 48)
    tensors = {}
    for block in range(2):
        name = f"transformer.blocks.{block}.{layer}"
        tensors[f"{name}.lora_A.weight"] = draw.normal(size=(2, sizes[0])).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = draw.normal(size=(sizes[1], 2)).astype(np.float32)
    safetensors.numpy.save_file(tensors, path, {"format": "pt", **header})
    names = [f"transformer.blocks.{block}.{layer}.lora_" for block in range(2)]
    return np.stack([(tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]).T for name in names])


def write_model(folder: pathlib.Path, data: pathlib.Path, params: dict, guidance=4.0, **flow):
    settings = tiny.change(SETTINGS, flow=flow, sample={"guidance": guidance})
    with jax.set_mesh(tiny.mesh_of()):
        save_weights(folder, jax.tree.map(jax.numpy.asarray, params), settings)
    copy_files(data / "autoencoder", folder / "autoencoder")
    (folder / "tokenizer.model").write_bytes((data / "tokenizer.model").read_bytes())


def write_pair(home, name: str, high: dict, low: dict):
    """Two experts: one for times from BOUNDARY, one for those below."""
    write_model(home.folder / name, home.folder / "latents", high, time_min=BOUNDARY)
    write_model(home.folder / name / "low_noise", home.folder / "latents", low, 3.0, time_max=BOUNDARY)


class Home:
    """A model, a pair of experts, and two adapters with what they change: up and down of the two MLPs."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        tiny_run.write_data(folder / "latents", "latents", SETTINGS.autoencoder)
        self.up = write_adapter(folder / "up.safetensors", "ffn.net.0.proj", 1)
        self.down = write_adapter(folder / "down.safetensors", "ffn.net.2", 2)
        with jax.set_mesh(tiny.mesh_of()):
            self.params = tiny.random_params(VideoModel, SETTINGS)
        self.params["transformer"]["head"]["kernel"] *= 5  # so that a change of a layer is a change of the video
        write_model(folder / "base", folder / "latents", self.params)
        write_pair(self, "pair", self.params, self.merged(HALF))

    def merged(self, scale=1.0, *, up=0.0, down=0.0) -> dict:
        """The model's parameters times `scale`, with the adapters at these strengths."""
        params = jax.tree.map(lambda x: np.float32(scale) * x, self.params)
        mlp = params["transformer"]["blocks"]["mlp"]
        mlp["up"]["kernel"] += np.float32(up) * self.up
        mlp["down"]["kernel"] += np.float32(down) * self.down
        return params

    def sample(self, checkpoint, out, *flags) -> np.ndarray:
        """The frames of a video."""
        path = self.folder / out
        given = ("--prompt=a bird", f"--out={path}", *flags)
        assert main(["sample", f"--checkpoint={self.folder / checkpoint}", *given]) == 0
        return frames_of(path)


def frames_of(path) -> np.ndarray:
    return read_clip(probe(path), (32, 32), fps=16.0, frames=5).astype(int)


def difference(a, b) -> int:
    return np.abs(a - b).max()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    with tiny_run.compiled_once(folder / "compiled"):
        yield Home(folder)


def assert_same(ours: dict, wanted: dict):
    for (name, x), (_, y) in zip(named(jax.device_get(ours)), named(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6, err_msg=name)


def test_two_adapters_with_a_strength_each_sample_as_the_merged_weights(home):
    write_model(home.folder / "merged", home.folder / "latents", home.merged(up=0.5, down=-0.25))
    flags = (f"--lora={home.folder}/up.safetensors:0.5", f"--lora={home.folder}/down.safetensors:-0.25")
    adapted = home.sample("base", "adapted.mp4", *flags)
    merged, plain = home.sample("merged", "merged.mp4"), home.sample("base", "plain.mp4")
    assert difference(adapted, merged) <= 1 and difference(adapted, plain) > 5
    assert read_metadata(home.folder / "adapted.mp4")["lora"] == ["up.safetensors:0.5", "down.safetensors:-0.25"]


@pytest.mark.parametrize("expert", ["high", "low"])
def test_an_adapter_of_one_expert_changes_that_expert_only(home, one_device, expert):
    strengths = {"high": 0.0, "low": 0.0} | {expert: 0.5}
    generator = load_generator(home.folder / "pair", lora=[f"{expert}={home.folder}/up.safetensors:0.5"])
    assert_same(generator.params, home.merged(up=strengths["high"]))
    assert_same(generator.low_noise[0], home.merged(HALF, up=strengths["low"]))


def test_each_expert_samples_with_its_own_adapters(home):
    plain = home.sample("pair", "pair.mp4")
    flags = [f"--lora=high={home.folder}/up.safetensors:0.5", f"--lora=low={home.folder}/down.safetensors:2"]
    both = home.sample("pair", "both.mp4", *flags)
    write_pair(home, "merged-pair", home.merged(up=0.5), home.merged(HALF, down=2))
    assert difference(both, home.sample("merged-pair", "merged-pair.mp4")) <= 1
    for flag in flags:
        one = home.sample("pair", "one.mp4", flag)
        assert difference(one, plain) > 3 and difference(one, both) > 3


@pytest.mark.parametrize(
    "flags, wanted",
    [
        ((), (4.0, 3.0)),  # those of the two workdirs
        (("--guidance=6",), (6.0, 6.0)),
        (("--guidance-low=2",), (4.0, 2.0)),
        (("--guidance=6", "--guidance-low=2"), (6.0, 2.0)),
        (("--lora={home}/few.safetensors",), (1.0, 1.0)),
        (("--lora={home}/few.safetensors", "--guidance-low=2"), (1.0, 2.0)),
    ],
)
def test_each_expert_has_a_guidance_scale(home, monkeypatch, flags, wanted):
    write_adapter(home.folder / "few.safetensors", "ffn.net.0.proj", 1, sample='{"steps": 2, "guidance": 1.0}')
    scales, step = [], pipeline.solver_step

    def spied(program, params, inputs, state, number, guidance):
        scales.append(1.0 if guidance is None else float(guidance))
        return step(program, params, inputs, state, number, guidance)

    monkeypatch.setattr(pipeline, "solver_step", spied)
    home.sample("pair", "guided.mp4", *(flag.format(home=home.folder) for flag in flags))
    metadata = read_metadata(home.folder / "guided.mp4")
    assert tuple(scales) == (metadata["guidance"], metadata["guidance_low"]) == wanted


def test_a_guidance_scale_for_a_second_expert_that_is_not_there_is_refused(home, capsys):
    flags = (
        f"--checkpoint={home.folder}/base",
        "--prompt=a bird",
        "--guidance-low=2",
        f"--out={home.folder}/x.mp4",
    )
    assert main(["sample", *flags]) == 2
    assert "--guidance-low: this model has one transformer" in capsys.readouterr().err


def train(home, name: str, *flags) -> list[float]:
    """The losses of a new run of two steps."""
    (home.folder / "config.py").write_text(tiny_run.CONFIG)
    given = (f"--config={home.folder}/config.py", f"--config.data.path={home.folder}/latents")
    given += ("--config.train.log_every=1", f"--workdir={home.folder / name}")
    assert main(["train", *given, *flags]) == 0
    return [json.loads(line)["loss"] for line in (home.folder / name / "metrics.jsonl").read_text().splitlines()]


def test_adapters_are_trained_on_an_adapted_base_whose_files_stay_as_they_were(home):
    def files():
        return {path: path.read_bytes() for path in (home.folder / "base").rglob("*") if path.is_file()}

    before, adapter = files(), f"{home.folder}/up.safetensors:0.5"
    init = f"--config.train.init_from={home.folder}/base"
    assert len(train(home, "run", init, f"--lora={adapter}", "--config.lora.rank=2")) == 2
    assert files() == before
    settings, trained = restored(home.folder / "run")
    assert settings.lora.base == (adapter,)
    ups = [np.abs(x).max() for name, x in named(trained) if name.endswith("lora_b")]
    assert len(ups) == 10 and min(ups) > 0  # they begin at 0
    with jax.set_mesh(tiny.mesh_of()):
        assert_same(load_base(settings), home.merged(up=0.5))
        mlp = load_generator(home.folder / "run").params["transformer"]["blocks"]["mlp"]
    np.testing.assert_allclose(
        mlp["up"]["kernel"], home.merged(up=0.5)["transformer"]["blocks"]["mlp"]["up"]["kernel"], atol=1e-6
    )


@pytest.mark.slow
def test_a_whole_model_is_trained_from_the_merged_weights(home):
    write_model(home.folder / "half", home.folder / "latents", home.merged(up=0.5))
    init = f"--config.train.init_from={home.folder}"
    merged = train(home, "whole-merged", f"{init}/half")
    assert train(home, "whole", f"{init}/base", f"--lora={home.folder}/up.safetensors:0.5") == pytest.approx(
        merged
    )
    assert train(home, "whole-plain", f"{init}/base") != pytest.approx(merged)


def restored(workdir):
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    with jax.set_mesh(tiny.mesh_of()):
        return settings, jax.device_get(restore_trained(folder, step, settings))


def test_the_server_uses_adapters_and_the_settings_that_they_bring(home):
    few = home.folder / "few.safetensors"
    write_adapter(few, "ffn.net.0.proj", 1, sample=json.dumps({"steps": 1, "guidance": 1.0}))
    flags = [f"--lora={few}:0.5", f"--lora={home.folder}/down.safetensors:-0.25"]
    wanted = home.sample("base", "wanted.mp4", *flags, "--seed=3")
    limits = Limits(bytes=2**20, pixels=256 * 256, frames=60)
    quiet = rich.console.Console(quiet=True)
    loading = Loading(MeshSettings(), lora=[flag.removeprefix("--lora=") for flag in flags])
    model = LoadedModel(home.folder / "base", loading, limits=limits, console=quiet)
    queue = JobQueue(model, JobStore(home.folder / "served"), console=quiet)
    job = queue.submit(Request(("a bird",), seed=3))
    while not job.over:
        queue.wait(job, 1)
    assert job.state == COMPLETED, job.error
    served = queue.store.video(job)
    assert job.total == 1
    np.testing.assert_array_equal(frames_of(served), wanted)
    assert read_metadata(served) == read_metadata(home.folder / "wanted.mp4")
