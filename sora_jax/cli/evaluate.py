"""The command `evaluate`."""

import importlib.util
import pathlib

from sora_jax.cli.flags import CHECKPOINT, MESH, NO_COMPILE_CACHE, Command, Flag, mesh_of
from sora_jax.cli.prompt_files import read_lines
from sora_jax.core.errors import InputError


def run(values, console):
    from sora_jax.evaluate.benchmark import Options
    from sora_jax.evaluate.evaluate import evaluate
    from sora_jax.evaluate.suites.registry import BENCHMARKS
    from sora_jax.worlds.emoji.suite import BENCHMARKS as EMOJI_BENCHMARKS
    from sora_jax.worlds.shapes import SHIPPED_MODEL
    from sora_jax.worlds.shapes.benchmarks import BENCHMARKS as SHAPES_BENCHMARKS

    checkpoints = [pathlib.Path(path) for path in values.checkpoint or [SHIPPED_MODEL]]
    if len(checkpoints) > 1 and not values.out:
        raise InputError(f"--out is missing: name a folder for the report on {len(checkpoints)} checkpoints")
    beside = checkpoints[0] if values.checkpoint else pathlib.Path()
    out = pathlib.Path(values.out or beside / "evaluation")
    options = Options(
        prompts=tuple(read_lines(values, "prompts", console)) if values.prompts else (),
        sizes=tuple(values.size),
        frames=_lengths(values.frames),
        **{key: values[key].value for key in ("data", "samples", "seconds", "seed", "videos")},
        **{key: values[key].value for key in ("lpips", "videomae", "clip", "vbench")},
        dimensions=tuple(name.strip() for name in values.dimensions),
    )
    if values.vote:
        return _vote(checkpoints, out, options, values, console)
    evaluate(
        checkpoints,
        out,
        benchmarks=BENCHMARKS | SHAPES_BENCHMARKS | EMOJI_BENCHMARKS,
        suite=[name.strip() for name in values.suite],
        options=options,
        mesh=mesh_of(values),
        console=console,
    )
    console.print(f"report: {out / 'index.html'}", highlight=False)


def _vote(checkpoints, out, options, values, console):
    if not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))):
        raise InputError("--vote needs a web server: pip install 'sora_jax[serve]'")
    from sora_jax.evaluate.evaluate import videos_to_vote_on
    from sora_jax.serve.vote import make_pairs, serve_votes

    if len(checkpoints) < 2:
        raise InputError("--vote: needs two checkpoints or more; give --checkpoint again")
    videos = videos_to_vote_on(checkpoints, out, options=options, mesh=mesh_of(values), console=console)
    serve_votes(make_pairs(videos), out, address=(values.host, values.port), console=console)


def _lengths(counts: list[str]) -> tuple[int, ...]:
    if not all(count.strip().isdecimal() for count in counts):
        raise InputError(f"--frames={','.join(counts)}: whole numbers are needed, for example 17,33")
    return tuple(int(count) for count in counts)


COMMAND = Command(
    "trained models -> numbers, tables and a report",
    {
        "Input": (
            Flag(
                "checkpoint",
                f"{CHECKPOINT.meaning.removesuffix('.')}; given again: another one, compared side by side.",
                repeated=True,
            ),
            Flag(
                "suite",
                "Benchmarks to run: loss, shapes, tasks, long, emoji, temporal, fvd, clip and vbench for "
                "transformers, reconstruction for autoencoders; default: loss or reconstruction.",
                commas=True,
            ),
            Flag("data", "Prepared data set; default: the one that the checkpoint was trained on.", default=""),
        ),
        "Output": (
            Flag(
                "out",
                "Folder for the report, required for several checkpoints; default: evaluation in the workdir.",
                default="",
            ),
        ),
        "Samples": (
            Flag("samples", "Samples per size and length; 0: the benchmark's own number.", int, 0, min=0),
            Flag("size", "Sizes of the samples, WIDTHxHEIGHT, separated by commas.", commas=True),
            Flag("frames", "Lengths of the samples, separated by commas.", commas=True),
            Flag("seconds", "Length of the videos of --suite=long.", float, 60.0),
            Flag("seed", "Seed of the samples.", int, 0),
            Flag(
                "prompts",
                "File with a prompt on each line; default: the captions of the held-out clips.",
                default="",
            ),
            Flag(
                "videos",
                "Folder of real videos to compare with; default: the held-out clips; for --suite=emoji, "
                "data/emoji/animations.",
                default="",
            ),
        ),
        "Weights of metrics": (
            Flag("lpips", "LPIPS for reconstruction, a .safetensors.", default=""),
            Flag("videomae", "Folder of a VideoMAE encoder, for fvd.", default=""),
            Flag("clip", "Folder of a CLIPModel in transformers' layout, for clip.", default=""),
            Flag("vbench", "Folder of VBench's networks, each in a folder of its own, for vbench.", default=""),
            Flag(
                "dimensions",
                "Dimensions of VBench to measure, separated by commas; default: all whose weights are there.",
                commas=True,
            ),
        ),
        "Votes": (
            Flag(
                "vote",
                "Instead of benchmarks: a page on which people choose between two checkpoints' videos.",
                bool,
                False,
            ),
            Flag("host", "Address of the page; the default is seen by this machine only.", default="127.0.0.1"),
            Flag("port", "Port of the page.", int, 7861, min=1, max=65535),
        ),
        "Hardware": (MESH, NO_COMPILE_CACHE),
    },
    run,
    about="Benchmarks that an earlier run measured on the same checkpoint and options are not run again. The exit "
    "code is 2 if a model does not do what its prompts say.",
    examples=(
        "--checkpoint=runs/first",
        "--checkpoint=runs/first --checkpoint=runs/second --suite=loss,shapes --out=comparison",
        "--checkpoint=runs/first --checkpoint=runs/second --vote --out=comparison",
    ),
    joins=True,
)
