"""A folder of videos under test, that another system made."""

import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import re

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, digest, sha256
from sora_jax.core.text_files import read_text
from sora_jax.generate.output.writer import read_metadata

VIDEOS = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".gif", ".webp")
PROMPT_FILES = ("prompts.json", "prompts.jsonl", "prompts.csv")


@dataclasses.dataclass(frozen=True)
class VideosUnderTest:
    """A folder of videos under test.

    Args:
      name: in reports.
      folder: of the videos.
      prompts: name of a video in it -> its prompt; in the order of their names.
      out: folder for values.
    """

    name: str
    folder: pathlib.Path
    prompts: dict[str, str]
    out: pathlib.Path

    objective = "videos"
    step = 0

    @property
    def about(self) -> str:
        return f"{len(self.prompts)} videos made elsewhere"

    @property
    def sample_settings(self) -> dict:
        return {}

    @functools.cached_property
    def content_hash(self) -> str:
        """16 hex digits that change with any byte of a video, and with its prompt."""
        return digest([[prompt, sha256(self.folder / name)] for name, prompt in self.prompts.items()])

    def described(self) -> dict:
        """What a result depends on, for the report."""
        return {"path": str(self.folder), "kind": "videos", "videos": len(self.prompts), "hash": self.content_hash}


def is_video_folder(folder: pathlib.Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in VIDEOS for path in folder.iterdir())


def open_videos(folder: pathlib.Path, name: str, out: pathlib.Path, prompts: str = "") -> VideosUnderTest:
    """The videos of a folder with their prompts.

    Args:
      prompts: a file that maps names to prompts: a JSON object, JSON Lines with "video" and "prompt", or CSV with
        these columns; "": prompts.json, prompts.jsonl or prompts.csv in the folder, or else the prompt that
        sora_jax wrote into the file, or else VBench's naming, PROMPT-INDEX.mp4.
    Raises: InputError if a video has no prompt, or a prompt no video.
    """
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in VIDEOS)
    found = [folder / file for file in PROMPT_FILES if (folder / file).is_file()]
    file = as_path(prompts) if prompts else found[0] if found else None
    if file is None:
        mapped = {name: _own_prompt(folder / name) for name in names}
        if missing := [name for name, prompt in mapped.items() if not prompt]:
            raise InputError(
                f"{folder / missing[0]}: has no prompt; write prompts.json into the folder, "
                f'{{"{missing[0]}": "..."}}, or name it PROMPT-0.mp4'
            )
    else:
        mapped = _read_prompts(file)
        if absent := [name for name in mapped if name not in names]:
            raise InputError(f"{file}: {absent[0]}: no such video in {folder}")
        if missing := [name for name in names if name not in mapped]:
            raise InputError(f"{file}: has no prompt for {missing[0]}")
    made = VideosUnderTest(name, folder, {name: mapped[name] for name in names}, out)
    own = hashlib.sha256(made.content_hash.encode()).hexdigest()[:8]
    return dataclasses.replace(made, out=out / f"videos-{own}")


def _own_prompt(path: pathlib.Path) -> str:
    try:
        prompt = read_metadata(path).get("prompt", "")
    except InputError:
        prompt = ""
    numbered = re.fullmatch(r"(.+)-\d+", path.stem)
    return prompt or (numbered[1] if numbered else "")


def _read_prompts(file: pathlib.Path) -> dict[str, str]:
    text = read_text(file, str(file))
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
        elif file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = [{"video": name, "prompt": prompt} for name, prompt in json.loads(text).items()]
        return {str(row["video"]): str(row["prompt"]) for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError):
        wanted = {".csv": "columns video and prompt", ".jsonl": '"video" and "prompt" on each line'}
        raise InputError(
            f"{file}: {wanted.get(file.suffix, 'an object such as {name: prompt}')} are needed"
        ) from None
