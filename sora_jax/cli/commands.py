"""The verbs: each one's flags, `define_VERB`, and `run_VERB`, which reads them and calls what does the work.

A verb imports what does its work when it runs, so that `--help` and a mistyped flag cost no import of JAX.
"""

import dataclasses
import os
import pathlib

from absl import flags

from sora_jax.config.load import from_config
from sora_jax.config.schema import Settings
from sora_jax.core.errors import InputError, did_you_mean


def settings_of(values: flags.FlagValues) -> Settings:
    return from_config(values["config"].value)


def needed(values: flags.FlagValues, name: str, example: str):
    """The value of a flag that must be given."""
    value = values[name].value
    if not value:
        raise InputError(
            f"--{name.replace('_', '-')} is missing, for example --{name.replace('_', '-')}={example}"
        )
    return value


def define_prepare(values):
    flags.DEFINE_string("videos", None, "Folder of videos and captions.", flag_values=values)
    flags.DEFINE_string("captions", None, "Captions, if not in the folder: .jsonl or .csv.", flag_values=values)
    flags.DEFINE_string(
        "autoencoder",
        None,
        "Workdir of a trained autoencoder, or its folder: write latents. Without it: pixels, to train one on.",
        flag_values=values,
    )
    flags.DEFINE_string("tokenizer", None, "A sentencepiece model; else one is learned.", flag_values=values)
    flags.DEFINE_string(
        "text_encoder",
        None,
        "A folder of transformers' UMT5: write captions' embeddings, too.",
        flag_values=values,
    )
    flags.DEFINE_string("out", None, "Folder for the data set.", flag_values=values)


def run_prepare(values, console):
    from sora_jax.data.prepare.prepare import prepare

    prepare(
        settings_of(values),
        pathlib.Path(needed(values, "videos", "clips")),
        pathlib.Path(needed(values, "out", "data/clips")),
        captions=values["captions"].value,
        autoencoder=values["autoencoder"].value,
        tokenizer=values["tokenizer"].value,
        text_encoder=values["text_encoder"].value,
        console=console,
    )


def define_verify(values):
    flags.DEFINE_string("data", None, "A data set by `prepare`.", flag_values=values)


def run_verify(values, console):
    from sora_jax.data.records.verify import verify

    verify(pathlib.Path(needed(values, "data", "data/clips")), console)


def define_train(values):
    flags.DEFINE_string(
        "workdir", None, "Folder for all that the run writes; an old one goes on.", flag_values=values
    )


def run_train(values, console):
    from sora_jax.train.loop import train

    workdir = pathlib.Path(needed(values, "workdir", "runs/first"))
    train(settings_of(values), workdir, console=console)


def define_mesh(values):
    flags.DEFINE_string(
        "mesh", "data=-1", "Axes of the mesh, e.g. data=2,ulysses=4; -1 is what is left.", flag_values=values
    )


def mesh_of(values):
    """MeshSettings from --mesh=data=2,ulysses=4; an axis that is not named has one device."""
    from sora_jax.config.schema import MeshSettings

    sizes = {"data": 1}
    known = [field.name for field in dataclasses.fields(MeshSettings)]
    for part in values["mesh"].value.split(","):
        axis, _, size = part.partition("=")
        if axis not in known:
            raise InputError(f"--mesh: no axis {axis!r}, {did_you_mean(axis, known)}")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise InputError(f"--mesh: {part!r} is not AXIS=SIZE") from None
    return MeshSettings(**sizes)


def define_convert(values):
    for name, text in (
        ("from", "A published model's folder, a file of adapters, or a workdir."),
        ("to", "A new workdir; from a workdir: a folder for diffusers, or a file of adapters."),
        ("base", "For adapters: the workdir of their model."),
        ("rest", "For a transformer in Wan's own layout: a folder in diffusers' layout with all else."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)


def run_convert(values, console):
    from sora_jax.interop.convert import convert

    base, rest = (value and pathlib.Path(value) for value in (values["base"].value, values["rest"].value))
    convert(
        pathlib.Path(needed(values, "from", "Wan2.1-T2V-1.3B-Diffusers")),
        pathlib.Path(needed(values, "to", "wan")),
        rest=rest,
        base=base,
        console=console,
    )


def lines_of(values, flag: str) -> list[str]:
    """The prompts in the file that a flag names, one a line; blank lines are left out."""
    name = values[flag].value
    file = pathlib.Path(name)
    if not file.is_file():
        raise InputError(f"--{flag}={name}: no such file; it has a prompt on each line")
    prompts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"--{flag}={name}: no prompt in it; write one on each line")
    return prompts


BUILT_IN = "default: the shapes world's model, which comes with the package."


def checkpoint_of(values) -> pathlib.Path:
    """What --checkpoint names, or the model that comes with the package."""
    from sora_jax.checkpoint.model_folder import SHIPPED

    return pathlib.Path(values["checkpoint"].value or SHIPPED)


def define_evaluate(values):
    text = f"Workdir of a training run; again: another, side by side; {BUILT_IN}"
    flags.DEFINE_multi_string("checkpoint", None, text, flag_values=values)
    flags.DEFINE_list(
        "suite",
        [],
        "Measures: loss, reconstruction, shapes, tasks, long, temporal, fvd, clip, vbench; default: by its kind.",
        flag_values=values,
    )
    for name, text in (
        (
            "out",
            "Folder for the report, needed for several checkpoints; default: WORKDIR/evaluation, and evaluation "
            "for the model of the package.",
        ),
        ("data", "A prepared data set; default: what it was trained on."),
        ("prompts", "A file with a prompt on each line; default: the captions of the data's held-out clips."),
        ("videos", "A folder of real videos to compare with; default: the data's held-out clips."),
        ("lpips", "Weights of LPIPS, a .safetensors, for reconstruction."),
        ("videomae", "A folder with a VideoMAE encoder's safetensors, for fvd."),
        ("clip", "A folder with a CLIPModel of transformers, for clip."),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    flags.DEFINE_integer(
        "samples", 0, "How many, of each size and length; 0: by the suite.", 0, flag_values=values
    )
    flags.DEFINE_list("size", [], "WIDTHxHEIGHT of samples, several with commas.", flag_values=values)
    flags.DEFINE_list("frames", [], "Lengths of samples, several with commas.", flag_values=values)
    flags.DEFINE_float("seconds", 60.0, "Of the videos of --suite=long.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the samples' noise.", flag_values=values)
    define_mesh(values)


def run_evaluate(values, console):
    from sora_jax.checkpoint.model_folder import SHIPPED
    from sora_jax.evaluate.checkpoint_under_test import Options
    from sora_jax.evaluate.evaluate import evaluate

    checkpoints = [pathlib.Path(path) for path in values["checkpoint"].value or [SHIPPED]]
    if len(checkpoints) > 1 and not values["out"].value:
        raise InputError(f"--out is missing: name a folder for the report on {len(checkpoints)} checkpoints")
    frames = values["frames"].value
    if not all(count.strip().isdecimal() for count in frames):
        raise InputError(f"--frames={','.join(frames)}: whole numbers are wanted, for example 17,33")
    options = Options(
        prompts=tuple(lines_of(values, "prompts")) if values["prompts"].value else (),
        sizes=tuple(values["size"].value),
        frames=tuple(int(count) for count in frames),
        **{
            name: values[name].value
            for name in ("data", "samples", "seconds", "seed", "videos", "lpips", "videomae", "clip")
        },
    )
    beside = checkpoints[0] if values["checkpoint"].value else pathlib.Path()
    out = pathlib.Path(values["out"].value or beside / "evaluation")
    suites = [name.strip() for name in values["suite"].value]
    evaluate(checkpoints, out, suites=suites, options=options, mesh=mesh_of(values), console=console)
    console.print(f"report: {out / 'index.html'}", highlight=False)


# Beside its address: the flags of a chat model.
CHAT = ("model", "key_variable", "budget", "parallel", "retries", "rate", "timeout")


def define_chat(values, flag: str, text: str):
    """The flags of a chat model; `flag` names its address."""
    for name, default, meaning in (
        (flag, None, text),
        ("model", None, "The model's name there."),
        ("key_variable", "OPENAI_API_KEY", "The environment variable that holds the key, if one is needed."),
        ("budget", None, "The most that this run may ask for, e.g. 500requests or 2000000tokens."),
    ):
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    for name, default, least, meaning in (
        ("parallel", 4, 1, "Requests on their way at a time."),
        ("retries", 5, 0, "Further tries of a request that failed for a reason that may pass."),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=least, flag_values=values)
    flags.DEFINE_float("rate", 0.0, "Requests a minute at most; 0: any number.", 0.0, flag_values=values)
    flags.DEFINE_float("timeout", 120.0, "Seconds without a byte of an answer.", 0.1, flag_values=values)


def chat_of(values, flag: str):
    """The chat model that the flags name; None for the rules of the shapes world."""
    from sora_jax.captioning.chat import Budget, Chat, Endpoint

    url, budget = values[flag].value, values["budget"].value
    if url == "shapes":
        return None
    endpoint = Endpoint(
        url,
        needed(values, "model", "Qwen3-VL-8B-Instruct"),
        key=os.environ.get(values["key_variable"].value, "").strip(),
        flag=flag,
        **{name: values[name].value for name in ("timeout", "retries", "rate")},
    )
    return Chat(endpoint, Budget.read(budget) if budget else None)


def define_caption(values):
    for name, default, text in (
        ("videos", None, "Folder of videos to describe."),
        ("prompts", None, "Instead of videos: a file with a prompt on each line, to be written out."),
        ("out", None, "A .jsonl for `prepare --captions`; of prompts a text file for `sample --prompts`."),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, default, least, text in (
        ("frames", 8, 1, "Of each video, that the model is shown at most."),
        ("side", 512, 16, "Of each frame, the longer one in pixels at most."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    define_chat(values, "endpoint", "Address of an OpenAI-compatible API, up to /v1; for prompts also: shapes.")


def run_caption(values, console):
    from sora_jax.captioning.caption import caption, expand_file

    if bool(values["videos"].value) == bool(values["prompts"].value):
        raise InputError("--videos, a folder to describe, or --prompts, a file to write out: give one of them")
    out, parallel = pathlib.Path(needed(values, "out", "captions.jsonl")), values["parallel"].value
    needed(values, "endpoint", "http://localhost:8000/v1")
    chat = chat_of(values, "endpoint")
    if values["prompts"].value:
        expand_file(lines_of(values, "prompts"), out, chat, parallel=parallel, console=console)
    elif chat is None:
        raise InputError("--endpoint=shapes: writes out prompts, and sees no videos; name the address of a model")
    else:
        shown = {name: values[name].value for name in ("frames", "side")}
        caption(pathlib.Path(values["videos"].value), out, chat, parallel=parallel, **shown, console=console)


def define_plan(values):
    for name, default, text in (
        (
            "topology",
            None,
            "Chips: v5e:16x16, v6e:16x16, v5p:4x4x4, tpu7x:4x4x4; estimated only: h100:8, h200:64.",
        ),
        ("mesh", None, "Axes of the mesh, e.g. fsdp=16,ulysses=4; default: the config's."),
        ("what", "train", "The step of train, sample, decode or encode."),
        ("out", "plan", "Folder for plan.json and plan.png."),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_integer(
        "slices", 1, "Slices of that topology, joined by the data centre's network.", flag_values=values
    )
    flags.DEFINE_boolean("formulas", False, "Compile nothing: estimate, in seconds.", flag_values=values)
    flags.DEFINE_boolean("search", False, "Try meshes, remat and micro-batches; rank them.", flag_values=values)


def run_plan(values, console):
    # No chip is asked for anything: the compiler for TPU runs on the CPU, and may run in many processes at once.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    from sora_jax.plan.plan import plan
    from sora_jax.plan.topology import read_topology

    settings = settings_of(values)
    if values["mesh"].value:
        settings = dataclasses.replace(settings, mesh=mesh_of(values))
    plan(
        settings,
        read_topology(needed(values, "topology", "v5p:4x4x4"), values["slices"].value),
        what=values["what"].value,
        search=values["search"].value,
        formulas=values["formulas"].value,
        out=pathlib.Path(values["out"].value),
        console=console,
    )


def define_demo(values):
    flags.DEFINE_string("out", "demo", "Folder for all that the demo makes.", flag_values=values)


def run_demo(values, console):
    import jax

    from sora_jax.worlds.shapes.demo import demo

    # Models this small leave a core idle: two CPU devices, each with half a batch, take two thirds of the time.
    jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
    demo(pathlib.Path(values["out"].value), console=console)
