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


def leaves(node: Any) -> dict[str, Any]:
    """Nested dicts as one: dotted keys and their values; lists and empty dicts are values."""
    found: dict[str, Any] = {}

    def add(child: Any, path: str) -> None:
        if not isinstance(child, dict) or not child:
            found[path] = child
            return
        for key, grandchild in child.items():
            add(grandchild, f"{path}.{key}" if path else str(key))

    add(node, "")
    return found


def lookup(node: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts and lists, or ABSENT."""
    for part in key.split("."):
        children = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
        node = children.get(int(part) if isinstance(node, list) and part.isdecimal() else part, ABSENT)
    return node
