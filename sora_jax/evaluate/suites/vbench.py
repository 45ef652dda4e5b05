"""The benchmark `vbench`: samples for VBench, named as its own tool reads them.

Source: Huang et al. 2023 (arXiv 2311.17982); prompts/README.md of its repository.
"""

import pathlib
from collections.abc import Mapping

from sora_jax.core.errors import InputError
from sora_jax.evaluate.benchmark import Benchmark, Options
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.samples import cells, make_missing
from sora_jax.report.page import Section, Table

SAMPLES = 5  # of each prompt; VBench's dimension temporal_flickering needs 25
MAX_NAME = 255  # bytes of a file name


def names_of(prompts, count: int) -> list[tuple[str, str]]:
    """(prompt, file name) of each sample, PROMPT-INDEX.mp4; repeated prompts count once.

    Raises: InputError for a prompt that can't be a file name.
    """
    for number, prompt in enumerate(prompts, 1):
        if "/" in prompt or len(f"{prompt}-{count}.mp4".encode()) > MAX_NAME:
            raise InputError(f"--prompts: {prompt[:60]!r} (number {number}) can't be a file name, as VBench needs")
    return [(prompt, f"{prompt}-{n}.mp4") for prompt in dict.fromkeys(prompts) for n in range(count)]


def _check(checkpoint: CheckpointUnderTest, options: Options):
    if not options.prompts:
        raise InputError("--suite=vbench: --prompts is missing, VBench's own file, prompts/all_dimension.txt")
    names_of(options.prompts, options.samples or SAMPLES)
    if len(cells(checkpoint, options)) > 1:
        raise InputError("--suite=vbench: takes one size and one length; see --size and --frames")


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    (cell,) = cells(checkpoint, options)
    named = names_of(options.prompts, options.samples or SAMPLES)
    folder = checkpoint.out / f"vbench-{checkpoint.content_hash}-{cell.size}-{cell.frames}-{options.seed}"
    make_missing(
        checkpoint, options, [prompt for prompt, _ in named], [folder / name for _, name in named], cell, console
    )
    return {"folder": str(folder), "prompts": len(set(options.prompts)), "videos": len(named)}


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    rows = [
        (name, v["prompts"], v["videos"], f"vbench evaluate --videos_path {v['folder']}")
        for name, v in results.items()
    ]
    note = "Samples for VBench's own tool; add its --dimension."
    return [Section("VBench", note, [Table(("checkpoint", "prompts", "videos", "command"), rows)])]


VBENCH = Benchmark(("flow",), ("samples", "prompts", "sizes", "frames", "seed"), _measure, _show, _check)
