"""The benchmark `shapes`: whether videos of held-out prompts show what the prompts say, read from the pixels.

The control is the agreement of the same videos with each other's prompts. A model that ignores its prompts is no
better than the control.
"""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.evaluate.benchmark import Benchmark, Options, read_video, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.samples import cells, make_samples, size_of
from sora_jax.generate.output.writer import write_webp
from sora_jax.report.figures import draw_contact_sheet, draw_shares
from sora_jax.report.page import Clip, Gallery, Picture, Section, Table
from sora_jax.worlds.shapes.captions import caption
from sora_jax.worlds.shapes.detector import read_scene
from sora_jax.worlds.shapes.prompts import read_prompt
from sora_jax.worlds.shapes.renderer import Scene, bounces, sample_scene

SAMPLES = 500
SEED = 7  # of the world whose held-out scenes are the prompts
OF_THINGS = ("shape", "colour", "size", "motion", "speed")
ATTRIBUTES = (*OF_THINGS, "background", "count")
ALL = "all together"
SHUFFLES = 20  # of the control, so that its noise is small beside that of the samples
MIN_SAMPLES = 30  # prompts that name an attribute, for it to be judged
FAULT_Z = 3.29  # standard deviations: one in 2,000 ignored attributes passes
SHEET, PLAYED = 24, 8  # samples on the contact sheet, and videos on the page


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a share, `right` out of `count`; z = 1.96 gives 95 %.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not count:
        return 0.0, 1.0
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def make_prompts(count: int, *, size: tuple[int, int], frames: int, fps: float) -> list[str]:
    """Plain captions of held-out scenes."""
    prompts = []
    for index in range(count):
        scene = sample_scene(SEED, index, held_out=True)
        bounced = bounces(scene, frames=frames, size=size, fps=fps)
        prompts.append(caption(scene, "plain", moving=frames > 1, bounced=bounced))
    return prompts


def agreement(prompt: str, read: Scene | None) -> dict[str, bool]:
    """For each attribute that a prompt names, whether a video shows it; with two things, whether both do.

    Args:
      read: the scene that the detector reads; None agrees with nothing.
    """
    things, background = read_prompt(prompt)
    fields = [field for field in OF_THINGS if any(field in thing for thing in things)]
    asked = {**dict.fromkeys(fields, False), "count": False}
    if background:
        asked["background"] = read is not None and read.background == background
    if read is None or len(read.things) != len(things):
        return asked
    best = dict.fromkeys(fields, False)
    for order in itertools.permutations(read.things):
        pairs = list(zip(things, order, strict=True))
        found = {field: all(getattr(b, field) == a[field] for a, b in pairs if field in a) for field in fields}
        best = max(best, found, key=lambda f: sum(f.values()))
    return asked | best | {"count": True}


def shares(found: Sequence[Mapping[str, bool]]) -> dict[str, dict]:
    """{"share", "low", "high", "right", "of"} of each attribute, and of all attributes of a prompt together."""
    made = {}
    for name in (*ATTRIBUTES, ALL):
        asked = [all(f.values()) if name == ALL else f[name] for f in found if name == ALL or name in f]
        if asked:
            low, high = wilson(sum(asked), len(asked))
            made[name] = {
                "share": sum(asked) / len(asked),
                "low": low,
                "high": high,
                "right": sum(asked),
                "of": len(asked),
            }
    return made


def control(prompts: Sequence[str], reads: Sequence[Scene | None]) -> dict[str, float]:
    """Share of each attribute in which videos agree with each other's prompts: chance level for this model."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(SHUFFLES if len(prompts) > 1 else 0):
        # A cycle in random order: no video gets its own prompt.
        order = draw.permutation(len(prompts))
        found += [agreement(prompts[a], reads[b]) for a, b in zip(order, np.roll(order, 1), strict=True)]
    return {name: value["share"] for name, value in shares(found).items()}


def summarize(prompts: Sequence[str], reads: Sequence[Scene | None]) -> dict:
    """Shares of each attribute, the control, and faults.

    An attribute is at fault if MIN_SAMPLES prompts or more name it and its interval reaches down to the control.
    """
    found = [agreement(prompt, read) for prompt, read in zip(prompts, reads, strict=True)]
    values, chance = shares(found), control(prompts, reads)
    judged = [name for name in values if name in chance and values[name]["of"] >= MIN_SAMPLES]
    low = {name: wilson(values[name]["right"], values[name]["of"], FAULT_Z)[0] for name in judged}
    ignored = [name for name in judged if low[name] <= chance[name]]
    none = sum(read is None for read in reads)
    faults = []
    if none > len(reads) / 2:
        faults.append(f"shapes: {none} of {len(reads)} samples show no scene")
    if ignored:
        faults.append(f"shapes: no better than with shuffled prompts: {', '.join(ignored)}")
    return {"adherence": values, "shuffled": chance, "no_scene": none, "faults": faults}


def _check(checkpoint: CheckpointUnderTest, options: Options):
    cells(checkpoint, options)


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    rows: list[dict] = []
    for cell in cells(checkpoint, options):
        H, W = size_of(cell)
        prompts = make_prompts(options.samples or SAMPLES, size=(H, W), frames=cell.frames, fps=cell.fps)
        paths = make_samples(checkpoint, options, prompts, cell, console)
        where = {"size": f"{W}x{H}", "aspect": aspect(H, W), "frames": cell.frames, "fps": cell.fps}
        rows += [
            {"prompt": p, "video": str(f.relative_to(checkpoint.out)), **where}
            for p, f in zip(prompts, paths, strict=True)
        ]
    values: dict = {}

    def read_all():
        reads = [read_scene(read_video(checkpoint.out / row["video"]), fps=row["fps"]) for row in rows]
        values.update(summarize([row["prompt"] for row in rows], reads))
        for key in ("size", "aspect", "frames"):
            values[f"by_{key}"] = {
                str(group): shares(
                    [agreement(r["prompt"], s) for r, s in zip(rows, reads, strict=True) if r[key] == group]
                )
                for group in dict.fromkeys(row[key] for row in rows)
            }
        values["samples"] = [
            row | {"found": agreement(row["prompt"], s)} for row, s in zip(rows, reads, strict=True)
        ]
        _draw(checkpoint.out, values["samples"])

    run_on_first_host(read_all)
    for fault in values.get("faults", ()):
        console.print(f"FAULT {checkpoint.name}: {fault}", style="bold red")
    if values:
        console.print(terminal_table(("attribute", checkpoint.name, "prompts shuffled"), list(_rows(values))))
    return values


def aspect(H: int, W: int) -> str:
    """Aspect ratio: 96x64 is 3:2."""
    divisor = math.gcd(H, W)
    return f"{W // divisor}:{H // divisor}"


def _rows(values):
    for name, v in values["adherence"].items():
        yield name, interval_text(v), percent(values["shuffled"].get(name))


def interval_text(value: Mapping | None) -> str | None:
    if value is None:
        return None
    return f"{percent(value['share'])} ({percent(value['low'])} to {percent(value['high'])})"


def percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _draw(out: pathlib.Path, samples):
    """Draw a contact sheet with prompts and mistakes, and write previews of the videos on the page."""
    chosen = [
        samples[n] for n in np.unique(np.linspace(0, len(samples) - 1, min(SHEET, len(samples))).astype(int))
    ]
    videos = [read_video(out / sample["video"]) for sample in chosen]
    draw_contact_sheet(out / "shapes.png", videos, [f"{verdict(s)} {s['prompt']}" for s in chosen], columns=3)
    for sample, video in zip(chosen[:PLAYED], videos, strict=False):
        scale = max(1, 192 // max(video.shape[1:3]))
        large = video.repeat(scale, axis=1).repeat(scale, axis=2)
        sample["preview"] = str(pathlib.Path(sample["video"]).with_suffix(".webp"))
        write_webp(out / sample["preview"], large, sample["fps"], metadata={"prompt": sample["prompt"]})


def verdict(sample: Mapping) -> str:
    wrong = [name for name, right in sample["found"].items() if not right]
    return f"✗ {', '.join(wrong) if len(wrong) < len(sample['found']) else 'everything'}:" if wrong else "✓"


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    names = list(results)
    picture = folders[names[0]].parent / "shapes.png"
    draw_shares(
        picture, {n: v["adherence"] for n, v in results.items()}, {n: v["shuffled"] for n, v in results.items()}
    )
    header = ("attribute", *itertools.chain.from_iterable((name, "prompts shuffled") for name in names))
    rows = [
        (
            a,
            *itertools.chain.from_iterable(
                (interval_text(v["adherence"].get(a)), percent(v["shuffled"].get(a))) for v in results.values()
            ),
        )
        for a in (*ATTRIBUTES, ALL)
    ]
    note = "Prompts of combinations held out of training, one sample each, read by rules. In brackets: the 95 % "
    note += "interval. Prompts shuffled: the same videos against the prompts of others."
    faults = [f"{name}: {fault}" for name, values in results.items() for fault in values["faults"]]
    parts: list[Table | Picture] = [
        Picture(picture, "Share of the samples that show what their prompt says."),
        Table(header, rows),
    ]
    for key, title in (("by_size", "size"), ("by_aspect", "aspect"), ("by_frames", "frames")):
        if any(len(values[key]) > 1 for values in results.values()):
            groups = dict.fromkeys(group for values in results.values() for group in values[key])
            cells_ = [
                (f"{g}", *(interval_text(v[key].get(g, {}).get(ALL)) for v in results.values())) for g in groups
            ]
            parts.append(Table((title, *names), cells_, "All of a prompt together"))
    sections = [
        Section("Shapes: agreement with the prompts", " ".join([*(f"FAULT: {f}." for f in faults), note]), parts)
    ]
    for name, values in results.items():
        played = [
            Clip(folders[name] / s["video"], folders[name] / s["preview"], s["prompt"], verdict(s))
            for s in values["samples"]
            if "preview" in s
        ]
        sheet = Picture(folders[name] / "shapes.png", "First to last frame of samples, spread over all of them.")
        note = f"{len(values['samples'])} samples; {values['no_scene']} of them show no scene."
        sections.append(Section(f"Shapes by {name}", note, [Gallery(played), sheet]))
    return sections


SHAPES = Benchmark(("flow",), ("samples", "sizes", "frames", "seed"), _measure, _show, _check)
