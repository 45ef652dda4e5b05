"""A chat model behind an OpenAI-compatible endpoint, with retries, a rate limit and a budget.

Of the protocol one POST and one field of its answer are used, so `requests` is enough. Every try is counted,
because each may cost.
"""

import dataclasses
import email.utils
import json
import random
import re
import threading
import time
from collections.abc import Callable, Sequence

import requests
import urllib3

from sora_jax.core.errors import InputError

CONNECT_SECONDS = 10
MAX_PAUSE = 60.0  # seconds between tries
MAX_RETRY_AFTER = 900.0  # seconds, if the server asks for a pause
RETRIED = (408, 409, 425, 429)  # and 500 and above
MAX_MESSAGE = 300  # characters of a server's message that are shown


class NoAnswerError(Exception):
    """There is no answer to this question; others may have one."""


class BudgetSpentError(Exception):
    """The budget allows no further request."""


class _RetryError(Exception):
    """A failure that may pass; `after`: seconds to wait, if the server says so."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """The address of a chat model, and how to ask it.

    Args:
      url: up to /v1, without /chat/completions.
      key: sent as a bearer token; "": none.
      timeout: seconds without a byte of an answer before a request fails.
      retries: further tries after a failure that may pass.
      pause: seconds before the first retry; doubled before each next one.
      rate: maximum requests per minute; 0: no limit.
      flag: the flag that named the address, for errors.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 5
    pause: float = 1.0
    rate: float = 0.0
    flag: str = "endpoint"


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that a run may use: requests, failed tries included, or tokens, as the server counts them."""

    amount: int
    unit: str

    @classmethod
    def read(cls, text: str) -> "Budget":
        """ "500 requests", "2_000_000tokens" -> a budget. Raises: InputError for anything else."""
        found = re.fullmatch(r"\s*([\d_,]*\d[\d_,]*)\s*(requests|tokens)\s*", text)
        if not found:
            raise InputError(f"--budget={text}: a number with its unit, for example 500requests or 2000000tokens")
        return cls(int(re.sub(r"[_,]", "", found[1])), found[2])


class Chat:
    """Questions to one endpoint, from any number of threads, within a rate and a budget.

    Args:
      budget: None: no limit. A budget of tokens is checked before each request; requests under way may exceed it.
    """

    def __init__(self, endpoint: Endpoint, budget: Budget | None = None):
        self.endpoint, self.budget = endpoint, budget
        self.requests = self.tokens = self.answers = 0
        self._lock, self._local = threading.Lock(), threading.local()
        self._closed = threading.Event()
        self._next = time.monotonic()  # when the next request may begin

    def close(self):
        """Send no more requests: waiting threads get a BudgetSpentError."""
        self._closed.set()

    def budget_spent(self) -> str:
        """A message that says so."""
        return f"the budget of {self.budget.amount:,} {self.budget.unit} is spent"

    def ask(self, messages: Sequence[dict], read: Callable[[str], object] = str) -> object:
        """The answer to a question.

        Args:
          messages: in the form of the protocol.
          read: text of the answer -> result; a ValueError makes the question be asked again.
        Raises:
          NoAnswerError if this question has no answer.
          BudgetSpentError if the budget allows no further request.
          InputError if the endpoint, the model or the key is wrong, so that no question has an answer.
        """
        pause = self.endpoint.pause
        for attempt in range(self.endpoint.retries + 1):
            self._take_turn()
            try:
                answer = read(self._post(messages))
            except (_RetryError, ValueError) as error:
                reason, after = str(error), getattr(error, "after", None)
            else:
                with self._lock:
                    self.answers += 1
                return answer
            if attempt < self.endpoint.retries:
                # Random, so that requests which failed together do not return together.
                self._wait(random.uniform(0.5, 1.0) * min(pause, MAX_PAUSE) if after is None else after)
                pause *= 2
        raise NoAnswerError(f"{reason}; tried {self.endpoint.retries + 1} times")

    def _take_turn(self):
        """Count a request and wait until it may begin."""
        with self._lock:
            spent = self.budget and (self.requests if self.budget.unit == "requests" else self.tokens)
            if self._closed.is_set() or (self.budget and spent >= self.budget.amount):
                raise BudgetSpentError
            self.requests += 1
            start = max(time.monotonic(), self._next)
            self._next = start + (60 / self.endpoint.rate if self.endpoint.rate else 0)
        self._wait(start - time.monotonic())

    def _wait(self, seconds):
        if seconds > 0 and self._closed.wait(seconds):
            raise BudgetSpentError

    def _post(self, messages) -> str:
        """The text of one answer. Raises: _RetryError, NoAnswerError or InputError, by the fault."""
        url = f"{self.endpoint.url.rstrip('/')}/chat/completions"
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        try:
            response = self._local.session.post(
                url,
                json={"model": self.endpoint.model, "messages": list(messages)},
                auth=self._sign,
                timeout=(CONNECT_SECONDS, self.endpoint.timeout),
                allow_redirects=False,  # a redirected POST would arrive as a GET
            )
        except requests.exceptions.ConnectTimeout as error:
            raise self._unreachable(f"no connection within {CONNECT_SECONDS} s") from error
        except requests.exceptions.Timeout as error:
            raise _RetryError(f"no answer within {self.endpoint.timeout:g} s") from error
        except requests.exceptions.SSLError as error:
            raise InputError(f"--{self.endpoint.flag}={self.endpoint.url}: {_cause(error)}") from error
        except requests.exceptions.ConnectionError as error:
            reason = getattr(error.args[0], "reason", None) if error.args else None
            if isinstance(reason, urllib3.exceptions.NewConnectionError):
                raise self._unreachable(_cause(error)) from error
            raise _RetryError(f"the connection was cut: {_cause(error)}") from error
        except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as error:
            raise _RetryError(f"the answer was cut off: {_cause(error)}") from error
        except (requests.exceptions.RequestException, UnicodeError, ValueError) as error:
            raise InputError(
                f"--{self.endpoint.flag}={self.endpoint.url}: can't be asked: {_cause(error)}"
            ) from error
        if response.status_code != 200:
            raise self._refused(response)
        return self._content(response)

    def _sign(self, request):
        # A function takes precedence over a .netrc file.
        if self.endpoint.key:
            request.headers["Authorization"] = f"Bearer {self.endpoint.key}"
        return request

    def _unreachable(self, reason):
        """The error for no connection: to be retried if the endpoint has answered before, else a wrong address."""
        if self.answers:
            return _RetryError(reason)
        return InputError(f"--{self.endpoint.flag}={self.endpoint.url}: can't be reached: {reason}")

    def _refused(self, response) -> Exception:
        status, (message, code) = response.status_code, self._error_of(response)
        text = f"{status} {message}"
        if status in (401, 402, 403) or code == "insufficient_quota":
            why = "the key is not accepted" if self.endpoint.key else "it wants a key, and there is none"
            why = "nothing is left to pay with" if status == 402 or code == "insufficient_quota" else why
            return InputError(f"--{self.endpoint.flag}={self.endpoint.url}: {why}: {text}")
        if status == 404 or 300 <= status < 400:
            what = f"no model {self.endpoint.model!r} there, or no chat: {text}"
            what = f"{what} {response.headers.get('Location', '')}".strip()
            return InputError(f"--{self.endpoint.flag}={self.endpoint.url}: {what}")
        if status in RETRIED or status >= 500:
            return _RetryError(text, seconds_of(response.headers.get("Retry-After")))
        return NoAnswerError(text)

    def _error_of(self, response) -> tuple[str, str]:
        """(message, code) of the server's error, without the key."""
        message, code = response.text, ""
        try:
            error = response.json()["error"]
            message, code = (error["message"], error.get("code")) if isinstance(error, dict) else (error, "")
        except (ValueError, KeyError, TypeError):
            pass  # not in the form of the protocol: show the text
        message = " ".join(str(message).split()) or response.reason or ""
        if self.endpoint.key:
            message = message.replace(self.endpoint.key, "***")
        return message[:MAX_MESSAGE], str(code or "")

    def _content(self, response) -> str:
        try:
            body = json.loads(response.content)
            usage = (body.get("usage") or {}).get("total_tokens")
            choice = body["choices"][0]
            message = choice["message"]
            content, refusal = message.get("content"), message.get("refusal")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _RetryError(
                f"no answer in the form of the protocol ({type(error).__name__}: {error})"
            ) from error
        if self.budget and self.budget.unit == "tokens" and not isinstance(usage, int):
            raise InputError(
                f"--budget={self.budget.amount}tokens: the server does not say how many an answer took; "
                "give a budget of requests"
            )
        with self._lock:
            self.tokens += usage or 0
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if refusal or choice.get("finish_reason") == "content_filter":
            raise NoAnswerError(f"refused: {str(refusal or content or 'by a filter')[:MAX_MESSAGE]}")
        if choice.get("finish_reason") == "length":
            raise NoAnswerError("the answer is longer than the server allows")
        if not isinstance(content, str) or not content.strip():
            raise _RetryError("an empty answer")
        return content


def seconds_of(header: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, a number or a date; None if it is neither."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of errors."""
    inner = error
    while True:
        deeper = getattr(inner, "reason", None)
        if not isinstance(deeper, BaseException):
            deeper = next((arg for arg in inner.args if isinstance(arg, BaseException)), None)
        if deeper is None:
            return " ".join(str(inner).split())[:MAX_MESSAGE] or type(inner).__name__
        inner = deeper
