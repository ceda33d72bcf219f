"""Keep passwords and keys out of the run folder, of the log and of the trackers.

A secret is the value of an environment variable whose name says so (`WANDB_API_KEY`), what stands under such a key in
a config (`api_key: ...`) or after it in text (`password=...`), a password or a token in a URL, and what has the form
of a well-known kind of token. An interpolation (`${oc.env:NAME}`) is none: it only says where a secret is.
Standard library only: `refuse_secrets` runs before `--help`.
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
from urllib.parse import quote, unquote

MASK = "***"
MIN_TOKEN = 16
LOOKS_LIKE_SECRET = (
    "looks like a secret, and every setting is written to the run folder: "
    "set it in the environment, and refer to it in a config as ${oc.env:NAME}"
)

_SECRET_NAME = re.compile(
    r"KEY|TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASSCODE|CREDENTIAL|AUTH(?!OR(?!IZ))|WEBHOOK|COOKIE|JWT"
    r"|(?<!BY)(?<!COM)PASS(_|$)|(?<!^)(?<!^OLD)PWD|PSWD|CONN(ECTION)?_STR|(^|_)(PAT|PW|SAS|PSK)(_|$)",
    re.IGNORECASE,
)
_PASSWORD = r"password|passwd|passphrase|secret|api_?key|(?:access|private|secret|account)_key|authorization"
_SECRET_KEY = re.compile(rf"(^|_)(({_PASSWORD}|credential|pwd)s?|token|(?<=_)pat)(_|$)", re.IGNORECASE)
_NUMBER_KEY = re.compile(rf"(^|_)({_PASSWORD}|pwd)(_|$)", re.IGNORECASE)  # max_token: 512 is none
_NUMBER = re.compile(r"[-+]?\d[\d.e+-]*", re.IGNORECASE)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # where apiKey becomes api_Key

_INTERPOLATION = re.compile(r"\$\{oc\.env:\s*\w+\s*(?:,([^${}]*))?\}|\$\{[^${}]*\}")
_ASSIGNMENT = re.compile(
    r"([\w.-]+)['\"]?\s*[=:]\s*([^\s,{}\[\]]*\$\{(?:[^{}]|\{[^{}]*\})*\}|[^\s,{}\[\]]*)"  # key, interpolation or value
)
_EMPTY = re.compile(r"\s*(null|none|''|\"\"|\*+)?\s*", re.IGNORECASE)

# In text: each group 1 stays, the rest is replaced.
_IN_TEXT = (
    # user:password@ or, in a web address, token@; but not the port in host:80/a@b
    re.compile(r"(://)[^/\s:@]*:(?:[^/\s]+|(?!\d*/)[^\s\"'<>@]+)(?=@)"),
    re.compile(r"(https?://)[^/\s:@?#]+(?=@)", re.IGNORECASE),
    re.compile(
        r"([?&;](?:[\w.-]*(?:token|secret|passw(?:or)?d|signature|credential)|(?:[\w.]*[_-]|api)?(?:key|auth|pwd|sig))=)"
        r"[^&;\s#\"']+",
        re.IGNORECASE,
    ),
    re.compile(
        r"((?:password|passwd|passphrase|secret|api_?key|(?:access|private|secret|account)_key)"
        r"[\"']?\s*[=:]\s*[\"']?)(?!(?:null|none)\b)[^\s\"',;&}]+",
        re.IGNORECASE,
    ),
    re.compile(r"(token[\"']?\s*[=:]\s*[\"']?|\bBearer\s+|Authorization:\s*\w+\s+)[\w.+/=~-]{8,}", re.IGNORECASE),
    re.compile(
        r"(\b)(?:hf_[A-Za-z0-9]{20,}|gh[a-z]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
        r"|xox[a-z]-[\w-]{10,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})"
    ),
)


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
            raise ValueError(f"{name} {LOOKS_LIKE_SECRET}")


def refuse_written_secrets(config: dict[str, Any], path: str = "") -> None:
    """Refuse a config in which a secret is written out: the config is kept in the run folder.

    Args:
        config: nested plain containers, unresolved.
        path: of the config, with a dot at its end.

    Raises:
        ValueError: naming the key, never its value.
    """
    for key, item in config.items():
        if isinstance(item, dict):
            refuse_written_secrets(item, f"{path}{_mask(str(key))}.")
        if redact({key: item}) != {key: item}:
            raise ValueError(f"{path}{_mask(str(key))} {LOOKS_LIKE_SECRET}")


def redact(value: Any) -> Any:
    """Return a copy of nested dicts, lists and strings with every secret replaced by `***`.

    Interpolations stay as they are, so a config that is redacted before it is resolved still means the same.

    Raises:
        TypeError: for containers that are not plain, in which secrets would be overlooked.
    """
    if isinstance(value, dict):
        return {redact(key): _redact_item(key, item) for key, item in value.items()}  # keys are text or numbers
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, Mapping):
        raise TypeError(f"redact takes plain containers, got {type(value).__name__}")
    return _mask(value) if isinstance(value, str) else value


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
        if record.stack_info:
            record.stack_info = _mask(record.stack_info)
        return True


def print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback without secrets; takes the place of `sys.excepthook`."""
    sys.stderr.write(_mask("".join(traceback.format_exception(kind, error, trace))))


def _mask(text: str) -> str:
    for value in _secret_values(tuple(os.environ.items())):
        text = text.replace(value, MASK)
    for pattern in _IN_TEXT:
        text = pattern.sub(lambda match: match[0] if "${" in match[0] else match[1] + MASK, text)
    return text


@lru_cache(maxsize=1)
def _secret_values(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """The secrets in the environment, in all forms, the longest first, because one may contain another."""
    named = [value for name, value in environment if _SECRET_NAME.search(name)]
    parts = [value for value in named if not os.path.exists(value)]  # SSH_KEY_DIR=/home/me is no secret
    for _, value in environment:
        if "://" in value:
            parts += _url_secrets(value)
    lines = [line.strip() for part in parts for line in (part, *part.splitlines())]
    return sorted({form for line in lines if _is_long(line) for form in _forms(line)}, key=len, reverse=True)


def _url_secrets(url: str) -> list[str]:
    """The passwords and tokens in the URLs of a text, as they stand there and decoded."""
    with_password, alone, query = ([match[0].removeprefix(match[1]) for match in p.finditer(url)] for p in _IN_TEXT[:3])
    passwords = [userinfo.partition(":")[2] for userinfo in with_password]
    tokens = [text for text in (*alone, *query) if len(text) >= MIN_TOKEN]  # a shorter one may be a user's name
    return [form for text in (*passwords, *tokens) if "${" not in text for form in (text, unquote(text))]


def _forms(value: str) -> set[str]:
    """How a value may be written: as it is, in a URL, and within quotes, which may be quoted again."""
    quoted = {value, json.dumps(value)[1:-1], repr(value)[1:-1]}
    return {quote(value, safe=""), *quoted, *(repr(form)[1:-1] for form in quoted)}


def _is_long(value: str) -> bool:
    """Whether a value is long enough to mean only itself; a short word or number could be anything."""
    return len(value) >= 8 or (len(value) >= 6 and bool(re.search(r"\d", value)) and bool(re.search(r"\D", value)))


def _redact_item(key: Any, item: Any) -> Any:
    if isinstance(item, dict | list | tuple) and _names_secret(_SECRET_KEY, key):
        children = item.items() if isinstance(item, dict) else ((key, child) for child in item)
        masked = [(name, _redact_item(key, child)) for name, child in children]
        return dict(masked) if isinstance(item, dict) else [child for _, child in masked]
    if not _is_secret(key, item):
        return redact(item)
    if "${" in str(item):  # only the default value is one
        return re.sub(r"(\$\{oc\.env:\s*\w+\s*,)[^${}]*(?=\})", rf"\1{MASK}", item)
    return MASK


def _names_secret(pattern: re.Pattern, key: Any) -> bool:
    return bool(pattern.search(_WORD.sub("_", str(key)).replace("-", "_")))


def _is_secret(key: Any, value: Any) -> bool:
    """Whether a key says that its value is a secret, and there is one."""
    if value is None or isinstance(value, bool | dict | list | tuple):
        return False
    if not _names_secret(_NUMBER_KEY if _NUMBER.fullmatch(str(value)) else _SECRET_KEY, key):
        return False
    value = str(value)
    if "${" in value:
        return any(not _EMPTY.fullmatch(match[1] or "") for match in _INTERPOLATION.finditer(value))
    return not _EMPTY.fullmatch(value)


def _assigns_secret(argument: str) -> bool:
    return any(_is_secret(key.rpartition(".")[2], value) for key, value in _ASSIGNMENT.findall(argument))
