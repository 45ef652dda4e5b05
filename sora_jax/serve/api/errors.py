"""Errors in the form that the `openai` client reads, without a word of where files lie."""

import re

from sora_jax.core.errors import InputError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
# Settings under the names that clients of other servers use.
ALIASES = {"num_inference_steps": "steps", "guidance_scale": "guidance", "num_frames": "frames"}
_FLAG = re.compile(r"--([a-z][a-z-]*)")
_WHERE = re.compile(r"(?:--|sample\.)([a-z][a-z_-]*)")
_FOLDERS = re.compile(r"(?<![\w.])(?:[a-z][a-z0-9]*:/)?/(?:[^\s/:;,'\"]+/)+")


class ApiError(Exception):
    """An answer other than 200.

    Args:
      code: for programs; param: the field that is wrong.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def without_folders(text: str) -> str:
    """The text with every path shortened to its last part."""
    return _FOLDERS.sub("", text)


def bad_request(error: InputError, *, param: str | None = None, fields=()) -> ApiError:
    """The answer to a request that can't be served.

    Args:
      param: the field that is wrong; None: as the message says.
      fields: names of the request's fields, whose aliases are used.
    """
    names = {setting: alias for alias, setting in ALIASES.items() if alias in fields}
    names |= {"image": "input_reference"}

    def field(flag: str) -> str:
        key = flag.replace("-", "_")
        return names.get(key, key)

    text = without_folders(str(error))
    if param is None and (found := _WHERE.match(text)):
        param = field(found[1])
        text = param + text[found.end() :]
    text = _FLAG.sub(lambda found: field(found[1]), text)
    return ApiError(400, f"{param}: {text}" if param and not text.startswith(param) else text, param=param)
