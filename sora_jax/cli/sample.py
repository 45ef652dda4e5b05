"""The command `sample`."""

import dataclasses
from typing import Any

from sora_jax.cli import chat
from sora_jax.cli.flags import (
    CHECKPOINT,
    LORA,
    MESH,
    MODEL,
    NO_COMPILE_CACHE,
    Command,
    Flag,
    checkpoint_of,
    mesh_of,
    missing,
    path_of,
)
from sora_jax.cli.prompt_files import read_lines, read_prompts
from sora_jax.config.fields import declarations
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path

TASK = (
    Flag(
        "task",
        "Task: text, image, keyframes, extend, loop, connect, edit, inpaint or outpaint; default: text, or image "
        "with a picture.",
        suggestions=("text", "image", "keyframes", "extend", "loop", "connect", "edit", "inpaint", "outpaint"),
    ),
    Flag("image", "Picture that the video starts with."),
    Flag("last-image", "Picture that the video ends with."),
    Flag("video", "Input video; given twice: the two videos to connect.", repeated=True),
    Flag("keyframe", "SECONDS:FILE, a picture that the video shows at that time.", repeated=True),
    Flag(
        "direction",
        "Direction of --task=extend: forward (default) or backward.",
        suggestions=("forward", "backward"),
    ),
    Flag("strength", "Strength of --task=edit, from 0, the input video, to 1, a new one; default: 0.6.", float),
    Flag("mask", "Picture for --task=inpaint, as large as the video; white areas are generated."),
)
LONG = (
    Flag("seconds", "Seconds to generate; a long video is made window by window.", float),
    Flag("story", "File with a prompt on each line, for equal parts of a long video."),
    Flag("rolling", "Generate a long video frame by frame (rolling diffusion) instead of by windows.", bool),
)
ADVANCED = ("guidance_min", "guidance_max", "time_grid", "shift", "step_cache_threshold")
WATERMARK = Flag("watermark", "Text to write into the lower right corner of the video.")


def run(values, console):
    from sora_jax.api.model import Model
    from sora_jax.generate.request import PromptSettings, Refinement, Request
    from sora_jax.worlds.shipped import refiner_folder

    story = story_of(values, console)
    prompts = [(story[0], {})] if story else prompts_of(values, console)
    chat.check_unused(values, "expand")
    chosen = {name: values[name].value for name in declarations(SampleSettings)}
    request = Request(
        tuple(prompt for prompt, _ in prompts),
        task_inputs_of(values, story),
        values.seed,
        values.negative_prompt,
        {name: value for name, value in chosen.items() if value is not None},
        path_of(values, "step_cache_file"),
        lora=tuple(values.lora or ()),
        own=tuple(PromptSettings(**own) for _, own in prompts),
    )
    checkpoint = checkpoint_of(values)
    if values.refine:
        refiner = refiner_folder(path_of(values, "refiner"), checkpoint, "refiner")
        request = dataclasses.replace(request, refinement=Refinement.read(values.refine, refiner))
    elif values.refiner:
        raise InputError("--refiner: is for --refine; name the size, for example --refine=128x128")
    options = {"mesh": mesh_of(values), "lora": request.lora, "dtype": values.dtype or "", "console": console}
    model = Model(checkpoint, **options)
    print_remarks(values, [prompt for prompt, _ in prompts], console)
    model.generate(request, values.out, expand=expander_of(values, console) if values.expand else None)


def print_remarks(values, prompts, console):
    """Print what the model of a world does not know of the prompts; --expand puts them into its words."""
    from sora_jax.worlds.shipped import DEFAULT, remark

    if values.checkpoint or values.expand:
        return
    for prompt in prompts:
        if said := remark(values.model or DEFAULT, prompt):
            console.print(said, markup=False, highlight=False, soft_wrap=True)


def task_inputs_of(values, story):
    """The task and the inputs that the flags name."""
    from sora_jax.generate.request import TaskInputs

    return TaskInputs(
        task=values.task or "",
        image=path_of(values, "image"),
        last_image=path_of(values, "last_image"),
        videos=tuple(map(as_path, values.video or ())),
        keyframes=tuple(values.keyframe or ()),
        direction=values.direction or "",
        seconds=values.seconds,
        strength=values.strength,
        mask=path_of(values, "mask"),
        story=tuple(story),
        rolling=bool(values.rolling),
        watermark=values.watermark or "",
    )


def prompts_of(values, console) -> list[tuple[str, dict]]:
    """The values of --prompt, then the prompts of --prompts, each with settings of its own."""
    prompts = [(prompt, {}) for prompt in values.prompt or ()]
    if values.prompts:
        prompts += read_prompts(values, "prompts", console)
    if not prompts:
        raise missing("prompt", '"a red circle moves left"')
    return prompts


def story_of(values, console) -> list[str]:
    """The prompts of a long video that changes; none if it has one prompt."""
    if not values.story:
        return []
    if values.prompt or values.prompts:
        raise InputError("--story: has the prompts; leave out --prompt and --prompts")
    return read_lines(values, "story", console)


def expander_of(values, console):
    """A function that expands a list of prompts as --expand says."""
    import jax

    expander = chat.expander_of(values, "expand", console)

    def expand(prompts):
        if values.expand != chat.SHAPES and jax.process_count() > 1:
            raise InputError(
                f"--expand={values.expand}: {jax.process_count()} processes might get as many answers; "
                f"expand the prompts with `sora-jax caption --prompts` first"
            )
        return expander(prompts)

    return expand


def _settings_flags(*names) -> tuple[Flag, ...]:
    """Flags for keys of config.sample, under the meaning that is declared there."""
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(SampleSettings)}
    made = []
    for name in names:
        declared = declarations(SampleSettings)[name]
        allowed = f" One of {declared.range}." if declared.choices else ""
        flag = Flag(name.replace("_", "-"), declared.meaning + allowed, kinds[name], suggestions=declared.choices)
        made.append(dataclasses.replace(flag, advanced=name in ADVANCED))
    return tuple(made)


COMMAND = Command(
    "a trained transformer and prompts -> videos",
    {
        "Input": (
            Flag("prompt", "Description of the video; given again: another video.", repeated=True),
            MODEL,
            CHECKPOINT,
            Flag(
                "prompts",
                "File with a prompt on each line; in a .jsonl an object on each line, with prompt and, for that "
                "video alone, seed, size, frames, negative_prompt.",
            ),
            *_settings_flags("negative_prompt"),
            LORA,
        ),
        "Output": (
            Flag("out", "An .mp4; for several prompts a folder.", example="sample.mp4"),
            Flag("refine", "Size to refine the video to, WIDTHxHEIGHT, and if wanted its frame rate: 128x128@32."),
            Flag("refiner", "Workdir of the refiner; default: `refiner` in the folder of the checkpoint."),
            WATERMARK,
        ),
        "Sampling": (
            *_settings_flags("size", "frames"),
            Flag("seed", "Seed of the noise: the same seed makes the same video.", int, 0, min=0, max=2**64 - 1),
            *_settings_flags("steps", "guidance", "fps", "solver"),
            Flag(
                "guidance-low",
                "Guidance scale of the expert for low noise, of a model with two experts; default: --guidance if "
                "it is given, else the checkpoint's.",
                float,
                advanced=True,
            ),
            *_settings_flags("guidance_min", "guidance_max", "time_grid", "shift", "step_cache_threshold"),
            Flag(
                "step-cache-file",
                "File with the measured change of the velocity, made if it is absent; default: "
                "velocity_change.json in the workdir.",
                advanced=True,
            ),
        ),
        "Task": TASK,
        "Long videos": LONG,
        "Prompt expansion": (
            Flag(
                "expand",
                "Expand prompts with the chat model at this address, or by the rules of the shapes world: shapes.",
            ),
            *chat.FLAGS,
        ),
        "Hardware": (MESH, *_settings_flags("dtype"), NO_COMPILE_CACHE),
    },
    run,
    about="Defaults of the sampling flags are those of the checkpoint (config.sample). The mp4 carries prompt, "
    "seed and settings in its metadata; NAME.c2pa.json beside it is an unsigned C2PA manifest.",
    examples=(
        '--prompt="a small red circle moves left on a blue background" --out=red.mp4',
        '--checkpoint=runs/first --prompt="a cat" --prompt="a dog" --out=animals --size=96x64 --frames=33',
    ),
    joins=True,
)
