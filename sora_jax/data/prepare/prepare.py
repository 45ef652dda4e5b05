"""From a folder of captioned videos to records: cut, scale, encode, write.

Sources are grouped into shards. A shard is there in full or not at all, so a run that was stopped goes on where
it was, and a finished data set is left as it is.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections import Counter

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sora_jax.checkpoint.model_folder import autoencoder_folder, load_settings
from sora_jax.cluster.agreement import assert_equal_across_hosts, barrier, flatten, run_on_first_host
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.storage import (
    USER_ERRORS,
    atomic_write,
    content_hash,
    copy_files,
    digest,
    remove_stale_temporaries,
)
from sora_jax.data.prepare.captions import find_sources
from sora_jax.data.prepare.cut import Cutter, check_cuts, one_ahead
from sora_jax.data.prepare.encode import CaptionEncoder, ClipEncoder
from sora_jax.data.records.records import Clip, finish, write_shard
from sora_jax.data.tokenizer import Tokenizer, train_tokenizer

FORMAT = 2  # of the data set; another one is prepared anew

_UNFINISHED = ".unfinished"
_NONE = {"text encoder": "", "tokens": 0}
# Shards are small enough that little is lost at a stop, large enough that they are few.
_SHARDS = 16  # at least so many, if there are so many sources
_SHARD_SOURCES, _SHARD_BYTES = 256, 64 * 2**20  # at most, but for one large file alone


@dataclasses.dataclass(frozen=True)
class Report:
    """What a data set holds and what was left out.

    clips: how many, by split. sources: how many files gave them.
    skipped: (name, reason) of each file that did not. notes: what else a person should know, each one line.
    reused: True if the data set was finished before this call.
    """

    out: pathlib.Path
    kind: str
    clips: dict[str, int]
    sources: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    reused: bool

    def __str__(self) -> str:
        parts = " and ".join(f"{count} {split}" for split, count in self.clips.items())
        start = "left as it was" if self.reused else "prepared"
        lines = [f"{self.out}: {start}, {parts} clips ({self.kind}) of {self.sources} files"]
        lines += [f"note: {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} files:")
            lines += [f"  {name}: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)


def prepare(
    settings: Settings,
    videos: pathlib.Path,
    out: pathlib.Path,
    *,
    captions: pathlib.Path | None = None,
    autoencoder: pathlib.Path | None = None,
    tokenizer: pathlib.Path | None = None,
    text_encoder: pathlib.Path | None = None,
    console: Console | None = None,
) -> Report:
    """Cut a folder of captioned videos into a data set.

    Args:
      settings: data.fps, sizes, frames and validation say what is cut; text.vocabulary bounds the tokenizer.
      videos: the folder; `find_sources` says what it may hold.
      out: folder of the data set.
      captions: a .jsonl or .csv file; None looks for one in the folder.
      autoencoder: makes latents: its folder, or the workdir that it was trained in; None keeps pixels, for an
        autoencoder to train on.
      tokenizer: a sentencepiece model to use; None learns one from the captions.
      text_encoder: a folder of transformers' UMT5, whose embeddings of the captions the records then hold; None:
        training embeds them.
      console: for the progress and the report; None: standard error.
    Raises: InputError if nothing can be cut, `out` holds something else, or the disk is full; what is complete
      is kept, and the same call goes on from there. A file that can't be read is reported and never raises.
    """
    videos, out, data = pathlib.Path(videos), pathlib.Path(out), settings.data
    console = console or Console(stderr=True)
    if text_encoder is not None and tokenizer is None:
        raise InputError(f"--text-encoder={text_encoder}: has its own tokens; name its tokenizer with --tokenizer")
    if autoencoder is not None and data.autoencoder:
        raise InputError(
            "--autoencoder and config.data.autoencoder: latents are written, or made in the step; give one of them"
        )
    encoder = None if autoencoder is None else ClipEncoder(autoencoder, settings)
    speaker = None if text_encoder is None else CaptionEncoder(text_encoder, settings.text)
    geometry = _geometry(settings, encoder)
    check_cuts(data.sizes, data.frames, **geometry)
    sources = find_sources(videos, captions)
    captioned = [text for source in sources for text in source.captions]
    if (encoder is not None or data.autoencoder) and not captioned:
        raise InputError(
            f"--videos: {videos}: no captions; add captions.jsonl, captions.csv or a .txt beside each video"
        )
    identities = {source.name: _known_by(source) for source in sources}
    request = {
        "format": FORMAT,
        "kind": "pixels" if encoder is None else "latents",
        "fps": data.fps,
        "sizes": list(data.sizes),
        "frames": list(data.frames),
        "multiple": list(geometry["multiple"]),
        "validation": data.validation,
        "autoencoder": "" if encoder is None else encoder.digest,
        "arrays": {name: list(shape) for name, shape in _arrays(encoder, speaker).items()},
        "image encoder": "" if encoder is None else encoder.image_digest,
        "text encoder": "" if speaker is None else speaker.digest,
        "tokens": 0 if speaker is None else settings.text.max_tokens,
        "tokenizer": f"at most {settings.text.vocabulary} tokens"
        if tokenizer is None
        else content_hash(tokenizer),
        "videos": digest(sorted(identities.items())),
        "captions": digest([(source.name, source.captions) for source in sources]),
    }
    assert_equal_across_hosts({f"what is asked of {name}": value for name, value in flatten(request).items()})
    try:
        report = _finished(out, request)
        assert_equal_across_hosts({f"whether {out} is finished": str(report is not None)})
        if report is None:
            run_on_first_host(lambda: remove_stale_temporaries(out / _UNFINISHED))  # before any process writes
            begin = functools.partial(_begin, out, request, tokenizer, captioned, settings.text.vocabulary)
            run_on_first_host(begin)
            unfinished, words = begin()  # what one process has begun, all find
            shards = _shards(unfinished, _split(sources, identities, data.validation))
            if speaker is not None and words.vocabulary > settings.text.vocabulary:
                raise InputError(
                    f"--tokenizer={tokenizer}: {words.vocabulary} tokens, and the text encoder knows "
                    f"{settings.text.vocabulary}"
                )
            _write_parts(shards, data, (encoder, speaker), words, geometry["multiple"], console)
            barrier()
            run_on_first_host(lambda: _finish(out, request, shards, encoder, speaker))
            report = dataclasses.replace(_finished(out, request), reused=False)
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        where = error.filename or out
        raise InputError(
            f"{where}: can't be written, {USER_ERRORS[error.errno]}; what is complete is kept"
        ) from error
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    return report


def _geometry(settings, encoder):
    """What rows, columns and frames must be multiples of, as `check_cuts` takes it."""
    coder, folder = settings.autoencoder, settings.data.autoencoder
    if encoder is not None:
        coder = encoder.settings
    elif folder:
        coder = load_settings(autoencoder_folder(folder), AutoencoderSettings)
    side, stride = coder.spatial_stride, coder.temporal_stride
    if encoder is None and not folder:  # an autoencoder will be trained on it
        return {"multiple": (side, side), "stride": stride, "period": 1}
    p_f, p_h, p_w = settings.transformer.patch
    return {"multiple": (side * p_h, side * p_w), "stride": stride, "period": p_f}


def _arrays(encoder, speaker):
    """What the records hold, as `records.features` takes it."""
    video = {"pixels": (None, None, None, 3)} if encoder is None else encoder.arrays
    return video | ({} if speaker is None else speaker.arrays)


def _known_by(source):
    """The hash of a video's content; of its name if it can't be read, which is told when it is its turn."""
    try:
        return content_hash(source.path)
    except (InputError, OSError):
        return digest(source.name)


def _bytes(source):
    return source.path.stat().st_size if source.path.is_file() else 0


def _split(sources, identities, validation):
    """Sources of each split: by the hash of a file's content, so that copies fall on the same side.

    A source stays on its side when others are added, unless they are so few that one side would be empty.
    """
    shares = {source.name: int(identities[source.name], 16) / 16**16 for source in sources}
    held_out = {name for name, share in shares.items() if share < validation}
    if not held_out and validation > 0 and len(sources) > 1:
        held_out = {min(shares, key=shares.get)}
    if len(held_out) == len(sources):
        held_out.remove(max(shares, key=shares.get))
    return {
        "train": [source for source in sources if source.name not in held_out],
        "validation": [source for source in sources if source.name in held_out],
    }


def _finished(out, request):
    """The report of a data set that is there already, None if there is none."""
    path = out / "about.json"
    if not path.exists():
        return None
    about = json.loads(path.read_text())
    _check_same(out, about["request"], request)
    shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
    return _report(out, about, reused=True)


def _report(out, about, *, reused):
    skipped = tuple((name, reason) for name, reason in about["skipped"])
    kept = {"clips": about["clips"], "sources": about["sources"], "notes": tuple(about["notes"])}
    return Report(out, about["kind"], skipped=skipped, reused=reused, **kept)


def _check_same(out, found, request):
    # A data set from before there were embeddings says nothing of them.
    different = [key for key in request if found.get(key, _NONE.get(key)) != request[key]]
    if different:
        hashed = ("videos", "captions", "autoencoder", "tokenizer", "image encoder", "text encoder")
        changes = [key if key in hashed else f"{key} ({found.get(key)}, not {request[key]})" for key in different]
        raise InputError(f"--out: {out} was made of other {', '.join(changes)}; remove it or name another folder")


def _open_unfinished(out, request):
    """The folder in which shards gather; of the same request, if there is one."""
    unfinished = out / _UNFINISHED
    description = unfinished / "request.json"
    if description.exists():
        _check_same(out, json.loads(description.read_text()), request)
        return unfinished
    if out.is_dir() and any(path.name != _UNFINISHED for path in out.iterdir()):
        raise InputError(f"--out: {out} holds other files; name a new folder")
    unfinished.mkdir(parents=True, exist_ok=True)
    with atomic_write(description) as path:
        path.write_text(json.dumps(request))
    return unfinished


def _begin(out, request, tokenizer, captions, vocabulary):
    """The folder in which shards gather, and the tokenizer, both made if they are not there."""
    unfinished = _open_unfinished(out, request)
    return unfinished, _make_tokenizer(unfinished / "tokenizer.model", tokenizer, captions, vocabulary)


def _make_tokenizer(path, given, captions, vocabulary):
    if path.exists():
        return Tokenizer(path)
    if given is not None:
        words = Tokenizer(given)
        with atomic_write(path) as partial:
            shutil.copyfile(given, partial)
        return words
    # Without any caption only the empty one will ever be read.
    return train_tokenizer(captions or ["none"], path, vocabulary=vocabulary)


def _groups(sources):
    """Sources in the order of their names, in groups that make one shard each."""
    groups, size = [], math.inf
    most = min(_SHARD_SOURCES, math.ceil(len(sources) / _SHARDS))
    for source in sources:
        if size + _bytes(source) > _SHARD_BYTES or len(groups[-1]) == most:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += _bytes(source)
    return groups


def _shards(unfinished, splits):
    """(split, shard, the sources in it) for all."""
    return [
        (split, unfinished / f"{split}-{number:05d}", group)
        for split, sources in splits.items()
        for number, group in enumerate(_groups(sources))
    ]


def _description(shard):
    """What is in a shard, written after it."""
    return shard.with_suffix(".json")


def _write_parts(shards, data, encoders, words, multiple, console):
    """Write the shards that are not there yet; many processes take turns."""
    mine = shards[jax.process_index() :: jax.process_count()]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("preparing", total=sum(len(group) for _, _, group in mine))
        for split, shard, group in mine:
            if _description(shard).exists():
                progress.advance(task, len(group))
                continue
            cutter = Cutter(split, data, words, multiple, lambda: progress.advance(task))
            clips, checksum = write_shard(
                shard, _arrays(*encoders), _encoded(cutter.clips(group), words, *encoders)
            )
            part = {
                "sha256": checksum,
                "clips": [dataclasses.asdict(clip) for clip in clips],
                "skipped": cutter.skipped,
                "notes": cutter.notes,
            }
            with atomic_write(_description(shard)) as path:
                path.write_text(json.dumps(part, ensure_ascii=False))


def _encoded(clips, words, encoder, speaker):
    """The clips with the arrays that their record holds; the next one is read meanwhile."""
    with contextlib.closing(one_ahead(clips)) as clips:
        for clip, pixels in clips:
            arrays = {"pixels": pixels} if encoder is None else encoder(pixels)
            arrays |= {} if speaker is None else speaker(clip.captions, words)
            for name, array in arrays.items():
                if name != "pixels" and not np.isfinite(array.astype(np.float32)).all():
                    where = speaker.settings.weights if name == "text" else encoder.folder
                    raise InputError(f"{where}: its {name} of {clip.source} are not finite")
            yield dataclasses.replace(clip, shape=next(iter(arrays.values())).shape), arrays


def _finish(out, request, shards, encoder, speaker):
    """Make the shards a data set."""
    if not all(_description(shard).exists() for _, shard, _ in shards):
        raise InputError(
            f"--out: {out} lacks what other hosts have written; is it on a disk that all of them share?"
        )
    parts = [(split, shard, json.loads(_description(shard).read_text())) for split, shard, _ in shards]
    skipped = [skip for _, _, part in parts for skip in part["skipped"]]
    notes = sum((Counter(part["notes"]) for _, _, part in parts), Counter())
    clips = [(split, shard, [Clip.from_dict(values) for values in part["clips"]]) for split, shard, part in parts]
    counts = Counter(clip.split for _, _, made in clips for clip in made)
    if not counts:
        shutil.rmtree(out / _UNFINISHED)  # or it would stand in the way once the files are mended
        name, reason = skipped[0]
        raise InputError(f"--videos: none of {len(skipped)} files can be used; {name}: {reason}")
    about = {
        "kind": request["kind"],
        "request": request,
        "clips": {split: counts[split] for split in ("train", "validation")},
        "sources": len({clip.source for _, _, made in clips for clip in made}),
        "skipped": skipped,
        "notes": [f"{count} files are {note}" for note, count in sorted(notes.items())],
    }
    unfinished = out / _UNFINISHED
    if encoder is not None and not (out / "autoencoder").exists():
        shutil.rmtree(unfinished / "autoencoder", ignore_errors=True)
        copy_files(encoder.folder, unfinished / "autoencoder")
        (unfinished / "autoencoder").replace(out / "autoencoder")
    shutil.copyfile(unfinished / "tokenizer.model", out / "tokenizer.model")
    made_of = {split: [] for split in about["clips"]}
    for (split, shard, made), (_, _, part) in zip(clips, parts, strict=True):
        made_of[split].append((shard, made, part["sha256"]))
    finish(out, _arrays(encoder, speaker), made_of, about)
    shutil.rmtree(unfinished)
