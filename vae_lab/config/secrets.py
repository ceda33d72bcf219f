"""Keep passwords and keys out of the run folder, of the log and of the trackers.

A secret is the value of an environment variable whose name says so (`WANDB_API_KEY`), what stands under such a key in
a config (`api_key: ...`) or after it in text (`password=...`), and a password in a URL. An interpolation
(`${oc.env:NAME}`) is none: it only says where a secret is.
"""

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from types import TracebackType
from typing import Any

from vae_lab.config.nested import walk

MASK = "***"
MIN_LENGTH = 6  # a shorter value could be anything
LOOKS_LIKE_SECRET = (
    "looks like a secret, and every setting is written to the run folder: "
    "set it in the environment, and refer to it in a config as ${oc.env:NAME}"
)
_NAMES = (
    r"passw(?:or)?ds?|passphrase|secret|credentials?|api[_-]?key|(?:access|private|account)[_-]?key|(?<=[_.-])pwd"
    r"|(?<![a-z])auth(?:orization)?(?![a-z])|(?<=[_-])pat(?![a-z])"
)
_KEY = re.compile(rf"(?:{_NAMES}|token)$", re.IGNORECASE)
_VARIABLE = re.compile(
    rf"{_NAMES}|token(?!iz)|webhook|cookie|jwt|passcode|connection_str|(?:^|_)(?:key|pass)(?:_|$)", re.IGNORECASE
)
_IS = r"[\"']?\s*[=:]\s*[\"']?(?:Basic\s+|Bearer\s+)?(?!null\b|none\b|\$\{)"
# In text, group 1 stays. A number after `token` counts tokens.
_ASSIGNED = re.compile(rf"((?:{_NAMES}){_IS}|token{_IS}(?![\d.]+\b))[^\s\"',;&}}]+", re.IGNORECASE)
_IN_URL = re.compile(r"(https?:/{1,2}|\w:/{1,2}(?=[^/\s:@]*:))[^/\s@]+(?=@)", re.IGNORECASE)


def refuse_secrets(argv: list[str]) -> None:
    """Refuse a command line that holds a secret.

    Args:
        argv: the arguments, without the program's name.

    Raises:
        ValueError: naming the override's key, never its value.
    """
    for number, argument in enumerate(argv, 1):
        if _mask(argument) != argument:
            key, equals, _ = argument.partition("=")
            name = key.lstrip("+~") if equals and _mask(key) == key else f"argument {number}"
            raise ValueError(f"{name} {LOOKS_LIKE_SECRET}")


def refuse_written_secrets(config: Any) -> None:
    """Refuse a config in which a secret is written out: the config is kept in the run folder.

    Args:
        config: nested plain containers, unresolved.

    Raises:
        ValueError: naming the key, never its value.
    """
    if redact(config) == config:
        return
    for path, node in reversed(list(walk(config))):  # the innermost first
        for key, item in node.items() if isinstance(node, dict) else ():
            if redact({key: item}) != {key: item}:
                raise ValueError(f"{_mask(f'{path}.{key}'.lstrip('.'))} {LOOKS_LIKE_SECRET}")


def redact(value: Any, key: Any = "") -> Any:
    """Return a copy of nested dicts, lists and strings with every secret replaced by `***`.

    Interpolations stay as they are, so a config that is redacted before it is resolved still means the same.

    Args:
        value: plain containers, in which a tuple becomes a list, text, numbers or None.
        key: what the value stands under.

    Raises:
        TypeError: for containers that are not plain, in which secrets would be overlooked.
    """
    secrets = _secrets()

    def redacted(value: Any, key: Any) -> Any:
        if isinstance(value, dict):  # what stands under a secret key is secret, whatever its own key says
            return {
                redacted(name, ""): redacted(item, key if _KEY.search(str(key)) else name)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [redacted(item, key) for item in value]
        if isinstance(value, Mapping):
            raise TypeError(f"redact takes plain containers, got {type(value).__name__}")
        is_written = not isinstance(value, bool | None) and "${" not in str(value)
        if is_written and _KEY.search(str(key)) and _ASSIGNED.search(f"{key}={value}"):
            return MASK
        return _mask(value, secrets) if isinstance(value, str) else value

    return redacted(value, key)


class RedactSecrets(logging.Filter):
    """Replaces secrets in the message and the traceback of every log record; lets every record pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception:  # a library's wrong format string is no reason to stop
            text = f"{record.msg} {record.args}"
        record.msg, record.args = _mask(text), None
        if record.exc_info:
            record.exc_text = _mask(record.exc_text or logging.Formatter().formatException(record.exc_info))
        return True


def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without secrets; takes the place of `sys.excepthook`."""
    sys.stderr.write(_mask("".join(traceback.format_exception(kind, error, trace))))


def _mask(text: str, secrets: list[str] | None = None) -> str:
    for value in _secrets() if secrets is None else secrets:
        text = text.replace(value, MASK)
    for pattern in (_ASSIGNED, _IN_URL):
        text = pattern.sub(lambda match: match[0] if "${" in match[0] else match[1] + MASK, text)
    return text


def _secrets() -> list[str]:
    return _secret_values(tuple(os.environ.items()))  # which takes longer than to mask a text


@lru_cache(maxsize=1)
def _secret_values(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """The secrets in the environment, bare and as quoted; the longest first, because one may hold another."""
    named = [value for name, value in environment if _VARIABLE.search(name) and len(value) >= MIN_LENGTH]
    secrets = [value for value in named if not os.path.exists(value)]  # SSH_KEY_DIR=/home/me is no secret
    return sorted({f for v in secrets for f in (v, repr(v)[1:-1], json.dumps(v)[1:-1])}, key=len, reverse=True)
