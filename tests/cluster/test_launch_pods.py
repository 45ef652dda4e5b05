"""What the launchers would run, and what they ask of gcloud, kubectl, xpk and sbatch, which only write it down."""

import copy
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
RECORDER = """#!/bin/bash
{ printf '%s\\n' "$(basename "$0") $*"; [ -t 0 ] || cat; } >> "$CALLS"
case "$*" in *describe*) sed -n "$(( $(grep -c describe "$CALLS") ))p" "$STATES" ;; esac
exit "${STATUS:-0}"
"""
TRAIN = ["--", "sora-jax", "train", "--config=configs/t2v_14b.py", "--workdir=/data/runs/a first"]
SUPERVISED = ["python", "-m", "sora_jax.cluster.supervisor", "--restarts=0"]
V5P = ["--chip=v5p", "--topology=4x4x4"]


def launch(script, *arguments, path="/usr/bin:/bin", **environment):
    """Run a launcher; what came of it."""
    return subprocess.run(
        [sys.executable, ROOT / "launch" / script, *arguments],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def printed(script, *arguments) -> str:
    """What a launcher would run, as text."""
    action, rest = arguments[:1], arguments[1:]
    if action and action[0].startswith("-"):
        action, rest = (), arguments
    done = launch(script, *action, "--dry-run", *rest, path="/nowhere")
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifest_of(*arguments) -> dict:
    text = printed("gke.py", "create", "--name=first", "--image=pods/sora-jax:1", *arguments, *TRAIN)
    first, *lines, last = text.splitlines()
    assert (first, last) == ("kubectl apply --filename=- <<'EOF'", "EOF")
    return yaml.safe_load("\n".join(lines))


def parts_of(manifest: dict) -> tuple[dict, dict, dict, dict]:
    """(the replicated job, its Job, the pod, its container's variables that are plain values)."""
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    told = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    return job, spec, spec["template"]["spec"], told


@pytest.fixture
def programs(tmp_path):
    """A PATH on which the clouds' programs only write down what they are asked; and the file they write to."""
    for name in ("gcloud", "kubectl", "xpk", "sbatch", "squeue", "scancel"):
        (tmp_path / name).write_text(RECORDER)
        (tmp_path / name).chmod(0o755)
    calls, states = tmp_path / "calls", tmp_path / "states"
    calls.touch()
    states.write_text("ACTIVE\n")
    return {"path": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "STATES": str(states)}


def calls(programs) -> list[str]:
    return pathlib.Path(programs["CALLS"]).read_text().splitlines()


GKE = {
    "one slice": ["--chip=v6e", "--topology=16x16", "--claim=disk", "--restarts=3", "--spot"],
    "two slices": [*V5P, "--slices=2", "--claim=disk"],
    "one host of TPUs": ["--chip=v5e", "--topology=2x2"],
    "two cores a chip": ["--chip=v7x", "--topology=8x8x16"],
    "hosts of GPUs": ["--chip=h200", "--hosts=4", "--claim=disk"],
    "one host of GPUs": ["--chip=h100"],
}


@pytest.mark.parametrize(
    "case, replicas, hosts, chips, devices",
    [
        ("one slice", 1, 64, 4, 256),
        ("two slices", 2, 16, 4, 128),
        ("one host of TPUs", 1, 1, 4, 4),
        ("two cores a chip", 1, 256, 4, 2048),
        ("hosts of GPUs", 1, 4, 8, 32),
        ("one host of GPUs", 1, 1, 8, 8),
    ],
)
def test_the_numbers_of_a_jobset_agree(case, replicas, hosts, chips, devices):
    manifest = manifest_of(*GKE[case])
    job, spec, pod, told = parts_of(manifest)
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (replicas, hosts, hosts)
    assert list(pod["containers"][0]["resources"]["limits"].values()) == [chips]
    assert told["SORA_JAX_NUM_PROCESSES"] == str(replicas * hosts)
    assert told["SORA_JAX_NUM_DEVICES"] == str(devices)
    assert pod["containers"][0]["command"] == [*SUPERVISED, *TRAIN]
    assert {volume["name"] for volume in pod["volumes"]} == {
        m["name"] for m in pod["containers"][0]["volumeMounts"]
    }


def test_gpu_hosts_are_told_where_the_first_is_and_which_they_are():
    manifest = manifest_of(*GKE["hosts of GPUs"])
    job, spec, _, told = parts_of(manifest)
    # JobSet's names for pods: jobset-job-index-pod.jobset.
    assert told["SORA_JAX_COORDINATOR"] == f"first-{job['name']}-0-0.first:8476"
    index = told["SORA_JAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert spec["completionMode"] == "Indexed"
    assert "SORA_JAX_COORDINATOR" not in parts_of(manifest_of(*GKE["two slices"]))[3]


def check_schema(manifest: dict):
    """Raise jsonschema's or kubernetes_validate's ValidationError for a field that is wrong or unknown."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install 'sora_jax[ci]'")
    jsonschema = pytest.importorskip("jsonschema", reason="pip install 'sora_jax[ci]'")
    jsonschema.validate(manifest, json.loads((ROOT / "tests/jobset_schema.json").read_text()))
    for job in manifest["spec"]["replicatedJobs"]:
        inside = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "job"},
            "spec": job["template"]["spec"],
        }
        kubernetes_validate.validate(inside, "1.32", strict=True)


@pytest.mark.parametrize("case", GKE)
def test_manifests_fit_the_schemas_of_jobset_and_kubernetes(case):
    check_schema(manifest_of(*GKE[case]))


@pytest.mark.parametrize(
    "path, value",
    [
        ("spec.failurePolicy.maxRestart", 1),
        ("spec.replicatedJobs.0.replicas", "2"),
        ("spec.replicatedJobs.0.template.spec.parallelism", "4"),
        ("spec.replicatedJobs.0.template.spec.template.spec.nodeSelectors", {"a": "b"}),
        ("spec.replicatedJobs.0.template.spec.template.spec.containers.0.ports", [{"port": 1}]),
    ],
)
def test_the_schemas_find_a_wrong_field(path, value):
    pytest.importorskip("kubernetes_validate", reason="pip install 'sora_jax[ci]'")
    manifest = copy.deepcopy(manifest_of(*GKE["one slice"]))
    *outer, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = manifest
    for key in outer:
        place = place[key]
    place[last] = value
    with pytest.raises(Exception) as error:
        check_schema(manifest)
    assert type(error.value).__name__ == "ValidationError"


def test_gke_hands_the_manifest_to_kubectl_and_follows_and_deletes_it_by_name(programs):
    create = ["create", "--name=first", "--image=i", *V5P, *TRAIN]
    assert launch("gke.py", *create, **programs).returncode == 0
    first, *manifest = calls(programs)
    assert first == "kubectl apply --filename=-"
    dry = launch("gke.py", "create", "--dry-run", *create[1:]).stdout.splitlines()
    assert manifest == dry[1:-1]
    for action in ("status", "logs", "delete"):
        assert launch("gke.py", action, "--name=first", **programs).returncode == 0
    asked = calls(programs)[-4:]
    assert asked[0] == "kubectl get jobset first" and asked[-1] == "kubectl delete jobset first"
    assert "jobset-name=first" in asked[1] and "job-completion-index=0" in asked[2]


def test_xpk_is_asked_for_the_slices_and_the_command_with_its_variables(programs):
    where = ["--name=first", "--cluster=pods", "--zone=z", "--project=p", "--image=i"]
    assert launch("xpk.py", *where, *V5P, "--slices=2", *TRAIN, **programs).returncode == 0
    (asked,) = calls(programs)
    assert asked.startswith("xpk workload create --workload=first ")
    assert "--tpu-type=v5p-128 --num-slices=2" in asked
    assert "SORA_JAX_NUM_DEVICES=128" in asked and asked.endswith("'--workdir=/data/runs/a first'")
    assert "--tpu-type=tpu7x-4x4x4" in printed("xpk.py", *where, "--chip=v7x", "--topology=4x4x4", *TRAIN)


def test_a_mistake_of_input_fails_a_jobset_and_anything_else_begins_it_again():
    manifest = manifest_of(*GKE["two slices"], "--restarts=10")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 10
    (rule,) = policy["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (fails,) = parts_of(manifest)[1]["podFailurePolicy"]["rules"]
    assert fails["action"] == "FailJob" and fails["onExitCodes"]["values"] == [2]
    assert parts_of(manifest)[2]["restartPolicy"] == "Never"  # a pod failure policy needs it


VM = ["--name=first", "--zone=us-east5-a"]


@pytest.mark.parametrize(
    "chips, kind, nodes",
    [
        (V5P, "v5p-128", ["--node-id=first"]),
        (
            ["--chip=v5e", "--topology=4x4", "--slices=3"],
            "v5litepod-16",
            ["--node-count=3", "--node-prefix=first"],
        ),
        (["--chip=v6e", "--topology=16x16"], "v6e-256", ["--node-id=first"]),
    ],
)
def test_queued_resources_are_asked_for_by_accelerator_type(programs, chips, kind, nodes):
    assert launch("tpu_vm.py", "create", *VM, *chips, "--spot", "--valid-until=6h", **programs).returncode == 0
    (asked,) = calls(programs)
    assert asked.startswith("gcloud compute tpus queued-resources create first ")
    for word in (*nodes, f"--accelerator-type={kind}", "--spot", "--valid-until-duration=6h", "--zone=us-east5-a"):
        assert word in asked.split()


def test_a_run_on_tpu_vms_goes_to_every_machine_of_every_slice(programs):
    two = [*VM, "--chip=v6e", "--topology=4x4", "--slices=2"]
    for action in ("wait", "setup", "run", "logs", "stop", "delete"):
        done = launch("tpu_vm.py", action, *two, *(TRAIN if action == "run" else []), **programs)
        assert done.returncode == 0, (action, done.stderr)
    asked = calls(programs)
    of = {word: [line for line in asked if f" {word} " in line] for word in ("scp", "ssh")}
    copies = [line.split()[6:8] for line in of["scp"]]
    assert copies == [[f"first-{n}:sora_jax.tar.gz", "--worker=all"] for n in (0, 1)]
    runs = [line for line in of["ssh"] if "nohup" in line]
    assert [line.split()[5] for line in runs] == ["first-0", "first-1"]
    assert all("SORA_JAX_NUM_PROCESSES=8 SORA_JAX_NUM_DEVICES=32" in line for line in runs)
    (logs,) = [line for line in of["ssh"] if "tail" in line]
    assert "first-0" in logs and "--worker=0" in logs
    assert asked[-1].startswith("gcloud compute tpus queued-resources delete first --force --quiet")


def test_the_archive_for_tpu_vms_is_the_last_commit(programs, tmp_path):
    catcher = tmp_path / "gcloud"
    catcher.write_text('#!/bin/bash\ncase "$*" in *scp*) cp "$5" "$STATES.tar.gz" ;; esac\n')
    if not shutil.which("git", path=programs["path"]):
        pytest.skip("git is not installed")
    done = launch("tpu_vm.py", "setup", *VM, *V5P, **programs)
    if "not a git repository" in done.stderr:
        pytest.skip("not a checkout of git's")
    assert done.returncode == 0, done.stderr
    held = subprocess.run(["tar", "-tzf", f"{programs['STATES']}.tar.gz"], capture_output=True, text=True).stdout
    assert {"pyproject.toml", "constraints.txt", "sora_jax/cli/main.py"} <= set(held.splitlines())


@pytest.mark.parametrize(
    "states, code", [(["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], 0), (["PROVISIONING", "FAILED"], 2)]
)
def test_waiting_ends_when_the_machines_are_there_or_will_not_be(programs, states, code):
    pathlib.Path(programs["STATES"]).write_text("\n".join(states) + "\n")
    done = launch("tpu_vm.py", "wait", *VM, *V5P, "--every=1", **programs)
    assert done.returncode == code
    assert done.stdout.splitlines() == [f"first: {state}" for state in states]
    if code:
        assert "first is FAILED" in done.stderr and done.stderr.count("\n") == 1


def test_small_slices_are_one_host_on_tpu_vms():
    line = printed("tpu_vm.py", "run", *VM, "--chip=v5e", "--topology=2x4", *TRAIN)
    assert "SORA_JAX_NUM_PROCESSES=1 SORA_JAX_NUM_DEVICES=8" in line


def batch_script(*arguments) -> str:
    text = printed("slurm.py", "submit", "--name=first", "--time=24:00:00", *arguments, *TRAIN)
    first, *lines, last = text.splitlines()
    assert (first, last) == ("sbatch <<'EOF'", "EOF")
    return "\n".join(lines) + "\n"


def test_slurm_starts_one_process_a_host_with_all_of_its_gpus(programs):
    script = batch_script("--chip=h100", "--hosts=4", "--partition=gpu")
    for line in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=24:00:00", "--partition=gpu"):
        assert f"#SBATCH {line}\n" in script
    assert "--account" not in script
    assert "export SORA_JAX_NUM_PROCESSES=4\nexport SORA_JAX_NUM_DEVICES=32\n" in script
    start = (
        "srun --kill-on-bad-exit=1 --label python -m sora_jax.cluster.supervisor --restarts=0 -- sora-jax train "
    )
    assert f"{start}--config=configs/t2v_14b.py '--workdir=/data/runs/a first' || code=$?\n" in script
    submit = ["submit", "--name=first", "--time=1:00:00", "--chip=h100", *TRAIN]
    assert launch("slurm.py", *submit, **programs).returncode == 0
    assert launch("slurm.py", "cancel", "--name=first", **programs).returncode == 0
    asked = calls(programs)
    assert asked[:2] == ["sbatch ", "#!/bin/bash"] and asked[-1] == "scancel --me --name=first"


@pytest.mark.parametrize(
    "code, count, restarts, requeued",
    [
        (0, 0, 3, False),
        (75, 0, 3, True),
        (137, 2, 3, True),
        (137, 3, 3, False),
        (2, 0, 3, False),
        (75, 0, 0, False),
    ],
)
def test_a_slurm_job_goes_back_into_the_queue_unless_done_or_mistaken(programs, code, count, restarts, requeued):
    script = batch_script("--chip=h100", f"--restarts={restarts}")
    assert f"#SBATCH --{'requeue' if restarts else 'no-requeue'}\n" in script
    folder = pathlib.Path(programs["path"].split(":")[0])
    for name, text in (("srun", f"exit {code}"), ("scontrol", 'echo "$@"')):
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    told = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(count)}
    done = subprocess.run(["bash"], input=script, env=told, capture_output=True, text=True)
    assert done.stdout == ("requeue 7\n" if requeued else "") and not done.stderr
    assert done.returncode == (0 if requeued else code)


def shellcheck(*arguments, text=None):
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    if not program:
        pytest.skip("no shellcheck: pip install 'sora_jax[ci]'")
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, cwd=ROOT)


def test_shell_scripts_pass_shellcheck():
    scripts = [*(path.relative_to(ROOT) for path in (ROOT / "launch").glob("*.sh")), pathlib.Path(".ci/run")]
    assert len(scripts) > 3
    done = shellcheck("--external-sources", *map(str, scripts))
    assert done.returncode == 0, done.stdout
    done = shellcheck("-", text=batch_script("--chip=h200", "--hosts=2"))
    assert done.returncode == 0, done.stdout
    for action in ("setup", "run", "stop"):
        lines = printed("tpu_vm.py", action, *VM, *V5P, *(TRAIN if action == "run" else [])).splitlines()
        (remote,) = [word.partition("=")[2] for word in shlex.split(lines[-1]) if word.startswith("--command=")]
        done = shellcheck("-", text=f"#!/bin/bash\n{remote}\n")
        assert done.returncode == 0, done.stdout
    assert shellcheck("-", text="#!/bin/bash\necho $1\n").returncode == 1


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        (
            "gke.py",
            ["create", "--name=a", "--image=i", "--chip=v5x", *TRAIN],
            "--chip=v5x: no such chip, did you mean",
        ),
        ("gke.py", ["create", "--name=a", "--image=i", "--chip=v5e", "--topology=4x5", *TRAIN], "known: 1x1, 2x2"),
        ("gke.py", ["create", "--name=a", "--image=i", "--chip=v5p", "--topology=8x4x4", *TRAIN], "A <= B <= C"),
        ("gke.py", ["create", "--name=a", "--image=i", "--chip=v5p", "--topology=16x16x32", *TRAIN], "6144 chips"),
        (
            "gke.py",
            ["create", "--name=a", "--image=i", "--chip=h100", "--topology=2x2", *TRAIN],
            "come as --hosts",
        ),
        ("gke.py", ["create", "--name=a", "--image=i", *V5P, "--hosts=2", *TRAIN], "follow from its --topology"),
        (
            "gke.py",
            ["create", "--name=a", "--image=i", "--chip=v5e", "--topology=2x2", "--slices=2", *TRAIN],
            "one host",
        ),
        ("gke.py", ["create", "--name=a", "--image=i", *V5P], "no command; it comes after --"),
        ("gke.py", ["create", "--name=A_b", "--image=i", *V5P, *TRAIN], "'A_b': use at most 40"),
        ("gke.py", ["create", "--name=a", "--image=i", *V5P, "--restarts=-1", *TRAIN], "needed, 0 or more"),
        ("gke.py", ["creat"], "did you mean 'create'?"),
        ("gke.py", [], "no action; one of create"),
        ("gke.py", ["delete"], "--name"),
        (
            "xpk.py",
            ["--name=a", "--cluster=c", "--zone=z", "--project=p", "--image=i", "--chip=h100", *TRAIN],
            "gke.py",
        ),
        ("tpu_vm.py", ["create", *VM, "--chip=v7x", "--topology=4x4x4"], "is not available as TPU VMs"),
        ("tpu_vm.py", ["run", *VM, *V5P], "no command"),
        ("slurm.py", ["submit", "--name=a", "--time=1h", "--chip=h100", *TRAIN], "'1h': write hours"),
        ("slurm.py", ["submit", "--name=a", "--time=1:00", *V5P, *TRAIN], "Slurm has GPUs"),
        ("local.py", ["--processes=3", "--devices=8", *TRAIN], "can't be divided by it; use one of 1, 2, 4, 8"),
        ("local.py", ["--processes=0", "--devices=8", *TRAIN], "a whole number is needed, 1 or more"),
        ("local.py", ["--process=2", "--devices=8", *TRAIN], "did you mean '--processes'?"),
    ],
)
def test_mistakes_are_told_in_one_line(script, arguments, words):
    done = launch(script, *arguments)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize(
    "script, arguments, program",
    [
        ("gke.py", ["delete", "--name=a"], "kubectl"),
        ("tpu_vm.py", ["delete", *VM, *V5P], "gcloud"),
        ("tpu_vm.py", ["wait", *VM, *V5P], "gcloud"),
        ("slurm.py", ["status", "--name=a"], "squeue"),
        ("local.py", ["--processes=1", "--devices=1", "--", "sora-jaxx"], "sora-jaxx"),
    ],
)
def test_a_missing_program_is_told_with_how_to_install_it(script, arguments, program):
    done = launch(script, *arguments, path="/nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{program}: no such program here; " in done.stderr and len(done.stderr) > 50


def test_a_program_that_fails_fails_the_launcher(programs):
    done = launch("gke.py", "delete", "--name=a", STATUS="3", **programs)
    assert done.returncode == 2 and "ended with exit code 3" in done.stderr


def test_commands_in_the_guide_are_understood():
    """Every command line of docs/guide/launching.md that starts a launcher is accepted, up to the run itself."""
    text = (ROOT / "docs/guide/launching.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^ *python (launch/\w+\.py) (.*)$", text, re.MULTILINE)
    assert len(found) > 12
    for script, rest in found:
        words = shlex.split(rest)
        action = [] if words[0].startswith("-") else [words.pop(0)]
        extra = [] if script == "launch/pod.py" or "--dry-run" in words else ["--dry-run"]
        done = launch(script.removeprefix("launch/"), *action, *extra, *words, path="/nowhere")
        assert done.returncode == 0, (script, rest, done.stderr)
