"""The form of the page: its fields, the request that they make, and their values for a finished video."""

import dataclasses
import pathlib
import random

import gradio as gr

from sora_jax.config.fields import declarations
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.generate.request import DIRECTIONS, STRENGTH, TASKS, Request, TaskInputs
from sora_jax.serve.job_queue import JobQueue
from sora_jax.serve.uploads import admit

KEYFRAMES = 3
LOADED = ("dtype", "negative_prompt")  # settings of the loaded model, or with a field of their own
HEIGHT = 220  # pixels of a picture or video in the form


@dataclasses.dataclass(frozen=True)
class Form:
    """The components of the form, by name.

    task, prompt: of every request; inputs: of its task; options: of every request, in the folded part; settings:
    SampleSettings that may differ from the model's.
    """

    task: gr.Radio
    prompt: gr.Textbox
    inputs: dict[str, gr.components.Component]
    options: dict[str, gr.components.Component]
    settings: dict[str, gr.components.Component]

    @property
    def components(self) -> list:
        """All of them, in the order in which Gradio passes their values."""
        parts = self.inputs.values(), self.options.values(), self.settings.values()
        return [self.task, self.prompt, *(component for part in parts for component in part)]

    def read(self, values) -> dict:
        """The values of the components, by name."""
        names = ["task", "prompt", *self.inputs, *self.options, *self.settings]
        return dict(zip(names, values, strict=True))


def make_inputs() -> dict:
    """The fields of task inputs by name; those that `text` does not take are hidden."""

    def picture(label, name):
        return gr.Image(
            label=label,
            type="filepath",
            image_mode=None,
            sources=["upload"],
            visible=False,
            height=HEIGHT,
            elem_id=name,
        )

    def video(label, name):
        options = {"include_audio": True, "loop": True, "visible": False}
        return gr.Video(label=label, sources=["upload"], height=HEIGHT, elem_id=name, **options)

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
    # A gr.Number would turn an empty field into a 0.
    fields["seconds"] = gr.Textbox(
        label="Seconds", info="Length of the new part; empty: as many frames as below", elem_id="seconds"
    )
    fields["strength"] = gr.Slider(0, 1, STRENGTH, label="Strength", visible=False)
    fields["story"] = gr.Textbox(
        label="Story", info="For a long video: a prompt on each line, which take turns", lines=2
    )
    return fields


def make_settings(queue: JobQueue) -> tuple[dict, dict]:
    """The options of every request, and the SampleSettings, by name."""
    settings, defaults = {}, queue.defaults
    hidden = LOADED if queue.generator.low_noise else (*LOADED, "guidance_low")
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            options = {
                "seed": gr.Textbox(label="Seed", info="Empty: another one each time", elem_id="seed"),
                "negative_prompt": gr.Textbox(
                    defaults.negative_prompt, label="Negative prompt", info="What the video should not show"
                ),
                "watermark": gr.Textbox(label="Watermark", info="A text in the corner"),
            }
        with gr.Row():
            for name, declared in declarations(SampleSettings).items():
                if name in hidden:
                    continue
                value = getattr(defaults, name)
                about = {"label": name.replace("_", " ").capitalize(), "info": declared.meaning}
                field = gr.Textbox if isinstance(value, str) else gr.Number
                whole = {"precision": 0} if isinstance(value, int) else {}
                settings[name] = field(value, elem_id=name, min_width=130, **about, **whole)
    return options, settings


def names_of(task: str) -> set[str]:
    """The names in TaskInputs of a task's inputs, and `second` for a second video."""
    return {name for names in TASKS[task] for name in names} | ({"second"} if task == "connect" else set())


def input_of(field: str) -> str:
    """The name in TaskInputs of what a field of the form is a part of."""
    if field.startswith(("time", "picture")):
        return "keyframes"
    return "videos" if field == "video" else field


def read_request(queue: JobQueue, uploads: pathlib.Path, form: Form, values) -> Request:
    """The request that the form's values make; fields of other tasks are left out.

    Raises: InputError for an upload that is refused, or text that is no number.
    """
    values = form.read(values)
    taken = names_of(values["task"])
    given = {name: values[name] for name in form.inputs if input_of(name) in taken}

    def file(name):
        return queue.keep(admit(given[name], uploads, queue.limits)) if given.get(name) else None

    pictures = [(given[f"time{n}"] or 0, file(f"picture{n}")) for n in range(KEYFRAMES) if f"time{n}" in given]
    story = tuple(line.strip() for line in (given.get("story") or "").splitlines() if line.strip())
    inputs = TaskInputs(
        task=values["task"],
        image=file("image"),
        last_image=file("last_image"),
        mask=file("mask"),
        videos=tuple(path for path in (file("video"), file("second")) if path),
        keyframes=tuple(f"{time:g}:{path}" for time, path in pictures if path),
        direction=given.get("direction") or "",
        seconds=read_number("seconds", given.get("seconds"), float),
        strength=given.get("strength"),
        story=story,
        watermark=values["watermark"] or "",
    )
    changes = {}
    for name in form.settings:
        own, value = getattr(queue.defaults, name), values[name]
        if value not in (None, "") and type(own)(value) != own:
            changes[name] = type(own)(value)
    prompt = values["prompt"].strip() or (story[0] if story else "")
    seed = read_number("seed", values["seed"], int)
    seed = random.randrange(2**31) if seed is None else seed
    return Request((prompt,), inputs, seed, values["negative_prompt"] or "", changes)


def read_number(name: str, text: str | None, kind: type):
    """The number in a field, None if it is empty. Raises: InputError if it is no number."""
    if not (text or "").strip():
        return None
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"--{name}={text}: is no {'whole ' if kind is int else ''}number") from None


def form_values(queue: JobQueue, form: Form, metadata: dict) -> list:
    """The values of the form's components for a video with this metadata, in the order of `components`."""
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
    inputs = queue.out / "inputs"
    fields = []
    for name in form.inputs:
        value = saved.get(name)
        if isinstance(value, str) and name not in ("direction", "story"):
            path = inputs / pathlib.Path(value).name
            value = str(path) if path.is_file() else None
        fields.append(gr.skip() if value is None and name in ("direction", "strength") else value)
    settings = [metadata.get(name, getattr(queue.defaults, name)) for name in form.settings]
    return [metadata.get("task"), metadata.get("prompt"), *fields, *map(metadata.get, form.options), *settings]
