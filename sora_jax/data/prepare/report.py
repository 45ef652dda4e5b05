"""What `prepare` says at its end: what became of each file."""

import dataclasses
import pathlib
from collections import Counter, defaultdict

from sora_jax.data.prepare.cut import Outcome

_MOST_LINES = 40  # of skipped files in the summary; prepared.json has all


@dataclasses.dataclass(frozen=True)
class Report:
    """What a data set holds and which files were left out.

    out: the data set's folder.
    kind: "pixels" or "latents".
    clips: number of clips, by split.
    outcomes: of each video or picture; a file that gave no clip has a reason.
    other: names of files of other kinds.
    shards: number of shards.
    reused: how many of them were there before this call.
    """

    out: pathlib.Path
    kind: str
    clips: dict[str, int]
    outcomes: tuple[Outcome, ...]
    other: tuple[str, ...]
    shards: int
    reused: int

    @property
    def sources(self) -> int:
        """Number of files that the clips come from."""
        return sum(outcome.clips > 0 for outcome in self.outcomes)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each file that gave no clip, or not all of its clips."""
        cut_short = "; {} clips before that are kept"
        return tuple(
            (o.name, o.reason + (cut_short.format(o.clips) if o.clips else "")) for o in self.outcomes if o.reason
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks with the number of files that each is about; numbers within remarks of one kind are added up."""
        files: Counter[str] = Counter()
        totals: dict[str, float] = defaultdict(float)
        for outcome in self.outcomes:
            for note in outcome.notes:
                kind, _, number = note.partition(": ")
                files[kind] += 1
                totals[kind] += float(number or 0)
        return tuple(
            f"{count} {'file' if count == 1 else 'files'} {kind}" + (f": {totals[kind]:g}" if totals[kind] else "")
            for kind, count in sorted(files.items())
        )

    def __str__(self) -> str:
        parts = " and ".join(f"{count} {split}" for split, count in self.clips.items())
        done = "left as it was" if self.shards == self.reused else "prepared"
        lines = [f"{self.out}: {done}, {parts} clips ({self.kind}) of {self.sources} files"]
        if 0 < self.reused < self.shards:
            lines.append(f"reused {self.reused} of {self.shards} shards; the others are new or have changed")
        return "\n".join(lines + self.remarks())

    def remarks(self) -> list[str]:
        """Lines on files that differ from what one would expect, and on those that are skipped."""
        lines = [f"note: {note}" for note in self.notes]
        if self.other:
            lines.append(f"note: {len(self.other)} file(s) of other kinds, such as {self.other[0]}")
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} files:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped[:_MOST_LINES]]
        if len(self.skipped) > _MOST_LINES:
            lines.append(f"  and {len(self.skipped) - _MOST_LINES} more; {self.out / 'prepared.json'} lists all")
        return lines
