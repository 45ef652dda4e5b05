"""A plan as tables in the terminal, as plan.json, and as a picture of the memory."""

import dataclasses
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import rich.console
import rich.table

from sora_jax.core.storage import atomic_write
from sora_jax.plan.topology import GIB, INSTALL_CUDA

# Source: MaxDiffusion's README (v5p-8, batch 1); its sum is in docs/notes/chips.md.
PUBLISHED = (
    "cycles leave out waits for memory and for other chips. The same sum for MaxDiffusion's training step of the "
    "14 B model at 720p on 4 v5p chips is 26.4 s; it published 36.0 s"
)
ESTIMATE = "an estimate by roofline, not a measurement"


def show(plan, console: rich.console.Console):
    """Print memory, FLOPs, traffic, collectives and estimated time of a step."""
    topology = plan.topology
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.sizes.items() if size > 1) or "1 device"
    how = f"compiled in {plan.seconds:.0f} s" if plan.compiled else "by formulas alone: an estimate throughout"
    if not topology.compiled:
        how += f"; {INSTALL_CUDA} brings the compiler"
    console.print(f"\n{plan.what} on {topology}: {mesh}; {how}")
    if plan.what in ("train", "sample"):
        model = plan.settings.transformer
        console.print(f"attention {model.attention}, remat {model.remat}", highlight=False)
    table = rich.table.Table("on each device", "", title_justify="left")
    table.columns[1].justify = "right"
    for add_rows in (_add_memory, _add_work, _add_time):
        add_rows(table, plan)
    console.print(table)
    counts = plan.counts
    if counts and counts.collectives:
        console.print(_collectives(counts.collectives))
    if plan.cycles:
        console.print(_cycles(plan))
    if plan.schedule:
        console.print(f"note: {PUBLISHED}", highlight=False)
    for note in counts.unknown if counts else ():
        console.print(f"note: not in these numbers: {note}", highlight=False)


def _add_memory(table, plan):
    for name, size in plan.parts.items():
        table.add_row(name, gib(size))
    verdict = "fits" if plan.fits else f"{plan.over:.1f} GiB too much"
    table.add_row("needed at the peak" + ("" if plan.compiled else " (estimate)"), gib(plan.needed))
    if plan.host:
        table.add_row("in the host's memory", gib(plan.host))
    table.add_row("of HBM", f"{plan.topology.chip.room:.4g} GiB: {verdict}", end_section=True)


def _add_work(table, plan):
    """FLOPs, HBM traffic and cycles."""
    counts, devices = plan.counts, plan.topology.devices
    if counts:
        table.add_row("FLOPs, compiled", f"{counts.all_flops / 1e12:,.1f} T")
        for name, flops in counts.kernel_flops.items():
            table.add_row(f"  of it {name}", f"{flops / 1e12:,.1f} T")
    if plan.executed:
        table.add_row("FLOPs, by formula", f"{plan.executed / devices / 1e12:,.1f} T")
        table.add_row("  of it the model's", f"{plan.useful / devices / 1e12:,.1f} T", end_section=True)
    if not counts:
        return
    table.add_row("HBM read and written", f"{counts.hbm_bytes / 1e9:,.1f} GB")
    if counts.cycles:
        table.add_row("compiler's cycles, without kernels", f"{counts.cycles / 1e9:,.2f} G")
    if cycles := plan.schedule:
        share = f"{cycles.attention / 1e9:,.2f} G ({cycles.share:.0%})"
        table.add_row("cycles of attention, by schedule", share)
        table.add_row("all cycles, without waits", f"{cycles.seconds:.3f} s")
        if plan.useful:
            table.add_row("  MFU of them", f"{plan.mfu(cycles.seconds):.0%}")
        name, seconds = plan.bound
        table.add_row("longest part", f"{name}, {seconds:.3f} s")
    table.add_section()


def _add_time(table, plan):
    """The estimate by roofline."""
    if not (roofline := plan.roofline):
        return
    for name in ("compute", "hbm", "ici", "dcn"):
        if value := getattr(roofline, name):
            table.add_row(f"{name} alone (estimate)", f"{value:.3f} s")
    table.add_row("a step (estimate)", f"{roofline.least:.3f} to {roofline.most:.3f} s")
    if plan.useful:
        low, high = plan.mfu(roofline.most), plan.mfu(roofline.least)
        table.add_row("its MFU (estimate)", f"{low:.0%} to {high:.0%}")


def _cycles(plan) -> rich.table.Table:
    """Where the cycles go; beside products, what they would take at the chip's full rate."""
    chip, schedule = plan.topology.chip, plan.schedule
    rows = [(part.kind, part.cycles, part.flops * chip.clock / chip.peak, part.hbm_bytes) for part in plan.cycles]
    if schedule:
        rows.append(("attention kernels, by schedule", schedule.attention, 0.0, 0.0))
    total = sum(row[1] for row in rows)
    table = rich.table.Table("cycles of", "G", "share", "G at full rate", "HBM, GB")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind, cycles, full, size in rows:
        numbers = (f"{value / 1e9:,.2f}" if value else "" for value in (full, size))
        table.add_row(kind, f"{cycles / 1e9:,.2f}", f"{cycles / total:.0%}", *numbers)
    table.add_row("all", f"{total / 1e9:,.2f}", "", "", "")
    return table


def _collectives(collectives) -> rich.table.Table:
    table = rich.table.Table("collective", "over", "link", "times", "GiB of arrays", "GiB sent")
    for column in table.columns[3:]:
        column.justify = "right"
    for c in collectives:
        sizes = (f"{c.count:,.0f}", f"{c.bytes / GIB:,.3f}", f"{c.wire / GIB:,.3f}")
        table.add_row(c.kind, " x ".join(c.axes), c.link, *sizes)
    total = [sum(getattr(c, key) for c in collectives) for key in ("count", "bytes", "wire")]
    table.add_row("all", "", "", f"{total[0]:,.0f}", *(f"{size / GIB:,.3f}" for size in total[1:]))
    return table


def show_ranking(plans, console: rich.console.Console):
    """Print the plans of a search, best first."""
    columns = ("flags", "GiB needed", "least s", "most s", "MFU at most", "compile s")
    table = rich.table.Table(*columns, title=f"best first; times are {ESTIMATE}")
    for plan in plans:
        roofline = plan.roofline
        times = [f"{roofline.least:.2f}", f"{roofline.most:.2f}"] if roofline else ["does not fit", ""]
        mfu = f"{plan.mfu(roofline.least):.0%}" if roofline else ""
        table.add_row(plan.flags, f"{plan.needed / GIB:.1f}", *times, mfu, f"{plan.seconds:.0f}")
    console.print(table)


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"


def as_dict(plan) -> dict:
    """A plan for plan.json; bytes, FLOPs and seconds of one device unless the name says otherwise."""
    model, roofline = plan.settings.transformer, plan.roofline
    made = {
        "what": plan.what,
        "topology": str(plan.topology),
        "device": plan.topology.chip.kind,
        "devices": plan.topology.devices,
        "mesh": plan.sizes,
        "attention": model.attention,
        "remat": model.remat,
        "accumulate": plan.settings.train.accumulate,
        "compiled": plan.compiled,
        "compile_seconds": plan.seconds,
        "fits": plan.fits,
        "memory": int(plan.topology.chip.room * GIB),
        "needed": plan.needed,
        "held": plan.parts,
        "temporaries": plan.temporaries,
        "host": plan.host,
        "model_flops_all_devices": plan.useful,
        "executed_flops_all_devices": plan.executed,
        "cost_analysis_loop_bodies_once": plan.cost_analysis,
    }
    if plan.counts:
        made |= dataclasses.asdict(plan.counts) | {"all_flops": plan.counts.all_flops}
    made["cycles_by_kind"] = [dataclasses.asdict(part) for part in plan.cycles]
    if cycles := plan.schedule:
        made["schedule"] = dataclasses.asdict(cycles) | {"attention_share": cycles.share}
        made["schedule"] |= {"longest": plan.bound, "mfu": plan.mfu(cycles.seconds)}
    if roofline:
        made["estimate"] = {"what": ESTIMATE, **dataclasses.asdict(roofline)}
        made["estimate"] |= {"step_seconds": [roofline.least, roofline.most]}
        made["estimate"] |= {"mfu": [plan.mfu(roofline.most), plan.mfu(roofline.least)]}
    return made


def save(plan, change, out: pathlib.Path):
    """Write plan.json and plan.png; `change`: the nearest plan that fits, if this one does not."""
    made = as_dict(plan)
    if change:
        made["instead"] = {"flags": change.flags, **as_dict(change)}
    with atomic_write(out / "plan.json") as temporary:
        temporary.write_text(json.dumps(made, indent=1))
    bars = [plan, *([change] if change else [])]
    figure, axis = plt.subplots(figsize=(9, 1.8 + len(bars)), layout="constrained")
    names = [*dict.fromkeys(name for bar in bars for name in bar.parts), "temporary"]
    starts = [0.0] * len(bars)
    for name in names:
        sizes = [bar.parts.get(name, 0) for bar in bars]
        if name == "temporary":
            sizes = [max(0.0, bar.needed - sum(bar.parts.values())) for bar in bars]
        axis.barh(range(len(bars)), [size / GIB for size in sizes], left=starts, label=name, height=0.6)
        starts = [start + size / GIB for start, size in zip(starts, sizes, strict=True)]
    axis.axvline(plan.topology.chip.room, color="black", linestyle="--", label="HBM")
    axis.set_yticks(range(len(bars)), ["as asked", "instead"][: len(bars)])
    axis.invert_yaxis()
    axis.set_xlabel("GiB on each device at the peak" + ("" if plan.compiled else " (estimate)"))
    axis.set_title(f"{plan.what} on {plan.topology}: {plan.flags}", fontsize=8)
    figure.legend(ncols=len(names) + 1, fontsize=7, loc="outside lower center")
    with atomic_write(out / "plan.png") as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
