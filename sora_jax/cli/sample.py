"""The verb `sample`: its flags, and what they ask for."""

import dataclasses
import pathlib

from absl import flags

from sora_jax.cli.commands import (
    BUILT_IN,
    CHAT,
    chat_of,
    checkpoint_of,
    define_chat,
    define_mesh,
    lines_of,
    mesh_of,
    needed,
)
from sora_jax.config.schema import SampleSettings
from sora_jax.core.errors import InputError

SAMPLE_HELP = {
    "size": "WIDTHxHEIGHT of the video.",
    "frames": "Its length, 4 n + 1; 1 is an image.",
    "fps": "Frames a second.",
    "steps": "Of the solver.",
    "solver": "euler, heun, ancestral, dpm or unipc.",
    "guidance": "How hard to follow the prompt; 1 is not at all guided, and takes half as long.",
    "guidance_min": "Only steps at times from here are guided; each of the others takes half as long.",
    "guidance_max": "And only up to here.",
    "skip": "Steps while the velocity has moved by no more than this share of itself, e.g. 0.1; 0: none.",
    "shift": "Of the times towards noise; 0: by the video's size.",
    "dtype": "That the models compute in: float32, or bfloat16, which is faster.",
}


REQUEST_HELP = {
    "task": "text, image, keyframes, extend, loop, connect, edit, inpaint or outpaint; see docs/tasks.md.",
    "image": "A picture that the video begins with.",
    "last_image": "A picture that the video ends with.",
    "video": "A video that is given; to connect two, twice.",
    "keyframe": "SECONDS:FILE, a picture that the video shows then; again for another one.",
    "direction": "Of --task=extend: forward or backward.",
    "seconds": "How much is made, window after window if it is long.",
    "strength": "Of --task=edit: from 0, the video itself, to 1, another one.",
    "mask": "Of --task=inpaint: a picture of the video's size; what is white in it is made anew.",
    "story": "For a long video: a file with a prompt on each line, which take turns.",
    "rolling": "Of a long video: each frame is finished after the one before, not window by window.",
    "watermark": "A text that is written on the video.",
}


_DEFINE = {
    **dict.fromkeys(("video", "keyframe"), flags.DEFINE_multi_string),
    **dict.fromkeys(("seconds", "strength"), flags.DEFINE_float),
    "rolling": flags.DEFINE_boolean,
}


def request_of(values, story):
    """What the flags of tasks ask for."""
    from sora_jax.generate.request import Request

    chosen = {name: values[name].value for name in REQUEST_HELP}
    videos, keyframes = (chosen.pop(name) or () for name in ("video", "keyframe"))
    for name in ("image", "last_image", "mask"):
        chosen[name] = chosen[name] and pathlib.Path(chosen[name])
    for name in ("task", "direction", "watermark"):
        chosen[name] = chosen[name] or ""
    chosen |= {"story": tuple(story), "rolling": bool(chosen["rolling"])}
    return Request(videos=tuple(map(pathlib.Path, videos)), keyframes=tuple(keyframes), **chosen)


def define_sample(values):
    flags.DEFINE_string("checkpoint", None, f"Workdir of a trained transformer; {BUILT_IN}", flag_values=values)
    flags.DEFINE_multi_string("prompt", None, "What the video shows; again for another one.", flag_values=values)
    flags.DEFINE_string("prompts", None, "A file with a prompt on each line.", flag_values=values)
    flags.DEFINE_string("negative_prompt", "", "What to keep away from.", flag_values=values)
    for name, text in REQUEST_HELP.items():
        define = _DEFINE.get(name, flags.DEFINE_string)
        define(name, None, text, flag_values=values)
    flags.DEFINE_string("out", None, "An .mp4, or a folder if there are many prompts.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "The same seed makes the same video.", flag_values=values)
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    for field in dataclasses.fields(SampleSettings):
        text = f"{SAMPLE_HELP[field.name]} Default: the checkpoint's own."
        define[field.type](field.name, None, text, flag_values=values)
    text = "For --skip: file of what is measured, made if it is not there; default: drift.json in the workdir."
    flags.DEFINE_string("drift", None, text, flag_values=values)
    define_chat(values, "expand", "Write out the prompts first, by a chat model at this address, or by: shapes.")
    define_mesh(values)


def prompts_of(values) -> list[str]:
    """Those of --prompt, then the lines of --prompts that are not blank."""
    prompts = list(values["prompt"].value or [])
    if values["prompts"].value:
        prompts += lines_of(values, "prompts")
    return prompts or needed(values, "prompt", '"a red circle moves left"')


def story_of(values) -> list[str]:
    """The prompts of a long video that changes; none if it has one prompt."""
    if not values["story"].value:
        return []
    if values["prompt"].value or values["prompts"].value:
        raise InputError("--story: has the prompts; leave out --prompt and --prompts")
    return lines_of(values, "story")


def expansion_of(values, console):
    """What writes out prompts as --expand says: a function from prompts to as many."""
    import jax

    from sora_jax.captioning.cache import Cache
    from sora_jax.captioning.caption import cache_beside, expand

    chat, out = chat_of(values, "expand"), pathlib.Path(needed(values, "out", "sample.mp4"))
    if chat is None:
        return lambda prompts: expand(prompts, None, console=console)

    def ask(prompts):
        if jax.process_count() > 1:
            raise InputError(
                f"--expand={chat.endpoint.url}: {jax.process_count()} processes might get as many answers; write "
                f"the prompts out with `sora-jax caption --prompts` first"
            )
        # What was answered is kept: the same command makes the same video, and goes on after an interruption.
        with Cache(cache_beside(out)) as cache:
            return expand(prompts, chat, cache=cache, parallel=values["parallel"].value, console=console)

    return ask


def run_sample(values, console):
    from sora_jax.generate.sample import sample

    story = story_of(values)
    for name in CHAT:
        if values[name].present and not values["expand"].value:
            raise InputError(f"--{name.replace('_', '-')}: is for a chat model; name its address, --expand")
    chosen = {field.name: values[field.name].value for field in dataclasses.fields(SampleSettings)}
    sample(
        checkpoint_of(values),
        story[:1] or prompts_of(values),
        pathlib.Path(needed(values, "out", "sample.mp4")),
        changes={name: value for name, value in chosen.items() if value is not None},
        negative_prompt=values["negative_prompt"].value,
        request=request_of(values, story),
        drift=pathlib.Path(values["drift"].value) if values["drift"].value else None,
        expand=expansion_of(values, console) if values["expand"].value else None,
        seed=values["seed"].value,
        mesh=mesh_of(values),
        console=console,
    )
