"""What an annotation says about a value of a config: numbers, truth values, text, lists and dicts of these, or null.

Annotations that speak of anything else say nothing here, since YAML cannot express it: no annotation, a class of
somebody's own, a type variable. In a union with something that YAML can express, only that counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = 3.4028234e38  # of float32, in which models compute
PLAIN = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", Path: "text"}
LISTS = (list, tuple, Sequence, Iterable)
DICTS = (dict, Mapping)


def options(kind: Any) -> list[Any]:
    """The kinds a value may have, each of which YAML can express; none if the annotation does not restrict it."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    known = [member for member in members if is_known(member)]
    restricts = len(known) == len(members) or any(member not in (None, NoneType) for member in known)
    return known if restricts else []


def is_known(kind: Any) -> bool:
    """Whether YAML can express it."""
    return kind in (None, NoneType, *PLAIN, *LISTS, *DICTS) or get_origin(kind) in (Literal, *LISTS, *DICTS)


def fits(kind: Any, value: Any) -> bool:
    """Whether a plain value is of the kind; what is still to be built (`_target_`) is of every kind."""
    allowed = options(kind)
    is_object = isinstance(value, dict) and "_target_" in value
    return not allowed or is_object or any(fits_option(option, value) for option in allowed)


def fits_option(kind: Any, value: Any) -> bool:
    """As `fits`, for one member of a union."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin in LISTS:
        return isinstance(value, list) and fits_elements(origin, arguments, value)
    if origin in DICTS:
        return isinstance(value, dict) and all(fits(arguments[1], child) for child in value.values() if arguments)
    if kind in (None, NoneType):
        return value is None
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and abs(value) <= LARGEST_INT
    if kind is float:
        most = LARGEST_INT if isinstance(value, int) else LARGEST_FLOAT
        return isinstance(value, int | float) and abs(value) <= most  # not NaN either
    return isinstance(value, str)


def fits_elements(origin: Any, kinds: tuple, values: list) -> bool:
    """Whether the elements of a list are what `list[kind]`, `tuple[kind, ...]` or `tuple[kind, kind]` asks for."""
    if origin is tuple and kinds and kinds[-1] is not ...:
        return len(values) == len(kinds) and all(map(fits, kinds, values))
    return not kinds or all(fits(kinds[0], value) for value in values)


def describe(kind: Any) -> str:
    """What an annotation asks for, in words: `a whole number or null`."""
    return " or ".join(dict.fromkeys(describe_option(option) for option in options(kind)))


def describe_option(kind: Any) -> str:
    """As `describe`, for one member of a union."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return " or ".join(str(option) for option in arguments)
    if origin in LISTS:
        number = f"{len(arguments)} " if origin is tuple and arguments and arguments[-1] is not ... else ""
        element = describe(arguments[0]) if arguments else ""
        elements = f"{element.removeprefix('a ')}s" if element.startswith("a ") else element
        return f"a list of {number}{elements}" if elements else "a list"
    if origin in DICTS:
        return "a dict"
    return PLAIN.get(kind, "null")
