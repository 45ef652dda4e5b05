"""The page of `evaluate --vote`: two videos of one prompt, sides drawn at random, names hidden."""

import contextlib
import dataclasses
import itertools
import pathlib
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence

import fastapi
import fastapi.responses
import pydantic
import rich.console

from sora_jax.core.errors import InputError
from sora_jax.evaluate.benchmark import terminal_table
from sora_jax.evaluate.votes import LEFT, RIGHT, TIE, Vote, append_vote, read_votes, vote_sections
from sora_jax.report.page import Table, write_page
from sora_jax.serve.request_filter import LOCAL, RequestFilter
from sora_jax.serve.server import listen, serve_app

VOTES = "votes.jsonl"
PAGE = pathlib.Path(__file__).with_name("vote.html")
MAX_NAME = 64  # characters of a voter's name
MAX_BODY = 2**20  # bytes of what the page sends


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two videos of a prompt, by their subjects."""

    name: str
    prompt: str
    videos: Mapping[str, pathlib.Path]


def make_pairs(videos: Mapping[str, Sequence[tuple[str, pathlib.Path]]]) -> list[Pair]:
    """Every two subjects' videos of each prompt.

    Args:
      videos: subject -> (prompt, file), in the same order of prompts for all.
    Raises: InputError if they are not of the same prompts, or there are not two subjects.
    """
    if len(videos) < 2:
        raise InputError("--vote: needs two checkpoints or more, to compare; give --checkpoint again")
    first, *others = videos
    for other in others:
        if [prompt for prompt, _ in videos[other]] != [prompt for prompt, _ in videos[first]]:
            raise InputError(f"--vote: {first} and {other} have not videos of the same prompts")
    pairs = []
    for number, (prompt, _) in enumerate(videos[first]):
        for a, b in itertools.combinations(videos, 2):
            files = {name: videos[name][number][1] for name in (a, b)}
            pairs.append(Pair(f"{number:05} {a} {b}", prompt, files))
    return pairs


class Ballot(pydantic.BaseModel):
    """What the page sends for a vote."""

    voter: str = pydantic.Field(min_length=1, max_length=MAX_NAME)
    pair: str
    choice: str = pydantic.Field(pattern=f"^({LEFT}|{RIGHT}|{TIE})$")


class VotingSession:
    """Which pair a voter sees next, on which sides, and the file of votes."""

    def __init__(self, pairs: Sequence[Pair], path: pathlib.Path):
        self.pairs, self.path = {pair.name: pair for pair in pairs}, path
        self.shown: dict[str, tuple[Pair, str, str]] = {}  # token of a showing -> pair, subject on the left, right
        self.files: dict[str, pathlib.Path] = {}
        self.lock = threading.Lock()

    def next(self, voter: str, again: str = "") -> dict:
        """The pair that this voter shall see: a given showing again, or one that nobody or few have seen."""
        with self.lock:
            votes = read_votes(self.path)
            mine = {vote.pair for vote in votes if vote.voter == voter} & set(self.pairs)
            progress = {"done": len(mine), "total": len(self.pairs)}
            if again in self.shown:
                return progress | self._showing(again)
            open_pairs = [name for name in self.pairs if name not in mine]
            if not open_pairs:
                return progress | {"pair": None}
            times = {name: sum(vote.pair == name for vote in votes) for name in open_pairs}
            fewest = min(times.values())
            pair = self.pairs[random.choice([name for name in open_pairs if times[name] == fewest])]
            left, right = random.sample(sorted(pair.videos), 2)
            token = secrets.token_urlsafe(12)
            self.shown[token] = pair, left, right
            self.files |= {f"{token}-{LEFT}": pair.videos[left], f"{token}-{RIGHT}": pair.videos[right]}
            return progress | self._showing(token)

    def _showing(self, token: str) -> dict:
        pair, _, _ = self.shown[token]
        sides = {side: f"video/{token}-{side}.mp4" for side in (LEFT, RIGHT)}
        return {"pair": token, "prompt": pair.prompt, **sides}

    def vote(self, ballot: Ballot):
        pair, left, right = self.shown[ballot.pair]
        with self.lock:
            append_vote(
                self.path, Vote(ballot.voter, pair.name, pair.prompt, left, right, ballot.choice, time.time())
            )


def make_vote_app(session: VotingSession) -> fastapi.FastAPI:
    """The web application."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def page():
        return fastapi.responses.HTMLResponse(PAGE.read_text(encoding="utf-8"))

    @app.get("/next")
    def following(voter: str = fastapi.Query(min_length=1, max_length=MAX_NAME), pair: str = ""):
        return session.next(voter, pair)

    @app.get("/video/{name}.mp4")
    def video(name: str):
        if name not in session.files:
            return _refusal("not here")
        return fastapi.responses.FileResponse(session.files[name], media_type="video/mp4")

    @app.post("/vote")
    def vote(ballot: Ballot):
        if ballot.pair not in session.shown:
            return _refusal("this pair was shown before the server began; load the page again")
        session.vote(ballot)
        return {}

    return app


def _refusal(reason: str):
    return fastapi.responses.PlainTextResponse(reason, 404)


def serve_votes(
    pairs: Sequence[Pair], out: pathlib.Path, *, address: tuple[str, int], console: rich.console.Console
):
    """Serve the page until Ctrl-C, then report the votes.

    Args:
      pairs: what is shown.
      out: folder of the file of votes, which an earlier call may have begun, and of the report.
      address: (host, port) that the server listens at.
    Raises: InputError if the port is taken, or the file holds no votes.
    """
    path = out / VOTES
    read_votes(path)
    if address[0] not in LOCAL:
        console.print(f"note: everybody who reaches {address[0]} can vote: there are no passwords")
    with listen(*address) as listening:
        app = RequestFilter(make_vote_app(VotingSession(pairs, path)), host=address[0], max_body=MAX_BODY)
        what = f"{len(pairs)} pairs of videos to vote on; votes go into {path}; Ctrl-C ends it"
        with contextlib.suppress(KeyboardInterrupt):
            serve_app(app, listening, address, what, console)
    report_votes(read_votes(path), out, console)


def report_votes(votes: Sequence[Vote], out: pathlib.Path, console: rich.console.Console):
    """Print what the votes say, and write it as votes.html."""
    sections = vote_sections(votes)
    if not sections:
        console.print("no votes yet", highlight=False)
        return
    for section in sections:
        for table in section.parts:
            if isinstance(table, Table):
                console.print(terminal_table(table.header, table.rows))
        console.print(section.note, highlight=False)
    write_page(out / "votes.html", "Votes", sections[0].note, sections)
    console.print(f"report: {out / 'votes.html'}", highlight=False)
