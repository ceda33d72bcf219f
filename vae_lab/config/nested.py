"""Nested dicts and lists, as YAML gives them: walk them, look into them, flatten them."""

import re
from collections.abc import Iterator
from typing import Any

ABSENT = object()
REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
MAX_STEPS = 10  # of references to references
Settings = dict[str, Any]  # dotted keys and their values


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A container and everything in it, outermost first, each with its dotted key."""
    yield path, node
    for key, child in _children(node):
        yield from walk(child, f"{path}.{key}" if path else key)


def leaves(node: Any, path: str = "") -> Settings:
    """Nested dicts as one: dotted keys and their values; lists and empty dicts are values."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    inside = (leaves(child, f"{path}.{key}" if path else str(key)) for key, child in node.items())
    return {key: leaf for part in inside for key, leaf in part.items()}


def resolved(settings: Settings) -> Settings:
    """Leaves with the values that `${key}` refers to; what refers to no leaf stays as it is written."""

    def follow(value: Any) -> Any:
        for _ in range(MAX_STEPS):
            found = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if not found or found[1] not in settings:
                break
            value = settings[found[1]]
        return value

    found = {key: follow(value) for key, value in settings.items()}
    return {key: list(map(follow, value)) if isinstance(value, list) else value for key, value in found.items()}


def lookup(node: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts and lists, or ABSENT."""
    for part in key.split("."):
        node = dict(_children(node)).get(part, ABSENT)
    return node


def _children(node: Any) -> list[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return [(str(key), child) for key, child in pairs]  # no dict: 1 and "1" are two keys
