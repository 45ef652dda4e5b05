"""launch/local.py with real processes: each has its log, and none outlives another's failure."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from processes import alive

ROOT = pathlib.Path(__file__).parent.parent.parent
TOLD = ("SORA_JAX_PROCESS_ID", "SORA_JAX_COORDINATOR", "JAX_NUM_CPU_DEVICES")
SAY = f"import os; print(*(os.environ[name] for name in {TOLD}))"


def start(tmp_path, program, *options):
    options = options or ("--processes=2", "--devices=8", "--platform=cpu")
    return subprocess.Popen(
        [
            sys.executable,
            ROOT / "launch/local.py",
            *options,
            f"--logs={tmp_path}/logs",
            "--",
            sys.executable,
            "-c",
            program,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def logs(tmp_path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in sorted((tmp_path / "logs").iterdir())]


def test_each_process_is_told_which_it_is_and_has_its_log(tmp_path):
    process = start(tmp_path, SAY)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (first,), (second,) = logs(tmp_path)
    assert first.split()[0::2] == ["0", "4"] and second.split()[0::2] == ["1", "4"]
    assert first.split()[1] == second.split()[1]
    assert out.splitlines() == [first]  # the first one's on the terminal as well


def test_gpus_are_shared_out(tmp_path):
    program = "import os; print(os.environ['JAX_LOCAL_DEVICE_IDS'], os.environ['JAX_PLATFORMS'])"
    process = start(tmp_path, program, "--processes=2", "--devices=8")
    assert process.wait(60) == 0
    assert logs(tmp_path) == [["0,1,2,3 cuda,cpu"], ["4,5,6,7 cuda,cpu"]]


# Says its process id and that of a child, then waits for ever; number 1 fails once the other one is there.
FAIL = """
import os, pathlib, subprocess, sys, time
here = pathlib.Path({folder!r})
me = os.environ["SORA_JAX_PROCESS_ID"]
child = subprocess.Popen(["sleep", "600"])
print(os.getpid(), child.pid, flush=True)
(here / me).touch()
while not all((here / n).exists() for n in "01"):
    time.sleep(0.02)
if me == "1":
    sys.exit("disk full")
time.sleep(600)
"""


def test_when_one_dies_the_others_are_stopped_with_all_that_they_started(tmp_path):
    process = start(tmp_path, FAIL.format(folder=str(tmp_path)))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 1: disk full" in err and "process 1 ended with exit code 1, the others are stopped" in err
    pids = [int(pid) for lines in logs(tmp_path) for pid in lines[0].split()]
    assert len(pids) == 4 and not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_of_them(tmp_path, number, code):
    process = start(tmp_path, FAIL.format(folder=str(tmp_path)).replace('me == "1"', "False"))
    deadline = time.monotonic() + 60
    while not all((tmp_path / n).exists() for n in "01") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    pids = [int(pid) for lines in logs(tmp_path) for pid in lines[0].split()]
    assert len(pids) == 4 and not any(alive(pid) for pid in pids)
