"""Settings: one declaration of each key, which validation and the reference page are made from."""

import dataclasses
import json
import pathlib

import pytest

from sora_jax.config import reference
from sora_jax.config.fields import declarations
from sora_jax.config.load import from_dict, from_json, to_json
from sora_jax.config.schema import DataSettings, MeshSettings, Settings
from sora_jax.core.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_the_reference_pages_are_current():
    for name, text in reference.pages().items():
        assert (ROOT / "docs/reference" / name).read_text() == text


def test_every_key_is_declared_with_its_meaning_and_every_number_with_its_range():
    settings = Settings()
    groups = [settings, *(getattr(settings, field.name) for field in dataclasses.fields(settings))]
    for group in filter(dataclasses.is_dataclass, groups):
        declared = declarations(group)
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if dataclasses.is_dataclass(value):
                continue
            assert declared[field.name].meaning.endswith("."), field.name
            if type(value) is int:
                assert declared[field.name].min is not None, field.name


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DataSettings(batch=0), "config.data.batch: 0 must be at least 1"),
        (lambda: DataSettings(frames=(17, 0)), r"config.data.frames: \(17, 0\) must be at least 1"),
        (lambda: DataSettings(fps=0.0), "config.data.fps: 0.0 must be above 0"),
        (lambda: DataSettings(fps=float("inf")), "config.data.fps: inf is not a finite number"),
        (lambda: DataSettings(validation=1.5), "config.data.validation: 1.5 must be from 0 to 1"),
        (lambda: MeshSettings(ring=-2), "config.mesh.ring: -2 must be at least -1"),
        (lambda: Settings(objective="flwo"), "config.objective: 'flwo'. did you mean 'flow'"),
    ],
)
def test_a_value_out_of_its_range_is_refused_wherever_it_comes_from(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_settings_survive_json_and_are_hashable():
    settings = Settings(mesh=MeshSettings(ulysses=2), data=DataSettings(frames=(5, 1)))
    again = from_json(Settings, json.loads(to_json(settings)), "settings.json")
    assert again == settings and hash(again) == hash(settings)


def test_keys_of_earlier_versions_are_read_from_settings_json_alone():
    old = {
        "mesh": {"context": 2},
        "data": {"row_patches": 7, "row_tokens": 8, "row_clips": 9},
        "masks": {"nothing": 0.5, "first": 2.0, "inside": 3.0, "row_levels": 4},
        "flow": {"echoes": 0.25, "whole_times": 1000},
    }
    read = from_json(Settings, old, "settings.json")
    assert read.mesh.ulysses == 2
    assert (read.data.sequence_length, read.data.text_length, read.data.clips_per_sequence) == (7, 8, 9)
    assert (read.masks.text, read.masks.first_frame, read.masks.outpaint) == (0.5, 2.0, 3.0)
    assert (read.masks.times_per_sequence, read.flow.ghosts, read.flow.time_quantization) == (4, 0.25, 1000)
    with pytest.raises(InputError, match=r"config.mesh.context: no such key"):
        from_dict(Settings, old, "config")
