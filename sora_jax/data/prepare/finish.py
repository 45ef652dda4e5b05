"""The finished data set: written from complete shards, and read again when `prepare` brings it up to date."""

import dataclasses
import json
import os
import pathlib
from collections import Counter

from sora_jax.checkpoint.model_folder import WEIGHTS
from sora_jax.core.errors import InputError
from sora_jax.core.storage import (
    copy_file,
    copy_files,
    in_bucket,
    move_folder,
    remove_folder,
    sha256,
)
from sora_jax.data.prepare.cut import Outcome
from sora_jax.data.prepare.encode import Encoders
from sora_jax.data.prepare.report import Report
from sora_jax.data.prepare.request import UNFINISHED, check_same
from sora_jax.data.prepare.shards import Shard, Written
from sora_jax.data.prepare.sources import Found
from sora_jax.data.records.records import SPLITS, Clip
from sora_jax.data.records.write import finish, name_of


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished data set, as about.json and prepared.json describe it.

    torn: a run was stopped while it replaced these files, which may be of two generations.
    """

    out: pathlib.Path
    about: dict
    prepared: dict
    torn: bool

    @classmethod
    def read(cls, out: pathlib.Path, request: dict) -> "Finished | None":
        """The data set in `out`; None if there is none.

        Raises: InputError if it was asked for otherwise.
        """
        path = out / "about.json"
        if not path.exists():
            return None
        about = json.loads(path.read_text())
        check_same(out, about["request"], request)
        prepared = json.loads((out / "prepared.json").read_text())
        same = about["generation"] == prepared["generation"] and about["manifest"] == sha256(
            out / "manifest.jsonl"
        )
        return cls(out, about, prepared, torn=not same)

    @property
    def limit(self) -> int:
        """The largest number of sources in a shard."""
        return self.about["sources_per_shard"]

    def is_current(self, shards: list[Shard], found: Found) -> bool:
        """Whether it is made of just these files."""
        if self.torn:
            return False
        same = [shard["digest"] for shard in self.prepared["shards"]] == [shard.digest for shard in shards]
        skipped = [(file["name"], file["reason"]) for file in self.prepared["files"] if not file["shard"]]
        return same and skipped == found.skipped and self.prepared["other"] == found.other

    def shared(self, shards: list[Shard]) -> list[Shard]:
        """Those of the shards that it holds."""
        if self.torn:  # the run that was stopped has left all that it needs among the unfinished shards
            return []
        held = {shard["digest"] for shard in self.prepared["shards"]}
        return [shard for shard in shards if shard.digest in held]

    def link(self, shards: list[Shard]):
        """Put shards that it holds among the unfinished ones, complete: as links where the disk has these."""
        held = {shard["digest"]: shard for shard in self.prepared["shards"]}
        outcomes: dict[str, list[Outcome]] = {}
        for file in self.prepared["files"]:
            values = {key: value for key, value in file.items() if key != "shard"}
            outcomes.setdefault(file["shard"], []).append(Outcome.from_dict(values))
        with (self.out / "manifest.jsonl").open(encoding="utf-8", newline="\n") as lines:
            manifest = [Clip.from_dict(json.loads(line)) for line in lines]
        for shard in shards:
            entry = held[shard.digest]
            if shard.description.exists():
                continue
            if entry["file"] and not shard.path.exists():
                _link(self.out / entry["file"], shard.path)
            clips = manifest[entry["first"] : entry["first"] + entry["clips"]]
            shard.write_description(Written(clips, entry["sha256"], outcomes[shard.digest]))

    def report(self, *, reused: int, shards: int) -> Report:
        files = self.prepared["files"]
        return Report(
            self.out,
            self.about["kind"],
            clips=self.about["clips"],
            outcomes=tuple(
                Outcome(f["name"], f["clips"], f["reason"], tuple(f["notes"]))
                for f in sorted(files, key=lambda f: f["name"])
            ),
            other=tuple(self.prepared["other"]),
            shards=shards,
            reused=reused,
        )


def _link(file, path):
    if in_bucket(file):
        file.copy_to(path)
        return
    try:
        os.link(file, path)
    except OSError:  # another disk, or one without links
        copy_file(file, path)


def finish_data_set(
    out: pathlib.Path,
    request: dict,
    limit: int,
    shards: list[Shard],
    found: Found,
    encoders: Encoders,
    before: Finished | None,
) -> None:
    """Turn the written shards into a data set.

    Args:
      limit: the largest number of sources in a shard.
      before: the data set that this one replaces.
    Raises: InputError if a shard is missing, or no file gave a clip.
    """
    if not all(shard.description.exists() for shard in shards):
        raise InputError(
            f"--out: {out} lacks what other hosts have written; is it on a disk that all of them share?"
        )
    written = [shard.read_description() for shard in shards]
    generation = before.about["generation"] + 1 if before else 1
    prepared = _describe(shards, written, found, generation)
    counts = Counter(clip.split for part in written for clip in part.clips)
    if not counts:
        remove_folder(out / UNFINISHED)  # or it would stand in the way once the files are mended
        bad = [file for file in prepared["files"] if file["reason"]]
        raise InputError(f"--videos: none of {len(bad)} files can be used; {bad[0]['name']}: {bad[0]['reason']}")
    about = {
        "kind": request["kind"],
        "request": request,
        "clips": {split: counts[split] for split in SPLITS},
        "generation": generation,
        "sources_per_shard": limit,
    }
    unfinished = out / UNFINISHED
    if encoders.video and not (out / "autoencoder" / WEIGHTS).exists():
        remove_folder(unfinished / "autoencoder")
        copy_files(encoders.video.folder, unfinished / "autoencoder")
        move_folder(unfinished / "autoencoder", out / "autoencoder", mark=WEIGHTS)
    if not (out / "tokenizer.model").exists():
        copy_file(unfinished / "tokenizer.model", out / "tokenizer.model")
    by_split = {
        split: [
            (shard.path, part.clips, part.sha256)
            for shard, part in zip(shards, written, strict=True)
            if shard.split == split
        ]
        for split in SPLITS
    }
    finish(out, encoders.arrays, by_split, about, prepared)
    remove_folder(unfinished)


def _describe(shards, written, found, generation):
    """The content of prepared.json.

    files: what became of each video and picture, and the digest of its shard; "" of those that were left out.
    shards: in the order of the manifest; file: "" of one without a clip.
    other: names of files of other kinds.
    """
    files = [
        {"name": name, "clips": 0, "reason": reason, "notes": [], "shard": ""} for name, reason in found.skipped
    ]
    lines, first = [], 0
    for split in SPLITS:
        mine = [(s, w) for s, w in zip(shards, written, strict=True) if s.split == split]
        parts, number = sum(bool(w.clips) for _, w in mine), 0
        for shard, part in mine:
            name = f"{name_of(generation)}-{split}.array_record-{number:05d}-of-{parts:05d}" if part.clips else ""
            number += bool(part.clips)
            values = {"digest": shard.digest, "split": split, "file": name, "sha256": part.sha256}
            lines.append(values | {"first": first, "clips": len(part.clips)})
            first += len(part.clips)
            files += [dataclasses.asdict(outcome) | {"shard": shard.digest} for outcome in part.outcomes]
    return {"generation": generation, "files": files, "shards": lines, "other": found.other}
