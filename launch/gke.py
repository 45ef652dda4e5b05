#!/usr/bin/env python3
"""Starts a run on GKE as a JobSet: one or more TPU slices, or GPU hosts.

    python launch/gke.py create --name=first --chip=v5p --topology=4x4x4 --image=IMAGE -- sora-jax train ...
    python launch/gke.py status|logs|delete --name=first

The manifest is generated: the numbers of hosts, devices and processes follow from the chip and the topology.
"""

import sys
from collections.abc import Sequence

import pod
from pod import InputError, Pod

PORT = 8476  # of the coordinator, where GKE does not choose one
LIBTPU_PORTS = (8471, 8080)  # within and between slices
JOB = {True: "slice", False: "host"}  # name of the replicated job, for TPUs and for GPUs
JOBSET = "jobset.sigs.k8s.io/jobset-name"
INDEX = "batch.kubernetes.io/job-completion-index"
GRACE = 120  # seconds from SIGTERM to SIGKILL, to save a checkpoint


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
      claim: a PersistentVolumeClaim that many hosts can write to, mounted at /data.
      restarts: restarts of the whole run after a pod fails, hangs or is preempted; it continues from its last
        checkpoint. An error of input fails it at once.
      spot: use spot nodes, which can be preempted.
    """
    # Each slice has a node pool to itself: GKE derives a host's identity from that.
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    job = {
        "completionMode": "Indexed",
        "parallelism": asked.hosts,
        "completions": asked.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [FAIL_ON_INPUT_ERROR]},
        "template": {"spec": pod_spec(asked, name, image, command, claim=claim, spot=spot)},
    }
    jobs = {"name": JOB[asked.tpu], "replicas": asked.slices if asked.tpu else 1, "template": {"spec": job}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": name} | ({"annotations": exclusive} if asked.tpu else {}),
        "spec": {
            "failurePolicy": {
                "maxRestarts": restarts,
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [jobs],
        },
    }


FAIL_ON_INPUT_ERROR = {
    "action": "FailJob",
    "onExitCodes": {"containerName": "sora-jax", "operator": "In", "values": [InputError.code]},
}


def pod_spec(asked: Pod, name: str, image: str, command: list[str], *, claim: str, spot: bool) -> dict:
    """The pod of one host."""
    volumes, mounts = storage(asked, claim)
    resource = "google.com/tpu" if asked.tpu else "nvidia.com/gpu"
    container = {
        "name": "sora-jax",
        "image": image,
        "command": pod.supervised(command),
        "env": environment(asked, name),
        "resources": {"limits": {resource: min(asked.chips, asked.fact("host"))}},
        "volumeMounts": mounts,
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "nodeSelector": node_selector(asked, spot),
        "containers": [container],
        "volumes": volumes,
    }
    if asked.tpu:
        container["ports"] = [{"containerPort": port} for port in LIBTPU_PORTS]
    else:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return spec


def storage(asked: Pod, claim: str) -> tuple[list[dict], list[dict]]:
    """(volumes, their mounts)."""
    volumes, mounts = [], []
    if claim:
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": "data", "mountPath": "/data"})
    if not asked.tpu:
        # NCCL shares memory between a host's GPUs; by default a container's /dev/shm has 64 MiB.
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    return volumes, mounts


def node_selector(asked: Pod, spot: bool) -> dict:
    if asked.tpu:
        selector = {
            "cloud.google.com/gke-tpu-accelerator": asked.fact("gke"),
            "cloud.google.com/gke-tpu-topology": asked.topology,
        }
    else:
        selector = {"cloud.google.com/gke-accelerator": asked.fact("gke")}
    return selector | ({"cloud.google.com/gke-spot": "true"} if spot else {})


def environment(asked: Pod, name: str) -> list[dict]:
    """Variables of the container. On TPUs GKE itself tells each host about the others; on GPUs these do."""
    variables = [
        {"name": key, "value": value} for key, value in asked.environment(asked.hosts * asked.slices).items()
    ]
    if asked.tpu or asked.hosts == 1:
        return variables
    index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    return [
        *variables,
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
    parser = pod.Parser("Create a run on the current cluster of kubectl.")
    parser.add_argument("--name", type=pod.name, required=True)
    parser.add_pod()
    parser.add_argument("--image", required=True, help="Container image with sora_jax; see launch/tpu.Dockerfile.")
    parser.add_argument("--claim", default="", help="PersistentVolumeClaim, mounted at /data.")
    parser.add_argument(
        "--restarts",
        type=pod.at_least(0),
        default=0,
        help="Restarts of the whole run after a pod fails (default: 0).",
    )
    parser.add_argument("--spot", action="store_true", help="Use spot nodes, which can be preempted.")
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
            f"--slices={asked.slices}: GKE joins only slices of several hosts, and {asked.topology} is one host"
        )
    return asked


def by_name(*commands):
    """An action on an existing run: kubectl commands in which NAME stands for its name."""

    def act(arguments: Sequence[str]):
        parser = pod.Parser("Run kubectl for one run.")
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
