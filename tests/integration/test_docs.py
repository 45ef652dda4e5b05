"""What the documents name exists: commands, config keys, links, paths; and every page is short."""

import dataclasses
import pathlib
import re
import shlex

import pytest

from sora_jax.cli.commands import COMMANDS
from sora_jax.cli.config_flags import check_key
from sora_jax.cli.main import parse, split_name, underscored
from sora_jax.config.load import to_config
from sora_jax.config.schema import Settings

ROOT = pathlib.Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MOST_LINES = 250
GROUPS = "|".join(field.name for field in dataclasses.fields(Settings) if dataclasses.is_dataclass(field.type))
# Names that the code had before the field's; of no other use in English, so that a match is a remainder.
OLD_NAMES = re.compile(
    r"\b(verbs?|doors?|upkeep|footage|judges|echoes|unlatent|hold_known|told_time|rotary_turns|row_patches|row_tokens"
    r"|row_clips|row_levels|of_few|on_first|in_all|wait_for_all|mendable|whole_times"
    r"|context=\d)\b"
)

pages = pytest.mark.parametrize("page", PAGES, ids=NAMES)


def commands(text: str) -> list[str]:
    """Every `sora-jax ...` line; a command goes on after a backslash at the end of its line."""
    found = re.findall(
        r"^ *(?:\$ |[A-Z_]+=\S+ )*(?:\.venv/bin/)?sora-jax (\S.*)$", text.replace("\\\n", " "), re.M
    )
    return [command.split(" # ")[0].replace(" ... ", " ").removesuffix(" ...") for command in found]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).replace(" ", "-") for title in titles}


@pages
def test_a_page_has_at_most_250_lines(page):
    assert len(page.read_text().splitlines()) <= MOST_LINES


@pages
def test_every_command_on_a_page_parses(page):
    for command in commands(page.read_text()):
        if "no such" in command or command.startswith(("COMMAND", "trian", "--")):
            continue  # an example of an error, or of the form of a command
        name, arguments = split_name(shlex.split(command))
        assert name in COMMANDS, command
        if "--help" in arguments:
            continue
        # Settings of a workdir that the reader has; configs/ is here.
        arguments = [argument for argument in arguments if not argument.endswith("/settings.json")]
        try:
            parse(COMMANDS[name], [name, *map(underscored, arguments)])
        except Exception as error:
            raise AssertionError(f"{page.name}: sora-jax {command}: {error}") from error


@pages
def test_every_config_key_on_a_page_exists(page):
    defaults = to_config(Settings()).to_dict()
    if page.name == "CHANGELOG.md":
        return  # it names the keys of before
    for group, key in re.findall(rf"`(?:--)?(?:config\.)?({GROUPS})\.([a-z_0-9]+)(?:=[^`]*)?`", page.read_text()):
        if key not in ("py", "md", "mp4"):
            check_key([group, key], defaults, "config")


@pages
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" in target:
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path.read_text()), f"{page.name}: {target}#{anchor}"


@pages
def test_every_path_of_the_repository_on_a_page_exists(page):
    whole = r"(?<![\w/.-])((?:configs|tests|sora_jax|launch|docs)/[\w/.-]*\w)"
    for path in re.findall(whole, page.read_text()):
        assert (ROOT / path).exists(), f"{page.name}: {path}"
    for path in re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page.read_text()):
        if not (ROOT / "sora_jax" / path.split("/")[0]).is_dir():
            continue  # of another project, such as Wan's
        assert (ROOT / path).exists() or (ROOT / "sora_jax" / path).exists(), f"{page.name}: {path}"


@pages
def test_no_page_has_a_name_of_before(page):
    if page.name not in ("CHANGELOG.md", "refactoring.md"):
        assert not OLD_NAMES.findall(page.read_text())


def test_every_page_that_the_code_names_exists():
    for folder in ("sora_jax", "configs", "launch", "tests"):
        for file in (ROOT / folder).rglob("*.*"):
            if file.suffix in (".py", ".sh", ".toml"):
                for path in re.findall(r"docs/[\w/]+\.md", file.read_text()):
                    assert (ROOT / path).exists(), f"{file.relative_to(ROOT)}: {path}"


def test_the_documents_have_commands_to_check():
    assert sum(len(commands(page.read_text())) for page in PAGES) > 50
