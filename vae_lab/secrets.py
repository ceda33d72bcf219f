"""Keep passwords and keys out of the run folder, of the log and of the trackers.

A secret is the value of an environment variable whose name says so (`WANDB_API_KEY`), what stands under such a key in
a config (`api_key: ...`), or the password in a URL. Standard library only: `refuse_secrets` runs before `--help`.
"""

import logging
import os
import re
from typing import Any

MIN_LENGTH = 8  # shorter values would also match words that mean nothing
MASK = "***"

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_KEY = re.compile(r"(^|_)(api_?key|token|secret|password|passwd|credentials?)(_|$)", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/\s:@]*:[^/\s]+(?=@)")
_ASSIGNMENT = re.compile(r"([\w.]+)\s*[=:]\s*([^,}\s]*)")
_HARMLESS = re.compile(r"|null|['\"]{2}|\$\{oc\.env:.*")


def refuse_secrets(argv: list[str]) -> None:
    """Refuse a command line that holds a secret.

    Args:
        argv: the arguments, without the program's name.

    Raises:
        ValueError: naming the override's key, never its value.
    """
    for number, argument in enumerate(argv, 1):
        if _assigns_secret(argument) or _mask(argument) != argument:
            key, equals, _ = argument.partition("=")
            name = key.lstrip("+~") if equals and _mask(key) == key else f"argument {number}"
            raise ValueError(
                f"{name} looks like a secret, and every override is written to the run folder: "
                "set it in the environment, and refer to it in a config as ${oc.env:NAME}"
            )


def redact(value: Any) -> Any:
    """Return a copy of nested dicts, lists and strings with every secret replaced by `***`."""
    if isinstance(value, dict):
        return {key: MASK if _is_secret(key, item) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return _mask(value) if isinstance(value, str) else value


class RedactSecrets(logging.Filter):
    """Replaces secrets in the message and the traceback of every log record; lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _mask(record.getMessage()), None
        if record.exc_info:
            record.exc_text = _mask(record.exc_text or logging.Formatter().formatException(record.exc_info))
        return True


def _mask(text: str) -> str:
    for value in sorted(_secret_values(), key=len, reverse=True):  # one secret may contain another
        text = text.replace(value, MASK)
    return _USERINFO.sub(MASK, text)


def _secret_values() -> list[str]:
    named = [value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= MIN_LENGTH]
    return [value for value in named if not os.path.exists(value)]  # SSH_KEY_DIR=/home/me is no secret


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(_SECRET_KEY.search(str(key))) and not _HARMLESS.fullmatch(value)


def _assigns_secret(argument: str) -> bool:
    return any(_is_secret(key.rpartition(".")[2], value) for key, value in _ASSIGNMENT.findall(argument))
