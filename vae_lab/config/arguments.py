"""The command lines of the small commands: folders, and key=value settings over their defaults."""

from pathlib import Path
from typing import Any

import yaml


def read_arguments(arguments: list[str], defaults: dict[str, Any]) -> tuple[list[Path], dict[str, Any]]:
    """Split a command line. What does not begin with a known key is a folder.

    Args:
        arguments: of the command, without its name.
        defaults: of all settings. Where that is a number or a truth value, YAML says what the text means; elsewhere
            the setting is the text.

    Returns:
        The folders, and every setting.

    Raises:
        ValueError: if a value cannot be read or is empty.
    """
    folders, settings = [], dict(defaults)
    for argument in arguments:
        key, _, text = argument.partition("=")
        if key in defaults:
            settings[key] = read_value(key, text, defaults[key])
        else:
            folders.append(Path(argument))
    return folders, settings


def read_value(key: str, text: str, default: Any) -> Any:
    """What the text of a setting means.

    Raises:
        ValueError: naming the key.
    """
    if not text:
        raise ValueError(f"{key} is empty; write {key}=VALUE")
    if not isinstance(default, int):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{key} cannot be {text!r}: {' '.join(str(error).split())}") from error


def check_choice(settings: dict[str, Any], key: str, allowed: tuple[str, ...]) -> None:
    """Refuse what is not offered.

    Raises:
        ValueError: naming the key and what is.
    """
    if settings[key] not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {settings[key]!r}")
