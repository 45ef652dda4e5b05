"""What the documents say of flags and files is so."""

import pathlib
import re

import pytest
from absl import flags

from sora_jax.cli.main import VERBS

ROOT = pathlib.Path(__file__).parent.parent.parent


def chapters() -> dict[str, str]:
    """The chapter of docs/reference/commands.md on each verb."""
    text = (ROOT / "docs/reference/commands.md").read_text()
    titles = re.split(r"^## (.+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(titles[::2], titles[1::2], strict=True))


def defined(verb: str) -> set[str]:
    values = flags.FlagValues()
    VERBS[verb].define(values)
    return {name.replace("_", "-") for name in values}


def test_every_verb_has_its_chapter():
    assert set(chapters()) - {"The config"} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_is_in_its_table_and_no_other(verb):
    rows = re.findall(r"^\| `--([a-z-]+)` \|", chapters()[verb], re.MULTILINE)
    assert sorted(rows) == sorted(defined(verb))


def test_commands_in_the_documents_use_flags_that_exist():
    commands = []
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        # A command goes on after a backslash at the end of its line.
        text = path.read_text().replace("\\\n", " ")
        verbs = "|".join(sorted(VERBS, key=len, reverse=True))
        found = re.findall(rf"^ *sora-jax ({verbs}|[a-z]+)\b(?!:)(.*)$", text, re.M)
        commands += [(path.name, *command) for command in found]
    assert len(commands) > 5
    for where, verb, rest in commands:
        used = set(re.findall(r"--([a-z-]+)", rest.split("#")[0])) - {"help", "config"}
        assert verb in VERBS and used <= defined(verb), (where, verb, used)


def test_links_between_documents_lead_somewhere():
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
