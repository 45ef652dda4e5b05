"""From a folder of captioned videos to a data set of records: cut, scale, encode, write.

Sources are grouped into shards. A shard is written in full or not at all, so an interrupted run continues where
it stopped, and a finished data set is left unchanged.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections import Counter

from sora_jax.checkpoint.model_folder import autoencoder_folder, load_settings
from sora_jax.cluster.agreement import assert_equal_across_hosts, barrier, flatten, run_on_first_host
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.core.storage import USER_ERRORS, atomic_write, copy_files, remove_stale_temporaries
from sora_jax.data.prepare.captions import find_sources
from sora_jax.data.prepare.cut import check_cuts
from sora_jax.data.prepare.encode import CaptionEncoder, ClipEncoder, Encoders
from sora_jax.data.prepare.request import UNFINISHED, check_same, describe, hash_sources, open_unfinished
from sora_jax.data.prepare.shards import Shard, plan_shards, split_sources, write_shards
from sora_jax.data.records.write import finish
from sora_jax.data.tokenizer import Tokenizer, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Report:
    """What a data set holds and which files were left out.

    out: the data set's folder.
    kind: "pixels" or "latents".
    clips: number of clips, by split.
    sources: number of files that the clips come from.
    skipped: (name, reason) of each file that gave no clip.
    notes: other remarks for the user, one line each.
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
      autoencoder: its folder, or the workdir of its training run: records hold latents. None: records hold
        pixels, for training an autoencoder.
      tokenizer: a sentencepiece model; None trains one on the captions.
      text_encoder: folder of a transformers UMT5: records hold caption embeddings too. None: captions are
        embedded during training.
      console: for progress and report; None: standard error.
    Returns: a report of what was written.
    Raises: InputError if nothing can be cut, `out` holds something else, or the disk is full. Complete shards are
      kept, and the same call continues from there. A file that can't be read is reported, never raised.
    """
    videos, out, data = pathlib.Path(videos), pathlib.Path(out), settings.data
    console = console or Console(stderr=True)
    _check_flags(data, autoencoder, tokenizer, text_encoder)
    encoders = Encoders(
        video=ClipEncoder(autoencoder, settings) if autoencoder else None,
        text=CaptionEncoder(text_encoder, settings.text) if text_encoder else None,
    )
    geometry = _geometry(settings, encoders.video)
    check_cuts(data.sizes, data.frames, **geometry)
    sources = find_sources(videos, captions)
    if (encoders.video or data.autoencoder) and not any(source.captions for source in sources):
        raise InputError(
            f"--videos: {videos}: no captions; add captions.jsonl, captions.csv or a .txt beside each video"
        )
    hashes = hash_sources(sources)
    request = describe(settings, sources, hashes, encoders, tokenizer, geometry["multiple"])
    assert_equal_across_hosts({f"what is asked of {name}": value for name, value in flatten(request).items()})
    with _explain_os_errors(out):
        report = _finished(out, request)
        assert_equal_across_hosts({f"whether {out} is finished": str(report is not None)})
        if report is None:
            words = _begin(out, request, tokenizer, sources, settings.text.vocabulary)
            shards = plan_shards(out / UNFINISHED, split_sources(sources, hashes, data.validation))
            write_shards(shards, data, encoders, words, geometry["multiple"], console)
            barrier()
            run_on_first_host(lambda: _finish(out, request, shards, encoders))
            report = dataclasses.replace(_finished(out, request), reused=False)
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    return report


@contextlib.contextmanager
def _explain_os_errors(out):
    try:
        yield
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        reason = f"{USER_ERRORS[error.errno]}; what is complete is kept"
        raise InputError(f"{error.filename or out}: can't be written, {reason}") from error


def _check_flags(data, autoencoder, tokenizer, text_encoder):
    if text_encoder is not None and tokenizer is None:
        raise InputError(f"--text-encoder={text_encoder}: has its own tokens; name its tokenizer with --tokenizer")
    if autoencoder is not None and data.autoencoder:
        raise InputError(
            "--autoencoder and config.data.autoencoder: latents are written, or made in the step; give one of them"
        )


def _geometry(settings, encoder):
    """Arguments of `check_cuts`: the multiples that height, width and frames must be."""
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


def _finished(out, request):
    """The report of the finished data set in `out`; None if there is none."""
    path = out / "about.json"
    if not path.exists():
        return None
    about = json.loads(path.read_text())
    check_same(out, about["request"], request)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return Report(
        out,
        about["kind"],
        clips=about["clips"],
        sources=about["sources"],
        skipped=tuple((name, reason) for name, reason in about["skipped"]),
        notes=tuple(about["notes"]),
        reused=True,
    )


def _begin(out, request, tokenizer, sources, vocabulary):
    """The tokenizer; it and the folder of unfinished shards are made unless an earlier run has made them."""

    def begin():
        unfinished = open_unfinished(out, request)
        return _make_tokenizer(unfinished / "tokenizer.model", tokenizer, sources, vocabulary)

    run_on_first_host(lambda: remove_stale_temporaries(out / UNFINISHED))  # before any process writes
    run_on_first_host(begin)
    words = begin()  # the other hosts read what the first one wrote
    if request["text encoder"] and words.vocabulary > vocabulary:
        raise InputError(
            f"--tokenizer={tokenizer}: {words.vocabulary} tokens, and the text encoder knows {vocabulary}"
        )
    return words


def _make_tokenizer(path, given, sources, vocabulary):
    if path.exists():
        return Tokenizer(path)
    if given is not None:
        words = Tokenizer(given)
        with atomic_write(path) as partial:
            shutil.copyfile(given, partial)
        return words
    captions = [text for source in sources for text in source.captions]
    # Without any caption only the empty one will ever be read.
    return train_tokenizer(captions or ["none"], path, vocabulary=vocabulary)


def _finish(out, request, shards: list[Shard], encoders: Encoders):
    """Turn the written shards into a data set."""
    if not all(shard.description.exists() for shard in shards):
        raise InputError(
            f"--out: {out} lacks what other hosts have written; is it on a disk that all of them share?"
        )
    written = [shard.read_description() for shard in shards]
    skipped = [skip for part in written for skip in part.skipped]
    notes = sum((Counter(part.notes) for part in written), Counter())
    clips = [clip for part in written for clip in part.clips]
    if not clips:
        shutil.rmtree(out / UNFINISHED)  # or it would stand in the way once the files are mended
        name, reason = skipped[0]
        raise InputError(f"--videos: none of {len(skipped)} files can be used; {name}: {reason}")
    counts = Counter(clip.split for clip in clips)
    about = {
        "kind": request["kind"],
        "request": request,
        "clips": {split: counts[split] for split in ("train", "validation")},
        "sources": len({clip.source for clip in clips}),
        "skipped": skipped,
        "notes": [f"{count} files are {note}" for note, count in sorted(notes.items())],
    }
    unfinished = out / UNFINISHED
    if encoders.video and not (out / "autoencoder").exists():
        shutil.rmtree(unfinished / "autoencoder", ignore_errors=True)
        copy_files(encoders.video.folder, unfinished / "autoencoder")
        (unfinished / "autoencoder").replace(out / "autoencoder")
    shutil.copyfile(unfinished / "tokenizer.model", out / "tokenizer.model")
    by_split = {
        split: [
            (shard.path, part.clips, part.sha256)
            for shard, part in zip(shards, written, strict=True)
            if shard.split == split
        ]
        for split in about["clips"]
    }
    finish(out, encoders.arrays, by_split, about)
    shutil.rmtree(unfinished)
