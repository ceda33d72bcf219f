"""The constructor is the schema: what a config gives to a class must fit the names and annotations of its arguments.

Ranges are left to the constructors, except a few of Lightning's. Nothing is built here, and nothing is imported that is
not trusted.
"""

import inspect
import pydoc
import re
from collections.abc import Container
from typing import Any, get_type_hints

from vae_lab.config.explain import did_you_mean
from vae_lab.config.instantiate import check_target
from vae_lab.config.kinds import LARGEST_INT, describe, fits

# Arguments that the program gives to a class itself.
GIVEN = {
    "model.encoder": ("image_shape", "out_features"),
    "model.decoder": ("latent_dim", "image_shape"),
    "objective.adversary": ("image_shape", "out_features"),
    "prior": ("latent_shape",),
    "trainer": (
        *("default_root_dir", "callbacks", "logger", "plugins"),
        *("enable_checkpointing", "enable_progress_bar"),
    ),
}
# Lower bounds that Lightning does not check, or only after the images were read.
LEAST = {
    ("Trainer", "min_epochs"): 0,
    ("Trainer", "min_steps"): 0,
    ("Trainer", "check_val_every_n_epoch"): 1,
    ("Trainer", "num_sanity_val_steps"): -1,
    ("Trainer", "log_every_n_steps"): 1,
    ("Trainer", "accumulate_grad_batches"): 1,
    ("Trainer", "gradient_clip_val"): 0,
    ("EarlyStopping", "patience"): 0,
    ("EarlyStopping", "min_delta"): 0,
    ("RichModelSummary", "max_depth"): -1,
}
ABSENT = object()


def lookup(node: Any, key: str) -> Any:
    """The value at a dotted key of nested dicts and lists, or ABSENT."""
    for part in key.split("."):
        children = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
        node = children.get(int(part) if isinstance(node, list) and part.isdecimal() else part, ABSENT)
    return node


def origin(raw: dict, key: str) -> str:
    """The dotted key that a value comes from: another one, where the config there says `${other}`."""
    while isinstance(source := lookup(raw, key), str) and (found := re.fullmatch(r"\$\{([A-Za-z_][\w.]*)\}", source)):
        key = found[1]
    return key


def check_arguments(raw: dict, path: str, node: dict, own: Container[str]) -> None:
    """Refuse what the constructor of a node's class does not take.

    Args:
        raw: the config, not resolved, to find the setting that a value comes from.
        path: the dotted key of the node.
        node: plain, with `_target_`.
        own: dotted keys that the program reads itself.

    Raises:
        ValueError: naming the key and the value.
    """
    target = node["_target_"]
    check_target(path, target)
    found = pydoc.locate(target)
    kinds, takes_any = arguments(found)
    for name, value in node.items():
        key = f"{path}.{name}"
        if name.startswith("_") or key in own:
            continue
        if name in GIVEN.get(path, ()):
            raise ValueError(f"{key} is set by the program; remove it")
        if name not in kinds and not takes_any:
            meant = did_you_mean(name, kinds) or f"; remove it (~{key})"
            raise ValueError(f"there is no {key}, because {target} takes no {name}{meant}")
        check_kind(raw, key, kinds.get(name, Any), value)
        least = LEAST.get((found.__name__, name))
        if least is not None and isinstance(value, int | float) and value < least:
            raise ValueError(f"{key} must be >= {least}, got {value}")


def arguments(found: type) -> tuple[dict[str, Any], bool]:
    """The annotations of a constructor's arguments by name, and whether it takes arguments of any name besides."""
    try:
        parameters = inspect.signature(found).parameters.values()
        hints = get_type_hints(found.__init__)
    except (ValueError, NameError):  # not written in Python, or annotated for a type checker only
        return {}, True
    # None as a default says that it is allowed, whatever the annotation says.
    kinds = {p.name: hints.get(p.name, Any) | None if p.default is None else hints.get(p.name, Any) for p in parameters}
    return kinds, any(p.kind is p.VAR_KEYWORD for p in parameters)


def check_kind(raw: dict, key: str, kind: Any, value: Any) -> None:
    """Refuse a value that an annotation does not allow.

    Args:
        raw: the config, not resolved, to find the setting that the value comes from.
        key: where the value is.
        kind: the annotation.
        value: plain; ABSENT is not checked.

    Raises:
        ValueError: naming the setting that the value comes from.
    """
    if value is ABSENT or fits(kind, value):
        return
    key = origin(raw, key)
    wanted = describe(kind)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and "number" in wanted and abs(value) > LARGEST_INT and abs(value) < float("inf"):
        raise ValueError(f"{key} is too large: {value}")
    quoted = f""" (as text: "{key}='{value}'")""" if is_number and "text" in wanted else ""
    raise ValueError(f"{key} must be {wanted}, got {value!r}{quoted}")
