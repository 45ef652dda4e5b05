"""The commands `checkpoint inspect`, `verify`, `prune` and `release`."""

from sora_jax.cli.flags import WORKDIR, Command, Flag, use_cpu
from sora_jax.core.storage import as_path


def run_inspect(values, console):
    use_cpu()
    from sora_jax.checkpoint.tools import inspect

    inspect(as_path(values.workdir), console)


def run_verify(values, console):
    use_cpu()
    from sora_jax.checkpoint.tools import verify

    verify(as_path(values.workdir), console)


def run_prune(values, console):
    use_cpu()
    from sora_jax.checkpoint.tools import prune

    prune(as_path(values.workdir), values.keep, values.keep_every, dry_run=values.dry_run, console=console)


def run_release(values, console):
    use_cpu()
    import jax

    from sora_jax.checkpoint.release import release
    from sora_jax.config.schema import MeshSettings
    from sora_jax.core.mesh import make_mesh

    workdirs = [as_path(name) for name in values.workdir]
    with jax.set_mesh(make_mesh(MeshSettings(), jax.devices()[:1])):
        release(workdirs, as_path(values.out), dtype=values.dtype, console=console)


INSPECT = Command(
    "a workdir -> its checkpoints: size, date, parameters, settings",
    {"Input": (WORKDIR,)},
    run_inspect,
    examples=("--workdir=runs/first",),
)
VERIFY = Command(
    "a workdir -> which checkpoints are intact",
    {"Input": (WORKDIR,)},
    run_verify,
    about="Every array is read and compared with its checksum. The exit code is 2 if a checkpoint is broken.",
    examples=("--workdir=runs/first",),
)
PRUNE = Command(
    "a workdir -> fewer checkpoints",
    {
        "Input": (WORKDIR,),
        "Selection": (
            Flag("keep", "Number of latest checkpoints to keep.", int, 3, min=1),
            Flag("keep-every", "Also keep the checkpoints at multiples of this step; 0: none.", int, 0, min=0),
            Flag("dry-run", "Only print what would be deleted.", bool, False),
        ),
    },
    run_prune,
    about="Checkpoints set aside as broken are deleted as well.",
    examples=("--workdir=runs/first --keep=3 --keep-every=1000 --dry-run",),
)
RELEASE = Command(
    "workdirs -> their model, or the mean of their models, in one folder",
    {
        "Input": (
            Flag(
                "workdir",
                "Workdir of a training run, or a released model; given again: another one to average with.",
                example="runs/first",
                repeated=True,
            ),
        ),
        "Output": (
            Flag("out", "Folder for the model.", example="released"),
            Flag("dtype", "Type of the weights.", default="bfloat16", choices=("bfloat16", "float32")),
        ),
    },
    run_release,
    about="The averaged weights of the newest checkpoint are written with their settings, autoencoder and "
    "tokenizer; `sample`, `evaluate` and config.train.init_from take the folder in place of a workdir. Models to "
    "be averaged must have started from the same weights (model soups, arXiv 2203.05482).",
    examples=("--workdir=runs/first --out=first", "--workdir=first --workdir=second --out=mean"),
)
