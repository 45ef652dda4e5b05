#!/usr/bin/env python3
"""Starts a run on TPUs of a cluster that xpk made; gke.py supports GPUs as well.

    python launch/xpk.py --name=first --cluster=pods --zone=ZONE --project=PROJECT --chip=v5p --topology=4x4x4 \\
        --image=IMAGE -- sora-jax train ...
"""

import sys
from collections.abc import Sequence

import pod
from pod import InputError, Pod


def tpu_type(asked: Pod) -> str:
    """xpk's name of a slice. Raises: InputError for GPUs."""
    if not asked.tpu:
        raise InputError(f"--chip={asked.chip}: xpk.py is for TPUs; launch/gke.py runs on GPUs")
    return asked.accelerator() if asked.fact("vm", "") else f"{asked.fact('gke')}-{asked.topology}"


def launch(arguments: Sequence[str]):
    parser = pod.Parser("Create a run with xpk.")
    parser.add_argument("--name", type=pod.name, required=True)
    for option in ("cluster", "zone", "project", "image"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_pod()
    parser.add_argument(
        "--restarts",
        type=pod.at_least(0),
        default=0,
        help="Restarts of the whole run after a pod fails (default: 0).",
    )
    options, command = parser.read(arguments)
    asked = pod.pod_of(options)
    variables = asked.environment(asked.hosts * asked.slices)
    pod.run(
        [
            "xpk",
            "workload",
            "create",
            f"--workload={options.name}",
            f"--cluster={options.cluster}",
            f"--zone={options.zone}",
            f"--project={options.project}",
            f"--tpu-type={tpu_type(asked)}",
            f"--num-slices={asked.slices}",
            f"--docker-image={options.image}",
            f"--max-restarts={options.restarts}",
            f"--command={pod.with_environment(variables, pod.supervised(pod.command_of(command)))}",
        ],
        dry=options.dry_run,
    )


if __name__ == "__main__":
    sys.exit(pod.main(launch))
