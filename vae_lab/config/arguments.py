"""The command line of the small commands: folders, and key=value settings over their defaults."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from vae_lab.config.explain import did_you_mean


def expand_home(argument: str) -> str:
    """A `key=~/folder` with the home folder: the shell expands a tilde only at the start of a word."""
    return re.sub(r"(?<=[=,])~(?=[/,]|$)", lambda _: str(Path.home()), argument)


def flags_last(arguments: list[str]) -> list[str]:
    """The settings, then the flags, each with the word that belongs to it: Hydra wants all settings together."""
    flags = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_word = before.startswith("-") and "=" not in before + argument and before not in ("-m", "--multirun")
        flags.append(argument.startswith("-") or (is_word and not argument.startswith("~")))
    return [a for last in (False, True) for a, is_flag in zip(arguments, flags, strict=True) if is_flag is last]


def read_arguments(
    arguments: list[str],
    defaults: dict[str, Any],
    usage: str = "",
    allowed: Mapping[str, Collection] | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Split a command line; `--help` prints the usage and ends the process.

    Args:
        arguments: of the command, without its name: `key=value`, `--key=value`, `--key value`; the rest are folders.
        defaults: of all settings. Where that is a number or a truth value, YAML says what the text means; elsewhere
            the setting is the text.
        usage: of the command; it begins with the command's name.
        allowed: the values that a setting may have: a tuple of words, or a `range`.

    Returns:
        The folders, and every setting.

    Raises:
        ValueError: naming the setting that is unknown, empty, or not what its default is.
    """
    if usage and {"--help", "-h"} & set(arguments):
        print(usage)
        raise SystemExit
    folders, settings, rest = [], dict(defaults), list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, text = argument.removeprefix("--").partition("=")
        if key in defaults and not equals and argument != key:  # --key value
            follows = rest and not rest[0].startswith("--") and rest[0].partition("=")[0] not in defaults
            is_switch = isinstance(defaults[key], bool) and not (follows and rest[0] in ("true", "false"))
            if not follows and not is_switch:
                raise ValueError(f"--{key} needs a value")
            text = "true" if is_switch else rest.pop(0)
        elif key not in defaults or not equals:
            if argument.startswith("-") or ("=" in argument and not Path(argument).exists()):
                command = usage.partition(":")[0] or "the command"
                raise ValueError(f"there is no setting {argument}{did_you_mean(key, defaults)}; see {command} --help")
            folders.append(Path(argument))
            continue
        settings[key] = read_value(key, text, defaults[key])
    for key, values in (allowed or {}).items():
        if settings[key] not in values:
            if isinstance(values, range):
                kind = f"a whole number in [{values[0]}, {values[-1]}]"
            else:
                kind = f"one of {', '.join(values)}"
            raise ValueError(f"{key} must be {kind}, got {settings[key]!r}")
    return folders, settings


def read_value(key: str, text: str, default: Any) -> Any:
    """What the text of a setting means, by the kind of its default."""
    if not text:
        raise ValueError(f"{key} is empty; write {key}=VALUE")
    if not isinstance(default, int):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if type(value) is not type(default):
        kind = "true or false" if isinstance(default, bool) else "a whole number"
        raise ValueError(f"{key} must be {kind}, got {text!r}")
    return value
