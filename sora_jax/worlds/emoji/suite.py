"""The benchmark `emoji`: whether videos show the emoji, skin tone and background of their prompts, and move so.

Prompts of emoji that were held out of training (one skin tone of each person and gesture) are told apart from
prompts of emoji that were learned from. The measures are those of `detector.Gallery.measure`.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.core.errors import InputError
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import as_path
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, read_video, terminal_table
from sora_jax.evaluate.checkpoint_under_test import CheckpointUnderTest
from sora_jax.evaluate.samples import cells, make_samples
from sora_jax.evaluate.verdict.statistics import wilson
from sora_jax.report.figures import draw_contact_sheet
from sora_jax.report.page import Picture, Section, Table
from sora_jax.worlds.emoji import ANIMATIONS, DATA
from sora_jax.worlds.emoji.animations import LOOP, SIZE, over_colour
from sora_jax.worlds.emoji.captions import BACKGROUNDS, plain_caption
from sora_jax.worlds.emoji.detector import Gallery
from sora_jax.worlds.emoji.subjects import Emoji, all_emoji
from sora_jax.worlds.shapes.prompt_suite import FAULT_Z, MIN_SAMPLES, interval_text, percent

SAMPLES = 275  # of each group: every emoji that is held out
GROUPS = ("held out", "seen")
SHARES = ("identity", "tone", "background", "smooth")
MEANS = ("motion", "seam")
# Shares that a model reaches which ignores its prompts.
CHANCE = {"identity": 1 / len(all_emoji()), "tone": 1 / 5, "background": 1 / len(BACKGROUNDS)}
SHEET = 24  # samples on the contact sheet of a group


def make_prompts(count: int) -> list[tuple[str, Emoji, str]]:
    """(group, emoji, background) of `count` prompts of each group, the same ones whatever the count."""
    made = []
    for group in GROUPS:
        chosen = [emoji for emoji in all_emoji().values() if emoji.held_out == (group == "held out")]
        chosen.sort(key=lambda emoji: _hash(emoji.code))
        names = list(BACKGROUNDS)
        made += [(group, e, names[_hash(f"{e.code} asked") % len(names)]) for e in chosen[:count]]
    return made


def _hash(text):
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def summarize(found: Sequence[Mapping]) -> dict:
    """{"share", "low", "high", "right", "of"} of each yes-or-no measure, the mean of each other one."""
    values: dict = {}
    for name in SHARES:
        there = [f[name] for f in found if f[name] is not None]
        if there:
            share = sum(there) / len(there)
            low, high = wilson(share, len(there))
            values[name] = {"share": share, "low": low, "high": high, "right": sum(there), "of": len(there)}
    return values | {name: float(np.mean([f[name] for f in found])) for name in MEANS if found}


def find_faults(by_group: Mapping[str, Mapping]) -> list[str]:
    """The measures in which a group of MIN_SAMPLES samples or more is no better than chance."""
    return [
        f"emoji, {group}: {name} is no better than chance"
        for group, values in by_group.items()
        for name, chance in CHANCE.items()
        if (v := values.get(name)) and v["of"] >= MIN_SAMPLES and wilson(v["share"], v["of"], FAULT_Z)[0] <= chance
    ]


def _gallery_folder(options: Options) -> pathlib.Path:
    return as_path(options.videos or DATA / ANIMATIONS)


def _check(checkpoint: CheckpointUnderTest, options: Options):
    folder = _gallery_folder(options)
    if not folder.is_dir():
        raise InputError(
            f"--suite=emoji: {folder}: no such folder of true animations; make it with `sora-jax data emoji`, or "
            f"name another with --videos"
        )
    for cell in cells(checkpoint, options):
        if cell.size != f"{SIZE}x{SIZE}" or cell.frames < LOOP:
            raise InputError(
                f"--suite=emoji: videos of {cell.size} and {cell.frames} frames; {SIZE}x{SIZE} and {LOOP + 1} are "
                f"compared with the true ones"
            )


def _measure(checkpoint: CheckpointUnderTest, options: Options, console) -> dict:
    asked = make_prompts(options.samples or SAMPLES)
    cell, values = cells(checkpoint, options)[0], {}
    prompts = [plain_caption(emoji, background) for _, emoji, background in asked]
    paths = make_samples(checkpoint, options, prompts, cell, console)

    def read_all():
        gallery = Gallery(_gallery_folder(options))
        samples = []
        with progress_bar(console) as bar:
            task = bar.add_task(f"{checkpoint.name}: reading", total=len(paths), numbers="")
            # Samples of one background after the other: the gallery is composed once for each.
            for n in sorted(range(len(paths)), key=lambda n: asked[n][2]):
                group, emoji, background = asked[n]
                found = gallery.measure(emoji.code, background, read_video(paths[n]))
                where = {"group": group, "code": emoji.code, "prompt": prompts[n], "number": n}
                samples.append(where | {"video": str(paths[n].relative_to(checkpoint.out)), "found": found})
                bar.advance(task)
        samples.sort(key=lambda sample: sample["number"])
        values["samples"] = samples
        values["by_group"] = {
            group: summarize([s["found"] for s in samples if s["group"] == group]) for group in GROUPS
        }
        values["faults"] = find_faults(values["by_group"])
        for group in GROUPS:
            _draw(checkpoint.out, gallery, group, [s for s in samples if s["group"] == group])

    run_on_first_host(read_all)
    for fault in values.get("faults", ()):
        console.print(f"FAULT {checkpoint.name}: {fault}", style="bold red")
    if values:
        console.print(terminal_table(*_table({checkpoint.name: values})))
    return values


def _sheet(group):
    return f"emoji-{group.replace(' ', '-')}.png"


def _draw(out, gallery, group, samples):
    """A contact sheet: each sample above the true clip, with its prompt and mistakes."""
    chosen = samples[:SHEET]
    videos, titles = [], []
    for sample in chosen:
        video = read_video(out / sample["video"])[:LOOP]
        background = sample["prompt"].split()[-2]
        truth = over_colour(gallery.loop(sample["code"]), BACKGROUNDS[background])
        videos.append(np.concatenate([video, truth], axis=1))
        titles.append(f"{_verdict(sample['found'])} {sample['prompt']}")
    draw_contact_sheet(out / _sheet(group), videos, titles, columns=3, frames=6)


def _verdict(found):
    wrong = [name for name in ("identity", "tone", "background") if found[name] is False]
    if "identity" in wrong:
        wrong[0] = f"shows {all_emoji()[found['nearest']].name}"
    return f"✗ {', '.join(wrong)}:" if wrong else "✓"


def _table(results):
    header = ("measure", *(f"{name}, {group}" for name in results for group in GROUPS))

    def said(value):
        return interval_text(value) if isinstance(value, dict) else f"{value:.2f}" if value is not None else None

    rows = [
        (measure, *(said(v["by_group"][group].get(measure)) for v in results.values() for group in GROUPS))
        for measure in (*SHARES, *MEANS)
    ]
    return header, rows


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    note = "Identity: the true emoji is the nearest of all animated ones. Tone: the nearest of the five tones. "
    note += "Smooth: the loop's seam changes no more than some other pair of frames. Motion: correlation of frame "
    note += "differences with the true ones. Seam: its change over the mean of the others. In brackets: the 95 % "
    note += "interval."
    faults = [f"FAULT: {name}: {fault}." for name, values in results.items() for fault in values["faults"]]
    note = " ".join((*faults, note))
    sections = [Section("Emoji: agreement with the prompts", note, [Table(*_table(results))])]
    for name, values in results.items():
        for group in GROUPS:
            right = values["by_group"][group]["identity"]
            sheet = Picture(folders[name] / _sheet(group), "Each sample above the true clip.")
            text = f"{right['right']} of {right['of']} are recognised ({percent(right['share'])})."
            sections.append(Section(f"Emoji {group}, by {name}", text, [sheet]))
    return sections


def _samples(values: dict) -> list[Sample]:
    made = []
    for one in values.get("samples", ()):
        found = {f"{name}, {one['group']}": one["found"][name] for name in (*SHARES, *MEANS)}
        known = {name: value for name, value in found.items() if value is not None}
        about = {"video": one["video"], "prompt": one["prompt"], "note": _verdict(one["found"]).rstrip(":")}
        made.append(Sample(f"{one['prompt']} #0", known, **about))
    return made


EMOJI = Benchmark(
    ("flow",),
    ("samples", "videos", "seed"),
    _measure,
    _show,
    _check,
    samples=_samples,
    better={f"{name}, {group}": "higher" for name in (*SHARES, "motion") for group in GROUPS},
)
BENCHMARKS = {"emoji": EMOJI}
