"""VBench's dimensions: formulas on known videos, sharding, scores, and the benchmark with a small network."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny
from test_evaluate import QUIET, Model, asked, checkpoint, run

from sora_jax.core.errors import InputError
from sora_jax.evaluate.suites import vbench as suite
from sora_jax.evaluate.vbench import measures
from sora_jax.evaluate.vbench.dimensions import DIMENSIONS, chosen_dimensions, missing_weights, quality_score
from sora_jax.interop.tables import foreign_shapes
from sora_jax.interop.vbench import conv_table, load_dino, load_musiq, load_raft, musiq_table
from sora_jax.models.vbench.musiq import Musiq, MusiqSettings
from sora_jax.models.vbench.raft import Raft, RaftSettings


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_flickering_is_the_mean_change_of_a_pixel():
    video = np.zeros((3, 4, 6, 3), np.uint8)
    video[1] = 51  # a fifth of the range, up and down again
    assert measures.temporal_flickering(video) == pytest.approx(0.8)
    assert measures.temporal_flickering(video[:1]) is None


@pytest.mark.parametrize(
    "lengths, count, moves, static",
    [
        ([7.0, 5.0, 7.0, 7.0], 16, False, False),  # 3 of 4 that are wanted
        ([7.0, 6.1, 7.0, 7.0], 16, True, False),
        ([1.0, 3.1, 3.1, 1.0, 12.0, 12.0], 16, False, True),
        ([1.0, 3.1, 3.1, 3.1, 1.0, 1.0], 16, False, False),  # 3 where 2 are allowed
        ([1.0, 1.0, 1.0, 1.0, 12.1, 1.0], 16, False, False),  # the last frame is another picture
        ([1.0], 2, True, False),  # of so few frames none need to move: as in VBench's code
    ],
)
def test_videos_that_move_and_that_rest(lengths, count, moves, static):
    """By thresholds for a short side of 256 pixels: 6 for motion, 3 for rest."""
    lengths = np.array(lengths)
    assert measures.moves(lengths, count, 256) == moves
    assert measures.moves(2 * lengths, count, 512) == moves
    if len(lengths) > 4:
        assert measures.rests(lengths, count, 256) == static


def test_frames_from_the_middles_of_equal_parts():
    assert list(measures.middle_frames(16, 8)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert list(measures.middle_frames(81, 8)) == [4, 14, 24, 34, 44, 54, 64, 75]
    assert list(measures.middle_frames(3, 8)) == [0, 1, 2, 2, 2, 2, 2, 2]


def test_the_quality_score_weighs_normalised_values_and_tells_what_it_lacks():
    best = {name: dimension.high for name, dimension in DIMENSIONS.items()}
    worst = {name: dimension.low for name, dimension in DIMENSIONS.items()}
    assert quality_score(best) == (pytest.approx(1), [])
    assert quality_score(worst) == (pytest.approx(0), [])
    # Dynamic degree counts half: 1 of 6.5 parts less a half.
    assert quality_score(best | {"dynamic_degree": 0.0})[0] == pytest.approx(6 / 6.5)
    some = {"aesthetic_quality": 0.5, "dynamic_degree": 1.0, "overall_consistency": 0.3}
    score, missing = quality_score(some)
    assert score == pytest.approx((0.5 + 0.5) / 1.5)
    assert len(missing) == 5 and "imaging_quality" in missing and "overall_consistency" not in missing
    assert quality_score({"subject_consistency": None})[0] is None


def write_dino(folder):
    """A small DINO of random weights, by its authors' names."""
    draw = np.random.default_rng(0)
    block = {
        "norm1": (64,), "attn.qkv": (192, 64), "attn.proj": (64, 64), "norm2": (64,), "mlp.fc1": (96, 64),
        "mlp.fc2": (64, 96),
    }  # fmt: skip
    layers = {f"blocks.{n}.{name}": shape for n in range(2) for name, shape in block.items()}
    layers |= {"norm": (64,), "patch_embed.proj": (64, 3, 16, 16)}
    tensors = {f"{name}.weight": draw.normal(0.1, 0.2, shape) for name, shape in layers.items()}
    tensors |= {f"{name}.bias": draw.normal(0, 0.2, shape[:1]) for name, shape in layers.items()}
    tensors |= {"cls_token": draw.normal(size=(1, 1, 64)), "pos_embed": draw.normal(size=(1, 197, 64))}
    folder.mkdir(parents=True)
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return tensors


def test_frames_on_several_devices_measure_as_on_one(tmp_path):
    write_dino(tmp_path / "dino")
    video = noise(11, 60, 90, 3)  # two uneven batches
    found = []
    for devices in (1, 2):
        with jax.set_mesh(tiny.mesh_of(devices)):
            found.append(measures.subject_consistency(video, *load_dino(str(tmp_path / "dino"))))
            assert measures.subject_consistency(video[:1], *load_dino(str(tmp_path / "dino"))) is None
    assert 0 < found[0] < 0.9999 and found[0] == pytest.approx(found[1], abs=1e-6)
    with jax.set_mesh(tiny.mesh_of()):
        still = measures.subject_consistency(np.repeat(video[:1], 3, axis=0), *load_dino(str(tmp_path / "dino")))
    assert still == pytest.approx(1)


def test_weights_of_another_network_are_refused_by_the_tensor_that_is_missing(tmp_path):
    write_dino(tmp_path / "dino")
    with jax.set_mesh(tiny.mesh_of()):
        for load, name in ((load_raft, "cnet.conv1.bias"), (load_musiq, "transformer_encoder.cls")):
            with pytest.raises(InputError, match=f"{tmp_path / 'dino'}: tensor '{name}' is missing"):
                load(str(tmp_path / "dino"))
        with pytest.raises(InputError, match="no such"):
            load_raft(str(tmp_path / "raft"))
        # The names of the published files, of which two tensors tell for all.
        raft = foreign_shapes(conv_table(Raft, RaftSettings(), ((r"mask\.1\.", "mask.2."),)), Raft, RaftSettings())
        musiq = foreign_shapes(musiq_table(), Musiq, MusiqSettings())
    assert raft["fnet.layer2.0.downsample.0.weight"] == (96, 64, 1, 1) and "cnet.norm1.running_var" in raft
    assert raft["update_block.mask.2.weight"] == (576, 256, 1, 1)
    assert musiq["transformer_encoder.transformer.encoderblock_13.mlp.fc1.weight"] == (1152, 384)


def test_absent_weights_are_told_with_how_to_get_them(tmp_path):
    assert missing_weights(DIMENSIONS["temporal_flickering"], "") == ""
    told = missing_weights(DIMENSIONS["aesthetic_quality"], str(tmp_path))
    assert (
        f"hf download openai/clip-vit-large-patch14 model.safetensors config.json --local-dir {tmp_path}" in told
    )
    assert f"sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor, made {tmp_path / 'aesthetic'}" in told


def test_with_the_filter_flickering_is_that_of_static_videos(tmp_path, monkeypatch):
    class Known:
        def __init__(self, dimension, weights):
            self.name = dimension.name

        def measure(self, path, prompt):
            value, static = map(float, prompt.split())
            return static if self.name == "static" else value

    monkeypatch.setattr(suite, "DimensionMeasure", Known)
    (tmp_path / "raft").mkdir()
    (tmp_path / "raft/model.safetensors").write_bytes(b"weights")
    videos = []
    for prompt in ("0.9 1", "0.5 0", "0.8 1"):
        videos.append((prompt, tmp_path / f"{prompt}-0.mp4"))
        videos[-1][1].write_text(prompt)
    found = {}
    for names in ((), ("temporal_flickering", "static")):
        asked = chosen_dimensions(names)
        made = suite.measure_videos(videos, str(tmp_path), asked, tmp_path / f"kept{len(names)}", QUIET)
        found[names] = made["dimensions"]
    assert found[()] == {"temporal_flickering": pytest.approx(2.2 / 3), "dynamic_degree": pytest.approx(2.2 / 3)}
    assert list(found.values())[1] == {"temporal_flickering": pytest.approx(0.85), "static": pytest.approx(2 / 3)}


def test_the_benchmark_measures_the_dimensions_whose_weights_are_there(tmp_path):
    folder = checkpoint(tmp_path / "model")
    weights = tmp_path / "weights"
    write_dino(weights / "dino")
    wishes = {"samples": 1, "prompts": ("a red circle", "a blue square"), "frames": (5,)}
    wishes |= {"vbench": str(weights)}
    values = run(folder, tmp_path / "out", Model(asked), "vbench", **wishes)["checkpoints"][0]["vbench"]
    found = values["measured"]
    assert set(found["dimensions"]) == {"subject_consistency", "temporal_flickering"}
    by_video = [
        found["videos"][f"a {name}-0.mp4"]["subject_consistency"] for name in ("red circle", "blue square")
    ]
    assert found["dimensions"]["subject_consistency"] == pytest.approx(np.mean(by_video)) and by_video[0] < 1
    assert "hf download openai/clip-vit-base-patch32" in found["absent"]["background_consistency"]
    assert 0 < values["quality"] < 1 and "imaging_quality" in values["missing"]
    page = (tmp_path / "out/index.html").read_text()
    assert "VBench quality score" in page and "not comparable" in page
    # Kept by content: measured anew only where the weights are others.
    kept = sorted((tmp_path / "out").glob("step-*/vbench-*_*.json"))
    assert len(kept) == 2
    kept[0].write_text(json.dumps([0.25, 0.75]))
    (values_kept,) = set((tmp_path / "out").glob("step-*/vbench-*.json")) - set(kept)
    values_kept.unlink()
    again = run(folder, tmp_path / "out", Model(asked), "vbench", **wishes)["checkpoints"][0]["vbench"]
    assert again["measured"]["dimensions"]["subject_consistency"] == 0.5
    with pytest.raises(InputError, match="no dimension 'imaging', did you mean 'imaging_quality'"):
        run(folder, tmp_path / "out", Model(asked), "vbench", **wishes, dimensions=("imaging",))
    with pytest.raises(InputError, match="imaging_quality needs weights in --vbench: musiq_spaq_ckpt"):
        run(folder, tmp_path / "out", Model(asked), "vbench", **wishes, dimensions=("imaging_quality",))
