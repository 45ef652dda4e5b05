"""The benchmark `clip`: CLIP score of frames and prompts.

Source: Hessel et al. 2021 (arXiv 2104.08718), without its factor of 2.5; the mean over a video's frames.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.cluster.agreement import run_on_first_host
from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.core.progress import progress_bar
from sora_jax.core.storage import as_path
from sora_jax.data.conditioning_frames import clip_preprocess
from sora_jax.evaluate.benchmark import Benchmark, Options, Sample, Subject, read_video
from sora_jax.evaluate.samples import captions_of, cells, repeat_prompts, video_sets
from sora_jax.interop.metric_backbones import load_clip
from sora_jax.interop.tensors import tensors_in
from sora_jax.models.layers.params import bind
from sora_jax.models.metric_backbones import Clip, ClipSettings
from sora_jax.report.page import Section, Table

SAMPLES = 64
MIN_PROMPTS = 50  # the score of a single prompt depends on its wording
FRAMES = 8  # of a video that are scored, at even distances


@functools.partial(jax.jit, static_argnums=0)
def see(settings: ClipSettings, params: dict, images):
    return bind(Clip, settings, params).encode_images(images)


@functools.partial(jax.jit, static_argnums=0)
def read(settings: ClipSettings, params: dict, tokens, ends):
    return bind(Clip, settings, params).encode_texts(tokens, ends)


def load_tokenizer(folder: str, tokens: int):
    """The tokenizer of a CLIP model. Raises: InputError if it, or the package that reads it, is missing."""
    try:
        import tokenizers
    except ImportError:
        raise InputError("--suite=clip: its tokenizer needs a package: pip install 'sora_jax[clip]'") from None
    path = as_path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; it comes with the model")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(tokens)
    return tokenizer


def clip_score(settings: ClipSettings, params: dict, tokens: Sequence[int], video: np.ndarray) -> float:
    """100 times the mean cosine between a prompt and frames of a video; negative cosines count as 0.

    Args:
      tokens: of the prompt, its end token last.
      video: [F, H, W, 3] uint8.
    """
    padded = np.full((1, settings.tokens), tokens[-1], np.int32)
    padded[0, : len(tokens)] = tokens
    text = read(settings, params, padded, np.array([len(tokens) - 1], np.int32))
    chosen = np.linspace(0, len(video) - 1, FRAMES).astype(int)  # always as many, for one compiled program
    images = see(settings, params, clip_preprocess(list(video[chosen]), settings.image.size))
    return float(100 * jnp.mean(jnp.maximum(images @ text[0], 0)))


def _check(checkpoint: Subject, options: Options):
    if not options.clip:
        raise InputError("--suite=clip: --clip is missing, a folder with a CLIPModel of transformers")
    tensors_in(options.clip)
    load_tokenizer(options.clip, 77)
    captions_of(checkpoint, options)
    cells(checkpoint, options)


def _measure(checkpoint: Subject, options: Options, console) -> dict:
    values: dict = {"by_cell": {}}

    def prompts_of(cell):
        return repeat_prompts(captions_of(checkpoint, options), options.samples or SAMPLES)

    for videos in video_sets(checkpoint, options, prompts_of, console):

        def score(videos=videos, prompts=videos.prompts, paths=videos.paths):
            with jax.set_mesh(make_mesh(MeshSettings(), jax.local_devices()[:1])), progress_bar(console) as bar:
                settings, params = load_clip(options.clip)
                tokenizer = load_tokenizer(options.clip, settings.tokens)
                task = bar.add_task("CLIP score", total=len(paths), numbers="")
                scores = [
                    clip_score(settings, params, tokenizer.encode(prompt).ids, read_video(path))
                    for prompt, path in bar.track(list(zip(prompts, paths, strict=True)), task_id=task)
                ]
            error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
            few = f"{len(set(prompts))} prompts are few; the score of a single prompt depends on its wording"
            found = {"score": float(np.mean(scores)), "error": error, "samples": len(scores)}
            found["warning"] = few if len(set(prompts)) < MIN_PROMPTS else ""
            found["each"] = [
                {"key": key, "prompt": prompt, "score": one, "video": os.path.relpath(path, checkpoint.out)}
                for key, prompt, one, path in zip(videos.keys(), prompts, scores, paths, strict=True)
            ]
            values["by_cell"][videos.name] = found
            line = f"{checkpoint.name}: CLIP score {found['score']:.4g} of {len(scores)} samples"
            console.print(line, highlight=False)
            if found["warning"]:
                console.print(f"warning: {found['warning']}", highlight=False)

        run_on_first_host(score)
    return values


def _show(results: Mapping[str, dict], folders: Mapping[str, pathlib.Path]) -> list[Section]:
    rows, warnings = [], {}
    for name, values in results.items():
        for cell, found in values["by_cell"].items():
            rows.append((name, cell, found["score"], found["error"], found["samples"]))
            warnings |= {f"{found['warning']}.": None} if found["warning"] else {}
    note = " ".join(["100 times the cosine of prompt and frame, mean over frames and samples.", *warnings])
    header = ("checkpoint", "size", "CLIP score", "standard error", "samples")
    return [Section("CLIP score", note, [Table(header, rows)])]


def _samples(values: dict) -> list[Sample]:
    return [
        Sample(
            one["key"],
            {"score": one["score"]},
            one["prompt"],
            video=one["video"],
            prompt=one["prompt"],
        )
        for found in values.get("by_cell", {}).values()
        for one in found["each"]
    ]


CLIP = Benchmark(
    ("flow", "videos"),
    ("data", "samples", "prompts", "sizes", "frames", "seed", "clip"),
    _measure,
    _show,
    _check,
    samples=_samples,
    better={"score": "higher"},
)
