"""From a folder of captioned videos to a data set of records: cut, scale, encode, write.

Sources are grouped into shards. A shard is written in full or not at all, and its name is the hash of what it
depends on. So an interrupted run continues where it stopped, and when files were added, removed or captioned anew
only the shards that they touch are written again.
"""

import contextlib
import dataclasses
import pathlib

from sora_jax.checkpoint.model_folder import autoencoder_folder, load_settings
from sora_jax.cluster.agreement import assert_equal_across_hosts, barrier, flatten, run_on_first_host
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.console import Console
from sora_jax.core.errors import InputError
from sora_jax.core.storage import (
    USER_ERRORS,
    HashCache,
    as_path,
    content_hash,
    copy_file,
    digest,
    remove_folder,
    remove_stale_temporaries,
)
from sora_jax.data.prepare.cut import check_cuts
from sora_jax.data.prepare.encode import CaptionEncoder, ClipEncoder, Encoders
from sora_jax.data.prepare.finish import Finished, finish_data_set
from sora_jax.data.prepare.report import Report
from sora_jax.data.prepare.request import HASHES, UNFINISHED, describe, hash_sources, open_unfinished
from sora_jax.data.prepare.shards import plan_shards, sources_per_shard, split_sources, write_shards
from sora_jax.data.prepare.sources import Found, find_sources
from sora_jax.data.tokenizer import Tokenizer, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    """What `prepare` takes besides the folder of videos.

    captions: a table; None looks for them in the folder.
    autoencoder: its folder, or the workdir of its training run: records hold latents. None: records hold pixels,
      for training an autoencoder.
    tokenizer: a sentencepiece model; None trains one on the captions.
    text_encoder: folder of a transformers UMT5: records hold caption embeddings too. None: captions are embedded
      during training.
    uncaptioned: "use" videos without a caption, which train the unconditional model, or "skip" them.
    """

    captions: pathlib.Path | None = None
    autoencoder: pathlib.Path | None = None
    tokenizer: pathlib.Path | None = None
    text_encoder: pathlib.Path | None = None
    uncaptioned: str = "use"


def prepare(
    settings: Settings,
    videos: pathlib.Path,
    out: pathlib.Path,
    options: Options = Options(),
    *,
    console: Console | None = None,
) -> Report:
    """Cut a folder of captioned videos into a data set, or bring a data set up to date with its folder.

    Args:
      settings: data.fps, sizes, frames and validation say what is cut; text.vocabulary bounds the tokenizer.
      videos: the folder; `find_sources` says what it may hold.
      out: folder of the data set.
      console: for progress and report; None: standard error.
    Returns: a report of what was written.
    Raises: InputError if nothing can be cut, `out` holds something else, or the disk is full. Complete shards are
      kept, and the same call continues from there. A file that can't be read is reported, never raised.
    """
    out, console = as_path(out), console or Console(stderr=True)
    encoders, geometry = load_encoders(settings, options)
    found = find_files(settings, videos, options)
    cache = HashCache(out / HASHES)
    hashes = hash_sources(found.sources, cache)
    request = describe(settings, encoders, options.tokenizer, geometry["multiple"])
    files = {"files": digest(sorted(hashes.items())), "captions": digest([s.captions for s in found.sources])}
    asked = flatten(request) | files
    assert_equal_across_hosts({f"what is asked of {name}": str(value) for name, value in asked.items()})
    with _explain_os_errors(out):
        finished = Finished.read(out, request)
        assert_equal_across_hosts({f"whether {out} is finished": str(finished is not None)})
        if finished:
            tokenizer, limit = out / "tokenizer.model", sources_per_shard(len(found.sources), finished.limit)
        else:
            tokenizer, limit = _begin(out, request, options.tokenizer, found, settings.text.vocabulary)
        words = _check_vocabulary(Tokenizer(tokenizer), request, options.tokenizer, settings.text.vocabulary)
        splits = split_sources(found.sources, hashes, settings.data.validation)
        key = digest([request, content_hash(tokenizer)])
        shards = plan_shards(out / UNFINISHED, splits, hashes, limit, key)
        run_on_first_host(cache.save)
        if finished and finished.is_current(shards, found):
            # A run that was stopped as it cleaned up leaves some of it.
            run_on_first_host(lambda: remove_folder(out / UNFINISHED))
            report = finished.report(reused=len(shards), shards=len(shards))
        else:
            kept = finished.shared(shards) if finished else []
            run_on_first_host(lambda: finished and _update(finished, request, limit, kept))
            write_shards(shards, settings.data, encoders, words, geometry["multiple"], console)
            barrier()
            run_on_first_host(lambda: finish_data_set(out, request, limit, shards, found, encoders, finished))
            report = Finished.read(out, request).report(reused=len(kept), shards=len(shards))
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    return report


def load_encoders(settings: Settings, options: Options) -> tuple[Encoders, dict]:
    """The encoders that are asked for, and the geometry of the clips that they can take.

    Raises: InputError if the flags contradict each other, or sizes and lengths do not fit the models.
    """
    data = settings.data
    if options.text_encoder is not None and options.tokenizer is None:
        raise InputError(
            f"--text-encoder={options.text_encoder}: has its own tokens; name its tokenizer with --tokenizer"
        )
    if options.autoencoder is not None and data.autoencoder:
        raise InputError(
            "--autoencoder and config.data.autoencoder: latents are written, or made in the step; give one of them"
        )
    encoders = Encoders(
        video=ClipEncoder(options.autoencoder, settings) if options.autoencoder else None,
        text=CaptionEncoder(options.text_encoder, settings.text) if options.text_encoder else None,
    )
    geometry = _geometry(settings, encoders.video)
    check_cuts(data.sizes, data.frames, **geometry)
    return encoders, geometry


def find_files(settings: Settings, videos: pathlib.Path, options: Options) -> Found:
    """The files of the folder and their captions.

    Raises: InputError if a transformer is to be trained on them and none has a caption.
    """
    found = find_sources(videos, options.captions)
    if options.uncaptioned == "skip":
        bare = [(source.name, "has no caption") for source in found.sources if not source.captions]
        kept = [source for source in found.sources if source.captions]
        found = dataclasses.replace(found, sources=kept, skipped=sorted(found.skipped + bare))
    if not found.sources:
        name, reason = found.skipped[0]
        raise InputError(f"--videos: none of {len(found.skipped)} files can be used; {name}: {reason}")
    latents = options.autoencoder or settings.data.autoencoder
    if latents and not any(source.captions for source in found.sources):
        raise InputError(
            f"--videos: {videos}: no captions; add captions.jsonl, captions.csv or a .txt beside each video"
        )
    return found


@contextlib.contextmanager
def _explain_os_errors(out):
    try:
        yield
    except OSError as error:
        if error.errno not in USER_ERRORS:
            raise
        reason = f"{USER_ERRORS[error.errno]}; what is complete is kept"
        raise InputError(f"{error.filename or out}: can't be written, {reason}") from error


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


def _begin(out, request, tokenizer, found, vocabulary):
    """(Path of the tokenizer, sources in a shard); made, with the folder of shards, unless a run before has."""

    def begin():
        limit = sources_per_shard(len(found.sources))
        unfinished, limit = open_unfinished(out, request, limit, finished=False)
        path = unfinished / "tokenizer.model"
        if not path.exists():
            _make_tokenizer(path, tokenizer, found.sources, vocabulary)
        return path, limit

    run_on_first_host(lambda: remove_stale_temporaries(out / UNFINISHED))  # before any process writes
    run_on_first_host(begin)
    return begin()  # the other hosts read what the first one wrote


def _update(finished, request, limit, kept):
    """Begin to bring a finished data set up to date: the shards that stay are put among the unfinished ones.

    The tokenizer stays: another one would change every record, and a trained model would not know its tokens.
    """
    unfinished, _ = open_unfinished(finished.out, request, limit, finished=True)
    remove_stale_temporaries(unfinished)
    finished.link(kept)


def _check_vocabulary(words, request, tokenizer, vocabulary):
    if request["text encoder"] and words.vocabulary > vocabulary:
        raise InputError(
            f"--tokenizer={tokenizer}: {words.vocabulary} tokens, and the text encoder knows {vocabulary}"
        )
    return words


def _make_tokenizer(path, given, sources, vocabulary):
    if given is None:
        captions = [text for source in sources for text in source.captions]
        # Without any caption only the empty one will ever be read.
        train_tokenizer(captions or ["none"], path, vocabulary=vocabulary)
        return
    Tokenizer(given)  # raises if it is none
    copy_file(given, path)
