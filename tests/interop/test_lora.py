"""Adapters: what they change, what is kept of them, and their files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from wan_published import write_published

from sora_jax.checkpoint.manager import save_weights
from sora_jax.checkpoint.meta import read_meta
from sora_jax.checkpoint.model_folder import named
from sora_jax.checkpoint.restore import restore_trained
from sora_jax.checkpoint.workdir import find_checkpoint
from sora_jax.cli.main import main
from sora_jax.config.schema import LoraSettings, Settings
from sora_jax.interop.adapters.weights import add_adapter, low_rank_adapter
from sora_jax.models.layers.params import bind, init_params
from sora_jax.models.video_model import VideoModel, init_trained, join

LORA = LoraSettings(rank=3, alpha=6.0)
SETTINGS = dataclasses.replace(
    tiny.SETTINGS, lora=LORA, train=dataclasses.replace(tiny.SETTINGS.train, init_from="base")
)


def random_adapters(settings: Settings) -> dict:
    """Adapters of which B is not 0, as after training."""
    params = init_trained(settings, jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), len(jax.tree.leaves(params))))
    return jax.tree.map(
        lambda x: 0.2 * jax.random.normal(next(keys), x.shape, out_sharding=jax.typeof(x).sharding.spec), params
    )


def base_params() -> dict:
    params = init_params(VideoModel, tiny.SETTINGS, jax.random.key(0))
    # A fresh model's head is 0, and with it all it says.
    head = params["transformer"]["head"]
    head["kernel"] = jax.random.normal(jax.random.key(3), head["kernel"].shape)
    return params


def merged_with(base: dict, adapters: dict, strength: float = 1.0) -> dict:
    """The model with W + strength * scale * A B for every W that has an adapter."""
    adapter = low_rank_adapter(adapters["transformer"], SETTINGS, "run")
    return base | {"transformer": add_adapter(base["transformer"], SETTINGS.transformer, adapter, strength)}


def velocity(settings: Settings, params: dict) -> np.ndarray:
    batch = tiny.on_mesh(tiny.random_batch(0))

    @jax.jit
    def run(params, batch):
        model = bind(VideoModel, settings, params)
        times = jax.numpy.full((8, 1), 0.5)
        time_index = jax.numpy.zeros_like(batch.segment_ids)
        return model.velocity(model.embed_text(batch), batch.patches, times, time_index)

    return np.asarray(run(params, batch))


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(one_device):
    adapters = init_trained(SETTINGS, jax.random.key(1))
    names = [name.rsplit(".", 1) for name, _ in named(adapters)]
    assert {part for _, part in names} == {"lora_a", "lora_b"}
    layers = {name for name, _ in names}
    assert len(layers) == 10 and "transformer.blocks.self_attention.q" in layers
    base = base_params()
    assert sum(x.size for x in jax.tree.leaves(adapters)) < 0.5 * sum(x.size for x in jax.tree.leaves(base))
    np.testing.assert_array_equal(velocity(SETTINGS, join(adapters, base)), velocity(tiny.SETTINGS, base))


def test_merged_equals_adapted_and_can_be_taken_out_again(one_device):
    base, adapters = base_params(), random_adapters(SETTINGS)
    adapted = velocity(SETTINGS, join(adapters, base))
    merged = merged_with(base, adapters)
    assert np.abs(adapted - velocity(tiny.SETTINGS, base)).max() > 0.1
    np.testing.assert_allclose(velocity(tiny.SETTINGS, merged), adapted, atol=1e-5)
    back = merged_with(merged, adapters, -1.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), back, base)


def test_adapted_is_the_same_on_a_mesh(one_device):
    alone = velocity(SETTINGS, join(random_adapters(SETTINGS), base_params()))
    with jax.set_mesh(tiny.mesh_of(fsdp=2, ulysses=2, tensor=2)):
        np.testing.assert_allclose(
            velocity(SETTINGS, join(random_adapters(SETTINGS), base_params())), alone, atol=1e-5
        )


def test_targets_are_chosen_by_pattern(one_device):
    settings = dataclasses.replace(SETTINGS, lora=LoraSettings(rank=2, targets=r"self_attention\.(q|out)$"))
    layers = {name.rsplit(".", 1)[0] for name, _ in named(init_trained(settings, jax.random.key(0)))}
    assert layers == {f"transformer.blocks.self_attention.{name}" for name in ("q", "out")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A converted model, and a workdir with adapters of it."""
    home = tmp_path_factory.mktemp("lora")
    write_published(home / "published", "float32")
    assert main(["convert", f"--from={home}/published", f"--to={home}/base"]) == 0
    folder, step = find_checkpoint(home / "base")
    stored, _ = read_meta(folder, step)
    settings = dataclasses.replace(
        stored, lora=LORA, train=dataclasses.replace(stored.train, init_from=str(home / "base"))
    )
    with jax.set_mesh(tiny.mesh_of()):
        save_weights(home / "adapters", random_adapters(settings), settings)
    assert main(["convert", f"--from={home}/adapters", f"--to={home}/lora.safetensors"]) == 0
    return home


def restored(workdir):
    folder, step = find_checkpoint(workdir)
    settings, _ = read_meta(folder, step)
    with jax.set_mesh(tiny.mesh_of()):
        return settings, jax.device_get(restore_trained(folder, step, settings))


def wans_own_names(tensors: dict[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    renamed = {}
    for name, x in tensors.items():
        name = name.replace("transformer.", "diffusion_model.")
        for theirs, ours in (
            ("attn1.to_out.0", "self_attn.o"), ("attn2.to_out.0", "cross_attn.o"), ("attn1.to_", "self_attn."),
            ("attn2.to_", "cross_attn."), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2"),
            ("lora_A", "lora_down"), ("lora_B", "lora_up"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        if name.endswith("lora_up.weight"):
            x = x * (x.shape[1] / alpha)
            renamed[name.replace("lora_up.weight", "alpha")] = np.array(alpha, np.float32)
        renamed[name] = x
    return renamed


@pytest.mark.parametrize("naming", ["diffusers", "wan"])
def test_adapters_come_in_from_either_naming(home, naming):
    file, out = home / f"{naming}.safetensors", home / f"from-{naming}"
    tensors = safetensors.numpy.load_file(home / "lora.safetensors")
    assert tensors["transformer.blocks.1.attn2.to_k.lora_A.weight"].shape == (3, 48)
    safetensors.numpy.save_file(tensors if naming == "diffusers" else wans_own_names(tensors, 1.5), file)
    assert main(["convert", f"--from={file}", f"--base={home}/base", f"--to={out}"]) == 0
    settings, adapters = restored(out)
    _, before = restored(home / "adapters")
    assert settings.lora.rank == 3 and settings.lora.scale == 1
    for (name, now), (_, then) in zip(named(adapters), named(before), strict=True):
        scale = LORA.scale if name.endswith("lora_b") else 1.0
        np.testing.assert_allclose(now, scale * then, rtol=1e-6, err_msg=name)


def test_a_workdir_of_adapters_samples_and_is_merged_into_a_whole_model(home, tmp_path):
    flags = ["--prompt=a bird", "--size=16x16", "--frames=1", "--steps=1", f"--out={tmp_path}/bird.mp4"]
    assert main(["convert", f"--from={home}/lora.safetensors", f"--base={home}/base", f"--to={tmp_path}/in"]) == 0
    assert main(["sample", f"--checkpoint={tmp_path}/in", *flags]) == 0
    # Adapters alone can be exported; merged, the model is a folder for diffusers.
    (home / "adapters" / "autoencoder").symlink_to(home / "base" / "autoencoder")
    assert main(["convert", f"--from={home}/adapters", f"--to={tmp_path}/merged"]) == 0
    name = "blocks.0.attn1.to_v.weight"
    (merged,) = (tmp_path / "merged" / "transformer").glob("*.safetensors")
    _, before = restored(home / "base")
    _, adapters = restored(home / "adapters")
    v = adapters["transformer"]["blocks"]["self_attention"]["v"]
    kernel = before["transformer"]["blocks"]["self_attention"]["v"]["kernel"][0]
    wanted = kernel + LORA.scale * v["lora_a"][0] @ v["lora_b"][0]
    np.testing.assert_allclose(safetensors.numpy.load_file(merged)[name].T, wanted, atol=1e-6)
    assert json.loads((tmp_path / "merged" / "model_index.json").read_text())["_class_name"] == "WanPipeline"


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"blocks.7.attn1.to_q.lora_A.weight": (3, 48), "blocks.7.attn1.to_q.lora_B.weight": (48, 3)},
            "'blocks.7.attn1.to_q' adapts a layer that this model has not",
        ),
        (
            {"blocks.0.attn1.to_q.lora_A.weight": (3, 40)},
            "is for a weight of shape [48, 40], the model's is [48, 48]",
        ),
        (
            {"blocks.0.attn1.to_q.lora_A.weight": (4, 48)},
            "'blocks.0.attn1.to_q' has rank 4 in lora_A and 3 in lora_B",
        ),
        ({"blocks.0.norm": (3,)}, "tensor 'transformer.blocks.0.norm' is no part of an adapter"),
    ],
)
def test_adapters_of_another_model_are_refused(home, tmp_path, capsys, change, words):
    tensors = safetensors.numpy.load_file(home / "lora.safetensors")
    tensors |= {f"transformer.{name}": np.zeros(shape, np.float32) for name, shape in change.items()}
    file = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(tensors, file)
    assert main(["convert", f"--from={file}", f"--base={home}/base", f"--to={tmp_path}/out"]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1 and not (tmp_path / "out").exists()
