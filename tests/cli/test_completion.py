"""Completion in the shells themselves: keys are typed into an interactive shell, and its line is read."""

import os
import pty
import re
import select
import shutil
import subprocess
import time

import pytest

from sora_jax.cli import completion

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {script}"),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -D; source {script}"),
    "fish": (["fish", "--no-config", "-i"], "source {script}"),
}


class Shell:
    """An interactive shell on a terminal."""

    def __init__(self, name: str, folder):
        (folder / "script").write_text(completion.script(name))
        (folder / "prompts.txt").write_text("a cat\n")
        command, source = START[name]
        self.terminal, inner = pty.openpty()
        environment = os.environ | {"TERM": "dumb", "PS1": "$ ", "HOME": str(folder), "HISTFILE": ""}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=environment
        )
        os.close(inner)
        # The quotes keep the line itself, which the terminal echoes, from being taken for its output.
        self.type(source.format(script=folder / "script") + "; echo rea''dy\n", until="ready")

    def type(self, text: str, *, until: str) -> str:
        """Type into the shell, and return what it shows up to a pattern."""
        os.write(self.terminal, text.encode())
        shown, end = "", time.monotonic() + 20
        while not re.search(until, shown):
            left = end - time.monotonic()
            assert left > 0 and select.select([self.terminal], [], [], left)[0], f"no {until!r} in {shown!r}"
            shown += os.read(self.terminal, 4096).decode(errors="replace")
        return shown

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture(scope="module", params=START)
def shell(request, tmp_path_factory):
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    made = Shell(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.close()


CANCEL = "\x15"  # Ctrl-U clears the line


@pytest.mark.parametrize(
    "typed, completed",
    [
        ("sora-jax samp", "sora-jax sample "),
        ("sora-jax checkpoint pr", "sora-jax checkpoint prune "),
        ("sora-jax sample --prompts=prom", "prompts.txt"),
        ("sora-jax sample --neg", "--negative-prompt[= ]"),
        ("sora-jax sample --solver=uni", "--solver=unipc"),
        ("sora-jax checkpoint prune --keep-e", "--keep-every[= ]"),
        ("sora-jax train --config.optimizer.lear", "--config.optimizer.learning_rate[= ]"),
        ("sora-jax data verify --da", "--data[= ]"),
    ],
)
def test_a_tab_completes_what_is_typed(shell, typed, completed):
    shell.type(f"{CANCEL}{typed}\t", until=completed)


@pytest.mark.parametrize("name", START)
def test_a_script_names_every_flag_of_every_command(name):
    text = completion.script(name)
    assert not re.search("@[a-z]+@", text)
    for command in completion._commands().values():
        assert all(flag.name in text for flag in command.all_flags)
