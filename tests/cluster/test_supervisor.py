"""The supervisor with real processes, which say how far they are as a training process does."""

import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from processes import alive

from sora_jax.cluster import supervisor
from sora_jax.cluster.supervisor import Rules, supervise

# Number `try_` of process `me`; a test's own lines follow, which say what becomes of it.
PROGRAM = """
import os, pathlib, signal, sys, time
from sora_jax.cluster.heartbeat import DONE, PREEMPTED, TRAINING, Heartbeat

heartbeat, me, folder = Heartbeat(), int(sys.argv[1]), pathlib.Path(sys.argv[2])
tries = folder / f"tries-{me}"
try_ = len(tries.read_text()) if tries.exists() else 0
tries.write_text("." * (try_ + 1))

def train(start, step):
    heartbeat.start = start
    heartbeat.beat(TRAINING, step)

def together():
    "Wait until all processes have come as far."
    (folder / f"here-{try_}-{me}").touch()
    while not all((folder / f"here-{try_}-{n}").exists() for n in range(2)):
        time.sleep(0.01)

"""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(supervisor, "POLL", 0.02)
    monkeypatch.setattr(supervisor, "FAILURE_GRACE", 0.1)


def run(tmp_path, lines: str, **rules) -> tuple[int, int]:
    """(exit code, how often both processes were started)."""
    command = [sys.executable, "-c", PROGRAM + lines]
    asked = []

    def commands():
        asked.append(0)
        return [({}, [*command, str(me), str(tmp_path)]) for me in range(2)]

    return supervise(commands, tmp_path / "logs", Rules(**rules)), len(asked)


def test_when_one_is_killed_all_restart(tmp_path, capfd):
    code, tries = run(
        tmp_path,
        """
train(0, 7)
print("try", try_, flush=True)
together()
if me == 1 and try_ == 0: os.kill(os.getpid(), signal.SIGKILL)
if try_ == 0: time.sleep(600)
print("done by", me, flush=True)
""",
    )
    assert (code, tries) == (0, 2)
    assert "process 1 ended with SIGKILL at step 7, the others are stopped" in capfd.readouterr().err
    for me in range(2):
        before, _, after = (tmp_path / f"logs/process-{me}.log").read_text().partition("--- restarted, ")
        assert before == "try 0\n" and after.endswith(f" ---\ntry 1\ndone by {me}\n")


def test_what_a_log_held_before_stays(tmp_path):
    for word in ("first", "second"):
        assert run(tmp_path, f"print('{word}', me)") == (0, 1)
    text = (tmp_path / "logs/process-1.log").read_text()
    assert re.fullmatch(r"first 1\n--- restarted, .* ---\nsecond 1\n", text)


@pytest.mark.parametrize("lines", ["time.sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_one_that_hangs_is_found_by_its_silence(tmp_path, capfd, lines):
    code, tries = run(
        tmp_path,
        f"""
for step in range(30):
    train(0, step)
    time.sleep(0.02)
    if me == 0 and try_ == 0 and step == 20: {lines}
""",
        hang=0.4,
    )
    assert (code, tries) == (0, 2)
    assert "process 0 gave no heartbeat for 0.4 s at step 2" in capfd.readouterr().err


def test_a_start_may_take_longer_than_an_update(tmp_path):
    assert run(tmp_path, "heartbeat.beat('starting'); time.sleep(0.8)", hang=0.2) == (0, 1)


def test_restarts_are_bounded_and_a_later_start_begins_the_count_anew(tmp_path, capfd):
    assert run(tmp_path, "train(0, 7); together(); sys.exit(3)", restarts=2) == (3, 3)
    err = capfd.readouterr().err
    assert "2 more times while there is no new checkpoint" in err and "1 more times" in err
    gains = "train(10 * min(try_, 3), 99); together(); sys.exit(3)"
    (tmp_path / "gains").mkdir()
    assert run(tmp_path / "gains", gains, restarts=2) == (3, 6)


@pytest.mark.parametrize(
    "lines, code",
    [("train(0, 7); together(); sys.exit(2)", 2), ("sys.exit('before it trains: a fault of the program')", 1)],
)
def test_what_no_restart_mends_is_not_tried_again(tmp_path, lines, code):
    assert run(tmp_path, lines) == (code, 1)


def test_processes_that_do_not_find_each_other_are_begun_again(tmp_path):
    assert run(tmp_path, "together(); sys.exit(75 if try_ == 0 else 0)") == (0, 2)


SAVES = """
def save(*_):
    heartbeat.beat(PREEMPTED, 8)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
train(0, 7)
together()
"""


def test_a_run_that_was_told_to_end_goes_on_if_nobody_told_the_supervisor(tmp_path, capfd):
    lines = SAVES + "if try_ == 0: os.kill(os.getpid(), signal.SIGTERM); time.sleep(600)"
    assert run(tmp_path, lines, restarts=1) == (0, 2)
    assert "stopped, and saved after step 8; all restart in 0 s" in capfd.readouterr().err


def test_on_a_host_the_supervisor_that_is_told_to_end_says_that_the_run_is_not_done(tmp_path):
    program = PROGRAM + SAVES.replace("together()", "print('trains', flush=True); time.sleep(600)")
    for name, code in ((signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sora_jax.cluster.supervisor",
                "--",
                sys.executable,
                "-c",
                program,
                "0",
                str(tmp_path),
            ],
            cwd=pathlib.Path(__file__).parent.parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "trains\n"
        process.send_signal(name)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
    assert (tmp_path / "tries-0").read_text() == "..."


def test_the_supervisor_of_a_host_refuses_what_it_can_not_run(capsys):
    for arguments, words in (
        ([], "no command"),
        (["--hang=-1", "--", "true"], "'-1': a number is needed"),
        (["--", "sora-jaxx"], "sora-jaxx: no such program"),
        (["--restart=2", "--", "true"], "--restart"),
    ):
        assert supervisor.main(arguments) == 2
        assert words in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_no_process_outlives_a_try(tmp_path):
    lines = """
import subprocess
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
together()
sys.exit(me)
"""
    assert run(tmp_path, lines)[0] == 1
    deadline = time.monotonic() + 5
    for me in range(2):
        pid = int((tmp_path / f"logs/process-{me}.log").read_text())
        while alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path):
    """Nor what it started, nor one that ignores SIGTERM."""
    program = """
import os, signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), subprocess.Popen(["sleep", "600"]).pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-m", "sora_jax.cluster.supervisor", "--grace=0.3", "--", sys.executable, "-c", program],
        cwd=pathlib.Path(__file__).parent.parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
