"""The benchmark `shapes`: whether videos of held-out prompts show what the prompts say, read from the pixels.

The control is the agreement of the same videos with each other's prompts. A model that ignores its prompts is no
better than the control.
"""

import itertools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, Subject, read_video, terminal_table
from sora_jax.evaluate.samples import cells, digest, size_of, video_sets, write_preview
from sora_jax.evaluate.verdict.statistics import wilson
from sora_jax.evaluate.videos_under_test import VideosUnderTest
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
FEW = 5  # samples, for all attributes together to be judged
FEW_P = 0.001  # share of models that hear nothing and pass that judgement
PERMUTATIONS = 5000
FAULT_Z = 3.29  # standard deviations: one in 2,000 ignored attributes passes
SHEET, PLAYED = 24, 8  # samples on the contact sheet, and videos on the page


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
            low, high = wilson(sum(asked) / len(asked), len(asked))
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
    Fewer samples are judged over all attributes together.
    """
    found = [agreement(prompt, read) for prompt, read in zip(prompts, reads, strict=True)]
    values, chance = shares(found), control(prompts, reads)
    judged = [name for name in values if name in chance and values[name]["of"] >= MIN_SAMPLES]
    low = {name: wilson(values[name]["share"], values[name]["of"], FAULT_Z)[0] for name in judged}
    ignored = [name for name in judged if low[name] <= chance[name]]
    none = sum(read is None for read in reads)
    faults = []
    if none > len(reads) / 2:
        faults.append(f"shapes: {none} of {len(reads)} samples show no scene")
    if ignored:
        faults.append(f"shapes: no better than with shuffled prompts: {', '.join(ignored)}")
    notes = []
    if len(reads) < MIN_SAMPLES and (words := unheard(prompts, reads)):
        (faults if len(reads) >= FEW else notes).append(words)
    return {"adherence": values, "shuffled": chance, "no_scene": none, "faults": faults, "notes": notes}


def unheard(prompts: Sequence[str], reads: Sequence[Scene | None]) -> str:
    """Why a few samples do not show that their prompts were heard; "" if they do.

    The share of the attributes that agree, over all samples, is compared with that of the same videos and permuted
    prompts.
    """
    count = len(reads)
    if count < FEW:
        return f"shapes: {count} samples are too few to tell whether the prompts are heard"
    shares_ = np.array([[np.mean(list(agreement(prompt, read).values())) for prompt in prompts] for read in reads])
    own, draw = np.trace(shares_) / count, np.random.default_rng(0)
    permuted = [shares_[np.arange(count), draw.permutation(count)].mean() for _ in range(PERMUTATIONS)]
    p = (1 + np.sum(np.array(permuted) >= own - 1e-9)) / (1 + PERMUTATIONS)
    # The few permutations of 5 or 6 samples reach no lower level.
    if p <= max(FEW_P, 4 / math.factorial(count)):
        return ""
    return (
        f"shapes: {count} samples do not show that the prompts are heard: {percent(own)} of what they ask for is "
        f"seen, and {percent(float(np.mean(permuted)))} with the prompts permuted; more --samples may tell"
    )


def _check(checkpoint: Subject, options: Options):
    cells(checkpoint, options)
    if isinstance(checkpoint, VideosUnderTest):
        for prompt in checkpoint.prompts.values():
            read_prompt(prompt)


def _measure(checkpoint: Subject, options: Options, console) -> dict:
    def prompts_of(cell):
        return make_prompts(options.samples or SAMPLES, size=size_of(cell), frames=cell.frames, fps=cell.fps)

    sets = list(video_sets(checkpoint, options, prompts_of, console))
    values: dict = {}

    def read_all():
        rows, reads = [], []
        for videos in sets:
            for key, prompt, path in zip(videos.keys(), videos.prompts, videos.paths, strict=True):
                video = read_video(path)
                F, H, W, _ = video.shape
                reads.append(read_scene(video, fps=videos.fps))
                found = agreement(prompt, reads[-1])
                about = {
                    "key": key,
                    "prompt": prompt,
                    "video": os.path.relpath(path, checkpoint.out),
                }
                where = {"size": f"{W}x{H}", "aspect": aspect(H, W), "frames": F, "fps": videos.fps}
                rows.append(about | where | {"found": found})
        values.update(summarize([row["prompt"] for row in rows], reads))
        for key in ("size", "aspect", "frames"):
            groups = dict.fromkeys(row[key] for row in rows)
            values[f"by_{key}"] = {
                str(group): shares([row["found"] for row in rows if row[key] == group]) for group in groups
            }
        values["samples"] = rows
        values["sheet"] = _draw(checkpoint.out, rows)

    run_on_first_host(read_all)
    for fault in values.get("faults", ()):
        console.print(f"FAULT {checkpoint.name}: {fault}", style="bold red")
    for note in values.get("notes", ()):
        console.print(f"note: {checkpoint.name}: {note}")
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


def _draw(out: pathlib.Path, samples) -> str:
    """Draw a contact sheet with prompts and mistakes, and write previews of the videos on the page.

    Returns: the name of the sheet.
    """
    chosen = [
        samples[n] for n in np.unique(np.linspace(0, len(samples) - 1, min(SHEET, len(samples))).astype(int))
    ]
    videos = [read_video(out / sample["video"]) for sample in chosen]
    sheet = f"shapes-{digest([sample['video'] for sample in samples])}.png"
    titles = [f"{verdict(s)}{': ' if wrong(s) else ' '}{s['prompt']}" for s in chosen]
    draw_contact_sheet(out / sheet, videos, titles, columns=3)
    for sample, video in zip(chosen[:PLAYED], videos, strict=False):
        sample["preview"] = write_preview(out, sample["video"], video, sample["fps"], sample["prompt"])
    return sheet


def wrong(sample: Mapping) -> list[str]:
    return [name for name, right in sample["found"].items() if not right]


def verdict(sample: Mapping) -> str:
    """A tick, or a cross and what is wrong."""
    names = wrong(sample)
    if not names:
        return "✓"
    return "✗ everything" if len(names) == len(sample["found"]) else f"✗ {', '.join(names)}"


def _samples(values: dict) -> list[Sample]:
    return [
        Sample(
            one["key"],
            one["found"] | {ALL: all(one["found"].values())},
            one["prompt"],
            video=one["video"],
            prompt=one["prompt"],
            note=verdict(one),
        )
        for one in values.get("samples", ())
    ]


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
    faults += [f"{name}: {words}" for name, values in results.items() for words in values["notes"]]
    sections = [
        Section("Shapes: agreement with the prompts", " ".join([*(f"FAULT: {f}." for f in faults), note]), parts)
    ]
    for name, values in results.items():
        played = [
            Clip(folders[name] / s["video"], folders[name] / s["preview"], s["prompt"], verdict(s))
            for s in values["samples"]
            if "preview" in s
        ]
        sheet = Picture(
            folders[name] / values["sheet"], "First to last frame of samples, spread over all of them."
        )
        note = f"{len(values['samples'])} samples; {values['no_scene']} of them show no scene."
        sections.append(Section(f"Samples of {name}", note, [Gallery(played), sheet]))
    return sections


SHAPES = Benchmark(
    ("flow", "videos"),
    ("samples", "sizes", "frames", "seed"),
    _measure,
    _show,
    _check,
    samples=_samples,
    better=dict.fromkeys((*ATTRIBUTES, ALL), "higher"),
)
