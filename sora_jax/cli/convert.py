"""The command `convert`."""

from sora_jax.cli.flags import Command, Flag, missing, path_of


def run(values, console):
    from sora_jax.interop.convert import convert

    if not values.to and not values.check:
        raise missing("to", "wan")
    convert(
        path_of(values, "from"),
        path_of(values, "to"),
        rest=path_of(values, "rest"),
        base=path_of(values, "base"),
        check=values.check,
        console=console,
    )


COMMAND = Command(
    "published weights -> a workdir, and back",
    {
        "Input": (
            Flag(
                "from",
                "Folder of a published model, or its name on the Hugging Face Hub; a file of adapters; a workdir.",
                example="Wan2.1-T2V-1.3B-Diffusers",
            ),
            Flag("base", "Workdir of the model that adapters belong to."),
            Flag(
                "rest",
                "Folder in diffusers' layout with the other models, for a transformer in Wan's own layout.",
            ),
        ),
        "Output": (
            Flag(
                "to",
                "A new workdir; of a workdir a folder in diffusers' layout, or a .safetensors file of adapters.",
            ),
            Flag(
                "check",
                "Print what the source is, which tensors are read, and the memory and disk that it needs.",
                bool,
            ),
        ),
    },
    run,
    examples=("--from=Wan2.1-T2V-1.3B-Diffusers --to=wan", "--from=runs/lora --to=lora.safetensors"),
)
