"""The command `serve`."""

import importlib.util
import pathlib

from sora_jax.cli.flags import (
    CHECKPOINT,
    LORA,
    MESH,
    MODEL,
    NO_COMPILE_CACHE,
    Command,
    Flag,
    checkpoint_of,
    mesh_of,
    path_of,
)
from sora_jax.cli.prompt_files import read_lines
from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path

EXAMPLES = (
    "a large red circle moves right on a black background",
    "a large yellow square moves down on a blue background",
    "a large green triangle moves left on a white background",
)
PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "limits")


def check_packages(what: str):
    """Raise InputError if a package of the extra `serve` is absent."""
    if not all(map(importlib.util.find_spec, PACKAGES)):
        raise InputError(f"{what} needs a web server: pip install 'sora_jax[serve]'")


def run(values, console):
    check_packages("serve")
    from sora_jax.serve.job_queue import Retention
    from sora_jax.serve.keys import read_keys
    from sora_jax.serve.loaded_model import Loading
    from sora_jax.serve.serve import Access, serve

    file = path_of(values, "api_key_file")
    keys = tuple(read_keys(file)) if file else ()
    serve(
        checkpoint_of(values),
        as_path(values.out),
        access=Access(values.host, values.port, keys, values.requests_per_minute),
        examples=read_lines(values, "prompts", console) if values.prompts else list(EXAMPLES),
        loading=Loading(mesh_of(values), values.dtype, tuple(values.lora or ()), model_name(values)),
        retention=Retention(values.keep_days, values.keep_gib),
        console=console,
    )


def model_name(values) -> str:
    """The name of the model, for clients."""
    from sora_jax.worlds.shipped import DEFAULT

    return pathlib.Path(values.checkpoint or values.model or DEFAULT).resolve().name


COMMAND = Command(
    "a trained transformer -> a videos API for the openai client, and a page in the browser",
    {
        "Input": (
            CHECKPOINT,
            MODEL,
            LORA,
            Flag("prompts", "File with an example prompt for the page on each line."),
        ),
        "Output": (
            Flag(
                "out",
                "Folder for the videos, their records, and copies of the inputs; may be in a bucket.",
                default="served",
            ),
            Flag("keep-days", "Delete videos after so many days; default: never.", float, min=0),
            Flag("keep-gib", "Delete the oldest videos above so many GiB in all; default: never.", float, min=0),
        ),
        "Network": (
            Flag("host", "Address to listen at; the default is seen by this machine only.", default="127.0.0.1"),
            Flag("port", "Port to listen at.", int, 7860, min=1, max=65535),
            Flag("api-key-file", "File with a key on each line, one of which each request needs."),
            Flag("requests-per-minute", "Requests that each key may make.", int, 1200, min=1),
        ),
        "Hardware": (
            Flag("dtype", "Type to compute in; default: as the checkpoint's settings say.", default=""),
            MESH,
            NO_COMPILE_CACHE,
        ),
    },
    run,
    about="The client creates, retrieves, lists, deletes, downloads, remixes, edits and extends videos.",
    examples=("--checkpoint=runs/first", "--model=emoji --host=0.0.0.0 --api-key-file=keys.txt"),
)
