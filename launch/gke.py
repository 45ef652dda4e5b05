#!/usr/bin/env python3
"""A run on GKE, as a JobSet: one slice of TPUs, several of them, or hosts of GPUs.

    python launch/gke.py create --name=first --chip=v5p --topology=4x4x4 --image=IMAGE -- sora-jax train ...
    python launch/gke.py status|logs|delete --name=first

The manifest is made here rather than kept as YAML with overlays: how many hosts, devices and processes there are
follows from the chip and the topology, and numbers that must agree should not be written six times by hand.
"""

import sys
from collections.abc import Sequence

import pod
from pod import InputError, Pod

PORT = 8476  # of the coordinator, where GKE does not choose one
JOB = {True: "slice", False: "host"}  # name of the replicated job, for TPUs and for GPUs
JOBSET = "jobset.sigs.k8s.io/jobset-name"
INDEX = "batch.kubernetes.io/job-completion-index"
GRACE = 120  # seconds from SIGTERM to SIGKILL: a checkpoint may be in the writing


def manifest(
    asked: Pod,
    name: str,
    image: str,
    command: list[str],
    *,
    claim: str = "",
    restarts: int = 0,
    spot: bool = False,
) -> dict:
    """The JobSet of a run.

    Args:
      claim: a PersistentVolumeClaim that many hosts can write to; it is mounted at /data.
      restarts: how often the whole run is begun again when a pod fails, hangs, or is taken back; it goes on from
        its last checkpoint. A mistake of input fails it at once.
      spot: on machines that can be taken back.
    """
    jobs = asked.slices if asked.tpu else 1
    selector = {
        "cloud.google.com/gke-tpu-accelerator": asked.fact("gke"),
        "cloud.google.com/gke-tpu-topology": asked.topology,
    }
    if not asked.tpu:
        selector = {"cloud.google.com/gke-accelerator": asked.fact("gke")}
    if spot:
        selector["cloud.google.com/gke-spot"] = "true"
    volumes, mounts = [], []
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": "/data"})
    if not asked.tpu:
        # NCCL shares memory between a host's GPUs; a container's own /dev/shm has 64 MiB.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    chips = min(asked.chips, asked.fact("host"))
    container = {
        "name": "sora-jax",
        "image": image,
        "command": pod.supervised(command),
        "env": environment(asked, name),
        "resources": {"limits": {"google.com/tpu" if asked.tpu else "nvidia.com/gpu": chips}},
        "volumeMounts": mounts,
    }
    if asked.tpu:
        container["ports"] = [
            {"containerPort": 8471},
            {"containerPort": 8080},
        ]  # libtpu's: within and between slices
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": volumes,
    }
    if not asked.tpu:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    template = {
        "completionMode": "Indexed",
        "parallelism": asked.hosts,
        "completions": asked.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "sora-jax", "operator": "In", "values": [InputError.code]},
                }
            ]
        },
        "template": {"spec": spec},
    }
    # Each slice has a node pool to itself: GKE tells its hosts who they are by that.
    alone = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name} | ({"annotations": alone} if asked.tpu else {}),
        "spec": {
            "failurePolicy": {
                "maxRestarts": restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": JOB[asked.tpu], "replicas": jobs, "template": {"spec": template}}],
        },
    }


def environment(asked: Pod, name: str) -> list[dict]:
    """Variables of the container. On TPUs GKE itself says who the others are, on GPUs nobody else would."""
    told = [{"name": key, "value": value} for key, value in asked.environment(asked.hosts * asked.slices).items()]
    if asked.tpu or asked.hosts == 1:
        return told
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    return [
        *told,
        {"name": "SORA_JAX_COORDINATOR", "value": f"{name}-{JOB[False]}-0-0.{name}:{PORT}"},
        {"name": "SORA_JAX_PROCESS_ID", "valueFrom": index},
    ]


def as_yaml(value: dict) -> str:
    try:
        import yaml
    except ImportError:
        raise InputError("PyYAML is needed: pip install pyyaml") from None
    return yaml.safe_dump(value, sort_keys=False, width=100)


def create(arguments: Sequence[str]):
    parser = pod.Parser("Create a run on the cluster that kubectl is at.")
    parser.add_argument("--name", type=pod.name, required=True)
    parser.add_pod()
    parser.add_argument("--image", required=True, help="a container with sora_jax; see launch/Dockerfile")
    parser.add_argument("--claim", default="", help="a PersistentVolumeClaim, mounted at /data")
    parser.add_argument("--restarts", type=pod.at_least(0), default=0, help="of the whole run, when a pod fails")
    parser.add_argument("--spot", action="store_true", help="machines that can be taken back")
    options, command = parser.read(arguments)
    made = manifest(
        checked(pod.pod_of(options)),
        options.name,
        options.image,
        pod.command_of(command),
        claim=options.claim,
        restarts=options.restarts,
        spot=options.spot,
    )
    pod.run(["kubectl", "apply", "--filename=-"], dry=options.dry_run, text=as_yaml(made))


def checked(asked: Pod) -> Pod:
    if asked.slices > 1 and asked.hosts == 1:
        raise InputError(
            f"--slices={asked.slices}: GKE joins slices of several hosts only, {asked.topology} is one host"
        )
    return asked


def by_name(*commands):
    """An action on a run that is there: kubectl commands, in which NAME stands for its name."""

    def act(arguments: Sequence[str]):
        parser = pod.Parser("kubectl, for one run.")
        parser.add_argument("--name", type=pod.name, required=True)
        options, _ = parser.read(arguments)
        for command in commands:
            pod.run([word.replace("NAME", options.name) for word in command.split()], dry=options.dry_run)

    return act


ACTIONS = {
    "create": create,
    "status": by_name("kubectl get jobset NAME", f"kubectl get pods --selector={JOBSET}=NAME --output=wide"),
    "logs": by_name(
        f"kubectl logs --follow --tail=-1 --selector={JOBSET}=NAME,jobset.sigs.k8s.io/job-index=0,{INDEX}=0"
    ),
    "delete": by_name("kubectl delete jobset NAME"),
}

if __name__ == "__main__":
    sys.exit(pod.main(lambda arguments: pod.act(ACTIONS, arguments)))
