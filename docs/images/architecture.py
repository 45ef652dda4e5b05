"""Draws docs/images/architecture.png: python docs/images/architecture.py"""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

INK, SOFT, PADDING = "#1f2933", "#7b8794", "#e4e7eb"
CLIPS = {1: "#4c8bf5", 2: "#f2994a", 3: "#3aa76d"}
SEGMENTS = [1] * 9 + [2] * 6 + [3] * 3 + [0] * 2
TIMES = {1: 0.7, 2: 0.2, 3: 0.9}
GIVEN = {0, 1, 2}  # the first frame of clip 1 is a conditioning frame


def box(ax, x, y, width, text, color="white"):
    """A rounded box whose left middle is at (x, y)."""
    style = FancyBboxPatch(
        (x, y - 0.3), width, 0.6, boxstyle="round,pad=0.02,rounding_size=0.12", fc=color, ec=INK
    )
    ax.add_patch(style)
    ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=9, color=INK)


def arrow(ax, start, end):
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
    )


def chain(ax, x, y, boxes, gap=0.32):
    """Boxes from left to right with arrows between them; gives where each begins and ends."""
    spans = []
    for width, text, color in boxes:
        if spans:
            arrow(ax, (spans[-1][1] + 0.03, y), (x - 0.03, y))
        box(ax, x, y, width, text, color)
        spans.append((x, x + width))
        x += width + gap
    return spans


def clip(ax, x, y, frames, rows, columns, segment, label):
    """A clip as a stack of frames, each a grid of patches."""
    size = 0.27
    for frame in reversed(range(frames)):
        left, low = x + 0.15 * frame, y + 0.12 * frame
        for row in range(rows):
            for column in range(columns):
                corner = (left + column * size, low + row * size)
                ax.add_patch(Rectangle(corner, size, size, fc=CLIPS[segment], ec="white", lw=0.8))
    ax.text(x, y - 0.17, label, fontsize=8, color=INK, va="top")


def sequence(ax, x, y):
    """The packed sequence and the arrays that go with it."""
    size = 0.42
    ax.text(x - 0.15, y + size / 2, "patches", ha="right", va="center", fontsize=9, color=INK, family="monospace")
    lines = ("segment_ids", "noise time", "conditioning_mask")
    for line, name in enumerate(lines):
        height = y - 0.28 - 0.3 * line
        ax.text(x - 0.15, height, name, ha="right", va="center", fontsize=9, color=INK, family="monospace")
    for place, segment in enumerate(SEGMENTS):
        left, given = x + place * size, place in GIVEN
        color = CLIPS.get(segment, PADDING)
        ax.add_patch(Rectangle((left, y), size, size, fc=color, ec="white", hatch="" if not given else "///"))
        time = "" if not segment else "0" if given else f"{TIMES[segment]:g}"
        for line, text in enumerate((str(segment), time, "✓" if given else "")):
            height = y - 0.28 - 0.3 * line
            ax.text(left + size / 2, height, text, ha="center", va="center", fontsize=7.5, color=INK)
    return x, x + len(SEGMENTS) * size


def mask(ax, x, y):
    """Attention of the packed sequence: one block for each clip."""
    size = 1.3
    ax.add_patch(Rectangle((x, y), size, size, fc=PADDING, ec="none"))
    start = 0
    for segment, color in CLIPS.items():
        share = SEGMENTS.count(segment) / len(SEGMENTS)
        corner = (x + start * size, y + size - (start + share) * size)
        ax.add_patch(Rectangle(corner, share * size, share * size, fc=color, ec="none"))
        start += share
    ax.text(x + size / 2, y - 0.1, "attention stays\nwithin a clip", ha="center", va="top", fontsize=8, color=INK)


def main():
    figure, ax = plt.subplots(figsize=(12, 6.6))
    ax.set(xlim=(0, 15.4), ylim=(0, 8.4), aspect="equal")
    ax.axis("off")

    ax.text(0.1, 8.15, "Training", fontsize=12, weight="bold", color=INK)
    training = [(2.1, "videos + captions", "white"), (1.5, "prepare", "#eef4ff"), (1.9, "latent records", "white")]
    training += [(1.7, "loader: pack", "#eef4ff"), (1.6, "PatchBatch", "#fff4e5"), (1.6, "train step", "#eef4ff")]
    spans = chain(ax, 0.1, 7.55, [*training, (1.6, "checkpoint", "white")])
    batch = spans[4]

    row, left = 4.75, 5.0
    clip(ax, 0.3, 5.55, 3, 1, 3, 1, "a video, its first frame given")
    clip(ax, 0.3, 3.85, 2, 3, 1, 2, "a tall video")
    clip(ax, 1.75, 3.85, 1, 1, 3, 3, "an image")
    first, last = sequence(ax, left, row)
    arrow(ax, (2.0, row + 0.21), (first - 1.2, row + 0.21))
    ax.text(first, 3.35, "one packed sequence: clips of any size, padding at the end", fontsize=9, color=SOFT)
    mask(ax, last + 0.5, 4.0)
    for x, end in ((batch[0], first), (batch[1], last)):
        ax.plot((x, end), (7.22, row + 0.5), color=SOFT, lw=0.9, ls="--")

    ax.text(0.1, 2.75, "Generation", fontsize=12, weight="bold", color=INK)
    top, middle, bottom = 2.1, 1.5, 0.9
    chain(ax, 0.1, top, [(2.5, "prompt", "white"), (1.9, "text encoder", "#eef4ff")])
    chain(ax, 0.1, bottom, [(2.5, "conditioning frames", "white"), (1.9, "autoencoder", "#eef4ff")])
    arrow(ax, (4.87, top), (5.35, middle + 0.15))
    arrow(ax, (4.87, bottom), (5.35, middle - 0.15))
    parts = [(1.9, "PatchBatch\nof noise", "#fff4e5"), (2.9, "solver (guidance (DiT))", "#eef4ff")]
    spans = chain(ax, 5.4, middle, [*parts, (2.3, "decode as a stream", "#eef4ff"), (1.0, "mp4", "white")])
    for x, end in zip(spans[0], (first, last), strict=True):
        ax.plot((x, end), (middle + 0.33, 3.25), color=SOFT, lw=0.9, ls="--")

    figure.savefig(pathlib.Path(__file__).with_suffix(".png"), dpi=130, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
