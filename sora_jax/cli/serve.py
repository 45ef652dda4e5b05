"""The command `serve`."""

from sora_jax.cli.flags import CHECKPOINT, LORA, MESH, NO_COMPILE_CACHE, Command, Flag, checkpoint_of, mesh_of
from sora_jax.cli.prompt_files import read_lines
from sora_jax.core.storage import as_path

EXAMPLES = (
    "a large red circle moves right on a black background",
    "a large yellow square moves down on a blue background",
    "a large green triangle moves left on a white background",
)


def run(values, console):
    from sora_jax.serve.serve import Loading, serve

    serve(
        checkpoint_of(values),
        as_path(values.out),
        address=(values.host, values.port),
        examples=read_lines(values, "prompts", console) if values.prompts else list(EXAMPLES),
        loading=Loading(mesh_of(values), values.dtype, tuple(values.lora or ())),
        console=console,
    )


COMMAND = Command(
    "a trained transformer -> a page in the browser",
    {
        "Input": (CHECKPOINT, LORA, Flag("prompts", "File with an example prompt for the page on each line.")),
        "Output": (Flag("out", "Folder for the videos, and copies of the inputs.", default="served"),),
        "Network": (
            Flag("host", "Address of the page; the default is seen by this machine only.", default="127.0.0.1"),
            Flag("port", "Port of the page.", int, 7860, min=1, max=65535),
        ),
        "Hardware": (
            Flag("dtype", "Type to compute in; default: as the checkpoint's settings say.", default=""),
            MESH,
            NO_COMPILE_CACHE,
        ),
    },
    run,
    examples=("--checkpoint=runs/first",),
)
