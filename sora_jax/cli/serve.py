"""The verb of the page: see sora_jax.cli.commands."""

import pathlib

from absl import flags

from sora_jax.cli.commands import BUILT_IN, checkpoint_of, define_mesh, lines_of, mesh_of

EXAMPLES = (
    "a large red circle moves right on a black background",
    "a large yellow square moves down on a blue background",
    "a large green triangle moves left on a white background",
)


def define(values):
    flags.DEFINE_string("checkpoint", None, f"Workdir of a trained transformer; {BUILT_IN}", flag_values=values)
    flags.DEFINE_string("out", "served", "Folder for what is made, and for what it was given.", flag_values=values)
    flags.DEFINE_string("host", "127.0.0.1", "Where the page is: this machine alone.", flag_values=values)
    flags.DEFINE_integer("port", 7860, "Of the page.", 1, 65535, flag_values=values)
    flags.DEFINE_string(
        "prompts", None, "Examples for the page: a file with a prompt on each line.", flag_values=values
    )
    flags.DEFINE_string("dtype", "", "To compute in, such as bfloat16.", flag_values=values)
    define_mesh(values)


def run(values, console):
    from sora_jax.serve.serve import serve

    serve(
        checkpoint_of(values),
        pathlib.Path(values["out"].value),
        host=values["host"].value,
        port=values["port"].value,
        examples=lines_of(values, "prompts") if values["prompts"].value else list(EXAMPLES),
        dtype=values["dtype"].value,
        mesh=mesh_of(values),
        console=console,
    )
