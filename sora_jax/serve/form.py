"""The form: its fields, the wish that they are, and how they were for a video that was made."""

import dataclasses
import pathlib
import random

import gradio as gr

from sora_jax.config.fields import declarations
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.request import DIRECTIONS, TASKS, Request
from sora_jax.generate.sample import STRENGTH
from sora_jax.serve.job_queue import Wish
from sora_jax.serve.uploads import admit

KEYFRAMES = 3
LOADED = ("dtype",)  # settings that the model was loaded with


def make_fields():
    """The fields of tasks by their names; those that `text` does not take are hidden."""

    def picture(label, key):
        return gr.Image(
            label=label,
            type="filepath",
            image_mode=None,
            sources=["upload"],
            visible=False,
            height=220,
            elem_id=key,
        )

    def video(label, key):
        return gr.Video(
            label=label, sources=["upload"], include_audio=True, loop=True, visible=False, height=220, elem_id=key
        )

    fields = {}
    with gr.Row(elem_classes="asked"):
        fields |= {"image": picture("First frame", "image"), "last_image": picture("Last frame", "last_image")}
    with gr.Row(elem_classes="asked"):
        fields |= {"video": video("Video", "video"), "second": video("Second video", "second")}
    fields["mask"] = picture("Mask", "mask")
    for n in range(KEYFRAMES):
        with gr.Row(elem_classes="asked"):
            fields[f"time{n}"] = gr.Number(n * 0.5, label="At second", minimum=0, visible=False)
            fields[f"picture{n}"] = picture("Picture", f"picture{n}")
    fields["direction"] = gr.Radio(DIRECTIONS, value=DIRECTIONS[0], label="Direction", visible=False)
    # No gr.Number: it turns an empty field into a 0.
    fields["seconds"] = gr.Textbox(
        label="Seconds", info="How much is made; empty: as the model does", elem_id="seconds"
    )
    fields["strength"] = gr.Slider(0, 1, STRENGTH, label="Strength", visible=False)
    fields["story"] = gr.Textbox(
        label="Story", info="For a long video: a prompt on each line, which take turns", lines=2
    )
    return fields


def make_settings(defaults):
    """What any task may be told, and the SampleSettings that may differ from the model's."""
    changes = {}
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            seed = gr.Textbox(label="Seed", info="Empty: another one each time", elem_id="seed")
            negative = gr.Textbox(label="Negative prompt", info="What to keep away from")
            watermark = gr.Textbox(label="Watermark", info="A text in the corner")
        with gr.Row():
            for field in dataclasses.fields(SampleSettings):
                if field.name in LOADED:
                    continue
                told = {
                    "label": field.name.replace("_", " ").capitalize(),
                    "info": declarations(SampleSettings)[field.name].meaning,
                    "min_width": 130,
                }
                value = getattr(defaults, field.name)
                if field.type is str:
                    changes[field.name] = gr.Textbox(value, elem_id=field.name, **told)
                else:
                    whole = {"precision": 0} if field.type is int else {}
                    changes[field.name] = gr.Number(value, elem_id=field.name, **whole, **told)
    return seed, negative, watermark, changes


def taken(task):
    return {key for keys in TASKS[task] for key in keys} | ({"second"} if task == "connect" else set())


def field_of(key):
    """The name in TASKS of what a field of the form is a part of."""
    return {
        "video": "videos",
        **{f"{part}{n}": "keyframes" for part in ("time", "picture") for n in range(KEYFRAMES)},
    }.get(key, key)


def read_wish(studio, uploads, listed, changed, values):
    """What the form asks for; fields that its task does not take are left out, though they may be filled."""
    task, prompt, negative, seed, watermark, *rest = values
    given = {key: value for key, value in zip(listed, rest, strict=False) if field_of(key) in taken(task)}

    def file(key):
        if not given.get(key):
            return None
        return studio.keep(admit(given[key], uploads, studio.limits))

    pictures = [(given[f"time{n}"] or 0, file(f"picture{n}")) for n in range(KEYFRAMES) if f"time{n}" in given]
    story = tuple(line.strip() for line in (given.get("story") or "").splitlines() if line.strip())
    request = Request(
        task=task,
        image=file("image"),
        last_image=file("last_image"),
        mask=file("mask"),
        videos=tuple(path for path in (file("video"), file("second")) if path),
        keyframes=tuple(f"{time:g}:{path}" for time, path in pictures if path),
        direction=given.get("direction") or "",
        seconds=read_number("seconds", given.get("seconds"), float),
        strength=given.get("strength"),
        story=story,
        watermark=watermark or "",
    )
    changes = {}
    for key, value in zip(changed, rest[len(listed) :], strict=True):
        kind = type(getattr(studio.defaults, key))
        if value not in (None, "") and kind(value) != getattr(studio.defaults, key):
            changes[key] = kind(value)
    prompt = prompt.strip() or (story[0] if story else "")
    number = read_number("seed", seed, int)
    seed = random.randrange(2**31) if number is None else number
    return Wish(prompt, request, seed, negative or "", changes)


def read_number(name, text, kind):
    """What a field says, None if it is empty. Raises: InputError if it is no number."""
    if not (text or "").strip():
        return None
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"--{name}={text}: is no {'whole ' if kind is int else ''}number") from None


def fill(studio, listed, changed, metadata):
    """The form as it was for a video that was made; in the order of its values."""
    videos = metadata.get("videos", [])
    saved = {
        **metadata,
        "video": videos[0] if videos else None,
        "second": videos[1] if len(videos) > 1 else None,
        "story": "\n".join(metadata.get("story", [])),
    }
    for n, text in enumerate(metadata.get("keyframes", [])):
        time, _, path = text.partition(":")
        saved |= {f"time{n}": float(time), f"picture{n}": path}
    inputs = (studio.out / "inputs").resolve()
    fields = []
    for key in listed:
        value = saved.get(key)
        if isinstance(value, str) and key not in ("direction", "story"):
            # The file says it, so it is looked at: only what was given here is given again.
            path = pathlib.Path(value).resolve()
            value = str(path) if path.is_relative_to(inputs) and path.is_file() else None
        fields.append(gr.skip() if value is None and key in ("direction", "strength") else value)
    words = [metadata.get(key) for key in ("task", "prompt", "negative_prompt", "seed", "watermark")]
    return [*words, *fields, *(metadata.get(key, getattr(studio.defaults, key)) for key in changed)]
