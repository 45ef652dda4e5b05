"""How a model of the shapes world learned: shares of samples that are as asked, over updates, as a picture.

    python tests/evaluation/learning_curve.py OUT.png UPDATES:EVALUATION.json ...

Each evaluation.json is of one checkpoint, by `sora-jax evaluate --suite=shapes --frames=...`, one length each; a
panel is drawn for each length. UPDATES count from the first of all stages.
"""

import collections
import json
import pathlib
import sys

from matplotlib.figure import Figure

from sora_jax.evaluate.pictures import FAINT, INK, LINE, PAPER
from sora_jax.files import replacing


def main(out: str, *points: str):
    panels = collections.defaultdict(list)  # frames -> (updates, attribute -> share)
    for point in points:
        updates, _, file = point.partition(":")
        (checkpoint,) = json.loads(pathlib.Path(file).read_text())["checkpoints"]
        values = checkpoint["shapes"]
        (frames,) = values["by_frames"]
        panels[int(frames)].append((int(updates), values["adherence"]))
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained", facecolor=PAPER)
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (frames, found) in zip(places, sorted(panels.items()), strict=True):
        found.sort(key=lambda point: point[0])
        for name in found[-1][1]:
            course = [(updates, 100 * shares[name]["share"]) for updates, shares in found if name in shares]
            bold = {"color": INK, "linewidth": 2.4} if name == "all together" else {"linewidth": 1.2}
            panel.plot(*zip(*course, strict=True), marker="o", markersize=3.5, label=name, **bold)
        title = "pictures" if frames == 1 else f"videos of {frames} frames"
        panel.set_title(title, loc="left", color=INK, fontsize=12, fontweight="bold")
        panel.set_xlabel("updates", color=FAINT)
        panel.set_ylabel("% of samples as asked", color=FAINT)
        panel.set_xlim(left=0)
        panel.set_ylim(0, 100)
        panel.grid(True, color=LINE, linewidth=0.6)
        panel.legend(frameon=False, fontsize=8)
    with replacing(pathlib.Path(out)) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


if __name__ == "__main__":
    main(*sys.argv[1:])
