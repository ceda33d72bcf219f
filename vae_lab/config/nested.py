"""Nested dicts and lists, as YAML gives them: walk them, look into them, flatten them."""

from collections.abc import Iterator
from typing import Any

ABSENT = object()


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A container and everything in it, outermost first, each with its dotted key."""
    yield path, node
    for key, child in _children(node):
        yield from walk(child, f"{path}.{key}" if path else key)


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts as one: dotted keys and their values; lists and empty dicts are values."""
    if not isinstance(node, dict) or not node:
        return {path: node}
    inside = (leaves(child, f"{path}.{key}" if path else str(key)) for key, child in node.items())
    return {key: leaf for part in inside for key, leaf in part.items()}


def lookup(node: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts and lists, or ABSENT."""
    for part in key.split("."):
        node = dict(_children(node)).get(part, ABSENT)
    return node


def _children(node: Any) -> list[tuple[str, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return [(str(key), child) for key, child in pairs]  # no dict: 1 and "1" are two keys
