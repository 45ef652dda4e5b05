"""The command `plan`."""

import dataclasses
import os

from sora_jax.cli.flags import Command, Flag, mesh_of, settings_of
from sora_jax.core.storage import as_path


def run(values, console):
    # The compiler for TPU runs on the CPU, in many processes at once if need be; no chip is asked for.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    from sora_jax.plan.plan import plan
    from sora_jax.plan.topology import read_topology

    settings = settings_of(values)
    if values.mesh:
        settings = dataclasses.replace(settings, mesh=mesh_of(values))
    plan(
        settings,
        read_topology(values.topology, values.slices),
        what=values.what,
        search=values.search,
        formulas=values.formulas,
        out=as_path(values.out),
        console=console,
    )


COMMAND = Command(
    "a config and the name of chips that are not here -> memory, traffic and time of a step",
    {
        "Chips": (
            Flag(
                "topology",
                "Chips: v5e:16x16, v6e:16x16, v5p:4x4x4, tpu7x:4x4x4, a100:8, h100:8, h200:64.",
                example="v5p:4x4x4",
            ),
            Flag("slices", "Number of slices of that topology, joined by the data centre's network.", int, 1),
            Flag("mesh", "Axes of the device mesh, e.g. fsdp=16,ulysses=4; default: the config's."),
        ),
        "Work": (
            Flag("what", "Step to plan: train, sample, decode or encode.", default="train"),
            Flag("search", "Compare meshes, remat policies and numbers of micro-batches.", bool, False),
            Flag("formulas", "Estimate by formulas in seconds; compile nothing.", bool, False),
        ),
        "Output": (Flag("out", "Folder for plan.json and plan.png.", default="plan"),),
    },
    run,
    about="Compiling needs `pip install 'sora_jax[plan]'` for TPUs, `pip install 'sora_jax[cuda]'` for GPUs. The "
    "exit code is 2 if the step does not fit.",
    examples=("--config=configs/t2v_1_3b.py --topology=v5e:8x8", "--config=configs/t2v_14b.py --topology=h100:64"),
    config=True,
    keys=("data.batch", "data.sequence_length", "mesh.fsdp", "mesh.ulysses", "transformer.remat"),
)
