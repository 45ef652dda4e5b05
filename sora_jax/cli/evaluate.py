"""The command `evaluate`."""

import dataclasses
import re
import shlex

from sora_jax.cli.flags import CHECKPOINT, MESH, NO_COMPILE_CACHE, Command, Flag, mesh_of
from sora_jax.cli.prompt_files import read_lines
from sora_jax.cli.serve import check_packages
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path


def run(values, console):
    from sora_jax.api import runs
    from sora_jax.evaluate.verdict.decisions import Wanted
    from sora_jax.evaluate.verdict.formats import parse_formats

    check_combination(values)
    checkpoints, subjects = list(values.checkpoint or ()), list(values.subject or ())
    out = runs.report_folder(checkpoints, subjects, values.out)
    wanted = Wanted(
        parse_formats(values.format, out),
        tuple(values.require or ()),
        values.lower_end,
        values.baseline,
        values.best,
        _command(values),
    )
    options = {
        "prompts": tuple(read_lines(values, "prompts", console)) if values.prompts else (),
        "sizes": tuple(values.size),
        "frames": _lengths(values.frames),
        "dimensions": tuple(name.strip() for name in values.dimensions),
        **{key: values[key].value for key in ("data", "samples", "seconds", "seed", "videos")},
        **{key: values[key].value for key in ("lpips", "videomae", "clip", "vbench")},
    }
    if values.vote:
        return _vote(values, out, options, console)
    arguments = {"suite": [name.strip() for name in values.suite], "mesh": mesh_of(values), "console": console}
    if values.watch:
        _watch(values, out, wanted, arguments | options)
    else:
        runs.evaluate(checkpoints, out, subjects=subjects, step=values.step, wanted=wanted, **arguments, **options)
    console.print(f"report: {out / 'index.html'}", highlight=False)


def check_combination(values):
    """Raise InputError for a flag that is given and that the others leave without a use."""
    given = {flag.key for flag in COMMAND.all_flags if values[flag.key].present}
    needs = {"lower_end": "require", "keep_best": "watch", "host": "vote", "port": "vote"}
    for key, needed in needs.items():
        if key in given and needed not in given:
            raise InputError(f"--{key.replace('_', '-')}: is for --{needed} alone; add that, or leave it out")
    decides = {flag.key for flag in COMMAND.flags["Decisions"]}
    unused = given & (decides | {"suite", "format", "lpips", "videomae", "clip", "vbench", "dimensions", "videos"})
    if values.vote and unused:
        raise InputError(f"--{min(unused).replace('_', '-')}: --vote measures nothing and does not use it")


def _vote(values, out, options, console):
    check_packages("--vote")
    from sora_jax.evaluate.benchmark import Options
    from sora_jax.evaluate.subjects import open_subjects
    from sora_jax.evaluate.vote_videos import videos_to_vote_on
    from sora_jax.serve.vote import make_pairs, serve_votes

    subjects = open_subjects(values.checkpoint or (), values.subject or (), values.step, out)
    if len(subjects) < 2:
        raise InputError("--vote: needs two checkpoints or more; give --checkpoint again")
    videos = videos_to_vote_on(subjects, options=Options(**options), mesh=mesh_of(values), console=console)
    serve_votes(make_pairs(videos), out, address=(values.host, values.port), console=console)


def _watch(values, out, wanted, arguments):
    """Evaluate the checkpoints of a run as they come, and judge the last one."""
    from sora_jax.api import runs
    from sora_jax.evaluate.evaluate import judge
    from sora_jax.evaluate.watch import watch

    every = re.fullmatch(r"every:([1-9]\d*)", values.step or "every:1")
    if len(values.checkpoint or ()) != 1 or values.subject:
        raise InputError("--watch: needs one --checkpoint, the --workdir of a training run, and no --subject")
    if not every:
        raise InputError(f"--step={values.step}: with --watch write every:N")

    def measure(subjects):
        return runs.measure(subjects, out, wanted=dataclasses.replace(wanted, judge=False), **arguments)

    workdir = as_path(values.checkpoint[0])
    console = arguments["console"]
    summary = watch(workdir, out, measure, every=int(every[1]), keep_best=values.keep_best, console=console)
    last = summary["checkpoints"][-1]
    checks = [check for check in summary.get("checks", ()) if check["subject"] == last.get("name")]
    found = {suite: {last["name"]: values} for suite, values in last.items() if isinstance(values, dict)}
    judge(found, {"checks": checks}, out, wanted)


def _command(values) -> str:
    """The command line with the flags that were given."""
    given = [flag for flag in COMMAND.all_flags if values[flag.key].present]
    words = []
    for flag in given:
        value = values[flag.key].value
        several = value if isinstance(value, list) and flag.repeated else [value]
        for one in several:
            text = ",".join(one) if isinstance(one, list) else str(one)
            words.append(f"--{flag.name}={shlex.quote(text)}")
    return " ".join(["sora-jax evaluate", *words])


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
                "subject",
                'Checkpoint with settings of its own, "PATH --steps=6,12 --solver=unipc --step=5000 --name=fast"; '
                "several values are several subjects; or a folder of videos that others made, "
                '"PATH --prompts=FILE"; again: another.',
                repeated=True,
            ),
            Flag(
                "step",
                "Steps of each run to evaluate: a number, all, or every:N; default: the newest.",
                default="",
            ),
            Flag(
                "suite",
                "Benchmarks to run: loss, shapes, tasks, long, emoji, temporal, fvd, clip and vbench for "
                "transformers, reconstruction for autoencoders; default: loss or reconstruction, "
                "shapes for the shipped model.",
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
            Flag(
                "format",
                "Further forms of the report: markdown, csv, junit, each with :FILE, or :- for standard output.",
                commas=True,
            ),
        ),
        "Decisions": (
            Flag(
                "require",
                'What every subject must reach, for example "shapes.all >= 0.97"; again: another.',
                repeated=True,
            ),
            Flag("lower-end", "Hold the interval's nearer end to --require, not the value.", bool, False),
            Flag(
                "baseline",
                "Earlier evaluation.json that no subject may be worse than, as far as samples tell.",
                default="",
            ),
            Flag(
                "watch",
                "Evaluate each checkpoint of a run that is being trained as it is saved, and end with the run.",
                bool,
                False,
            ),
            Flag("keep-best", "With --watch, keep the best checkpoint from pruning.", bool, False),
            Flag(
                "best",
                "Measure by which the best subject is marked; default: the first suite's overall one.",
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
    "code is 3 if a model does not do what its prompts say, or does not meet --require or --baseline.",
    examples=(
        "--checkpoint=runs/first",
        "--checkpoint=runs/first --checkpoint=runs/second --suite=loss,shapes --out=comparison",
        "--checkpoint=runs/first --checkpoint=runs/second --vote --out=comparison",
        "--subject='runs/first --steps=6,12,24' --suite=shapes --out=sweep",
    ),
    joins=True,
)
