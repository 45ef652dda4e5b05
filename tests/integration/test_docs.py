"""Commands and links in the documents are valid."""

import pathlib
import re

from sora_jax.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_commands_in_the_documents_use_flags_that_exist():
    commands = []
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        # A command goes on after a backslash at the end of its line.
        text = path.read_text().replace("\\\n", " ")
        names = "|".join(sorted(COMMANDS, key=len, reverse=True))
        found = re.findall(rf"^ *sora-jax ({names}|[a-z]+)\b(?!:)(.*)$", text, re.M)
        commands += [(path.name, *command) for command in found]
    assert len(commands) > 5
    for where, name, rest in commands:
        used = set(re.findall(r"--([a-z-]+)", rest.split("#")[0])) - {"help", "config"}
        assert name in COMMANDS and used <= {flag.name for flag in COMMANDS[name].all_flags}, (where, name, used)


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
