"""How evenly the work of a step lies on the devices: the loader's plan, and first fit in random order beside it.

Run: python tests/benchmarks/balance.py    (seconds; it needs neither records nor a device)
A mixture as videos have it: a third images, the others 2 to 10 s at 16 frames a second, at 432 x 240, 832 x 480
and 1280 x 720 in the shares 5:3:2; latents 4 x 8 x 8 times as small, patches of 1 x 2 x 2; sequences as long as
the longest clip; the model of configs/t2v_1_3b.py. A device holds one or several sequences of each batch of 64.
Work is a n + b n^2, summed over clips; a step takes as long as its slowest device, padding's a n included.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import rich.console
import rich.table

from sora_jax.config.schema import DataSettings, TransformerSettings
from sora_jax.data.loader.mixture import ClipOrder
from sora_jax.data.loader.packing import PackPlan, Slot, clip_work, first_fit

MODEL = TransformerSettings(width=1536, mlp=8960, heads=12, layers=30)
BATCHES, BATCH, CLIPS = 200, 64, 65536
GRIDS = np.array([15 * 27, 30 * 52, 45 * 80])  # patches of a latent frame


def draw_mixture(draw):
    """Patches of each clip, and the lengths of its captions."""
    seconds = np.where(draw.random(CLIPS) < 1 / 3, 0, draw.uniform(2, 10, CLIPS))
    frames = 1 + (seconds * 16 // 4).astype(int)
    patches = frames * draw.choice(GRIDS, CLIPS, p=[0.5, 0.3, 0.2])
    return patches, [(int(n),) for n in draw.integers(40, 200, CLIPS)]


def plan_before(patches, tokens, data):
    """Sequences of two epochs by first fit, shuffled."""
    made = []
    for epoch in range(2):
        order = ClipOrder([np.arange(CLIPS)], seed=data.shuffle_seed).block(epoch)
        needs = np.stack([patches[order], np.array(tokens)[order, 0], np.ones_like(order)], axis=1)
        rows = first_fit(needs, np.array([data.sequence_length, data.text_length, data.clips_per_sequence]))
        shuffled = np.random.default_rng(epoch).permutation(len(rows))
        made += [tuple(Slot(int(order[i]), 0) for i in rows[row]) for row in shuffled]
    return made


def main():
    patches, tokens = draw_mixture(np.random.default_rng(0))
    length = int(patches.max())
    data = DataSettings(
        sequence_length=length, text_length=8192, clips_per_sequence=64, batch=BATCH, caption_dropout=0.0
    )
    work = clip_work(MODEL, patches)
    plans = {"first fit": plan_before(patches, tokens, data), "by work": PackPlan(patches, tokens, data, work)}
    print(f"{CLIPS:,} clips of {patches.min():,} to {length:,} patches, {BATCHES} batches of {BATCH} sequences")
    table = rich.table.Table("plan", "devices", "fill", "work, most / mean", "in the worst batch", "waiting")
    for name, plan in plans.items():
        rows = [plan[i] for i in range(BATCHES * BATCH)]
        filled = np.array([sum(patches[slot.clip] for slot in row) for row in rows])
        of_rows = np.array([sum(work[slot.clip] for slot in row) for row in rows])
        per_patch = clip_work(MODEL, np.array(1)) - 4 * MODEL.width
        seconds = of_rows + per_patch * (length - filled)
        for devices in (64, 16, 8):
            shape = (BATCHES, devices, BATCH // devices)
            of_devices, times = (x.reshape(shape).sum(axis=2) for x in (of_rows, seconds))
            ratio = of_devices.max(axis=1) / of_devices.mean(axis=1)
            waiting = 1 - times.mean() / times.max(axis=1).mean()
            fill = f"{filled.mean() / length:.3f}"
            table.add_row(name, f"{devices}", fill, f"{ratio.mean():.3f}", f"{ratio.max():.3f}", f"{waiting:.1%}")
    rich.console.Console(width=100).print(table)


if __name__ == "__main__":
    main()
