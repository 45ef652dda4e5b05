"""The videos that people are shown to vote on."""

import pathlib
from collections.abc import Sequence

import jax

from sora_jax.config.schema import MeshSettings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import make_mesh
from sora_jax.evaluate.benchmark import Options, Subject
from sora_jax.evaluate.samples import captions_of, cells, repeat_prompts, video_sets

VOTED = 32  # prompts that people are shown


def videos_to_vote_on(
    subjects: Sequence[Subject], *, options: Options, mesh: MeshSettings, console
) -> dict[str, list[tuple[str, pathlib.Path]]]:
    """Samples of the same prompts by every subject: name -> (prompt, file) of each.

    Raises: InputError if several sizes or lengths are asked for.
    """
    prompts = captions_of(subjects[0], options)
    prompts = repeat_prompts(prompts, options.samples or min(len(prompts), VOTED))
    found = {}
    with jax.set_mesh(make_mesh(mesh)):
        for subject in subjects:
            if len(cells(subject, options)) > 1:
                raise InputError("--vote: takes one size and one length; see --size and --frames")
            (videos,) = video_sets(subject, options, lambda cell: prompts, console)
            found[subject.name] = list(zip(videos.prompts, videos.paths, strict=True))
            vars(subject).pop("generator", None)  # free the memory for the next one's
    return found
