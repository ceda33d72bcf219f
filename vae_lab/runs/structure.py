"""The form of what a file held: compared with an example of what should be there."""

from typing import Any

import torch
from torch import Tensor

from vae_lab.config.nested import ABSENT


def check_structure(key: str, found: Any, example: Any) -> None:
    """Compare nested containers with an example: the same keys and kinds, tensors of the same shape, integers >= 0.

    Args:
        key: of what is compared, for the message; may be empty.
        found: of unknown origin.
        example: of the same form; a type stands for all that is of it.

    Raises:
        ValueError: naming the first part that differs.
    """
    parts = []
    if isinstance(example, dict) and isinstance(found, dict):
        names = sorted({*example, *found}, key=str)
        parts = [(name, found.get(name, ABSENT), example.get(name, ABSENT)) for name in names]
    elif isinstance(example, list | tuple) and type(found) is type(example) and len(found) == len(example):
        parts = list(zip(range(len(example)), found, example, strict=True))
    elif not is_like(found, example):
        raise ValueError(f"{key} must be {shown(example)}, got {shown(found)}")
    for name, part, other in parts:
        check_structure(f"{key}.{name}" if key else str(name), part, other)


def is_like(found: Any, example: Any) -> bool:
    """Whether a value can stand where the example stands."""
    match example:
        case type():
            return isinstance(found, example)
        case Tensor():
            return shown(found) == shown(example) and found.is_contiguous()  # else its elements can share memory
        case bool():  # a choice of how to compute, not a result
            return found is example
        case float():
            return type(found) in (float, int)
        case int():
            return type(found) is int and found >= 0
        case str():
            return isinstance(found, str)
        case _:  # None, nothing at all, or containers that differ
            return found is example


def shown(value: Any) -> str:
    """A value, or the kind of one that is long."""
    match value:
        case Tensor():
            layout = "" if value.layout == torch.strided else f" {value.layout}"
            place = "" if value.device.type == "cpu" else f" on {value.device}"
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{layout}{place}"
        case type():
            return f"a {value.__name__}"
        case list() | tuple():
            return f"a {type(value).__name__} of {len(value)}"
        case None | int() | float():
            return repr(value)
        case _:
            return "missing" if value is ABSENT else f"a {type(value).__name__}"
