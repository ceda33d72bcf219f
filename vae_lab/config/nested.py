"""Nested dicts and lists, as YAML gives them: walk them, look into them, flatten them."""

from collections.abc import Iterator
from typing import Any

ABSENT = object()


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A container and everything in it, outermost first, each with its dotted key."""
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in children:
        yield from walk(child, f"{path}.{key}" if path else str(key))


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts as one: dotted keys and their values; lists and empty dicts are values."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    inside = (leaves(child, f"{path}.{key}" if path else str(key)) for key, child in node.items())
    return {key: leaf for part in inside for key, leaf in part.items()}


def lookup(node: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts, or ABSENT."""
    for part in key.split("."):
        node = node.get(part, ABSENT) if isinstance(node, dict) else ABSENT
    return node
