"""Every setting of a config is read by something, and is of the kind that its reader asks for.

The constructor is the schema: what a config gives to a class must fit the names and annotations of its arguments.
Ranges are left to the constructors, except a few of Lightning's. Nothing is built here.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast, get_type_hints

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from vae_lab.config.explain import did_you_mean, setting_names
from vae_lab.config.instantiate import check_target
from vae_lab.config.nested import ABSENT, lookup, walk

# What names a class, each in a group of its own name.
PARTS = (
    *("dataset.source", "model.encoder", "model.decoder", "posterior", "prior", "loss.likelihood", "objective"),
    *("optimizer", "optimizer.schedule", "trainer"),
)
COLLECTIONS = ("logger", "callbacks", "metrics")  # each member names a class
# Keys that the program reads, but no constructor takes, or takes as another kind.
OWN: dict[str, Any] = {
    **dict.fromkeys(("seed", "latent_dim", "dataset.channels", "dataset.image_size", "loss.warmup_steps"), int),
    **dict.fromkeys(("data_root", "run_dir", "dataset.fit", "sweep.default_name", "sweep.on_failure"), str),
    **dict.fromkeys(("resume", "init", "run_name", "sweep.name", "loss.measure"), str | None),
    **dict.fromkeys(("loss.KLD_weight", "loss.free_bits"), float),
    **dict.fromkeys(("compile", "find_lr", "model.conditional", "sweep.longer"), bool),
    "sweep.n_jobs": int | None,
    "sweep.jobs_per_device": int,
    "trainer.precision": Any,  # `mixed` is ours
    "trainer.steps_per_execution": int | str,
    "trainer.cuda_graph": bool,
}
# Arguments that the program gives to a class itself.
GIVEN = {
    "dataset": ("source", "seed"),
    "model.encoder": ("image_shape", "out_features"),
    "model.decoder": ("latent_dim", "image_shape"),
    "prior": ("latent_shape",),
    "objective.adversary": ("image_shape", "out_features"),
    "trainer": (
        *("default_root_dir", "callbacks", "logger", "plugins"),
        *("enable_checkpointing", "enable_progress_bar"),
    ),
}
# Lower bounds that Lightning does not check, or only after the images were read.
LEAST = {
    **dict.fromkeys(("min_epochs", "min_steps", "gradient_clip_val", "patience", "min_delta"), 0),
    **dict.fromkeys(("check_val_every_n_epoch", "log_every_n_steps", "accumulate_grad_batches"), 1),
    **dict.fromkeys(("num_sanity_val_steps", "max_depth"), -1),
}
LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = 3.4028234e38  # of float32, in which models compute
WORDS = {  # of JSON schema -> ours
    "integer": "a whole number",
    "number": "a finite number",
    "boolean": "true or false",
    "string": "text",
    "object": "a dict",
    "null": "null",
}


def check_settings(cfg: DictConfig, readers: Mapping[str, type]) -> None:
    """Refuse what is missing, what nothing reads, and what is not of its reader's kind.

    Args:
        cfg: the composed config.
        readers: the classes that the program builds itself, by the group whose keys they take.

    Raises:
        ValueError: naming the setting by its full key, and its value.
    """
    plain = cast(dict, OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    raw = cast(dict, OmegaConf.to_container(cfg))
    for key, value in walk(plain):
        if value == "" and not re.fullmatch(r"logger\.\w+\.version", key):  # for which Lightning's make no folder
            key = origin(raw, key)
            none = f", or {key}=null for none" if fits(kind_of(plain, key, readers), None) else ""
            raise ValueError(f"{key} is empty; write {key}=VALUE{none}")
    check_parts(plain)
    for group in COLLECTIONS:
        check_members(plain, group)
    own = {*own_kinds(readers), *PARTS}
    if cfg.resume in (None, "auto"):  # what continues was accepted when it began
        check_read(raw, plain, own)
    kinds = own_kinds(readers)
    made = {key for key in kinds if isinstance(lookup(raw, key), list) and "${" in str(lookup(raw, key))}
    for key in (key for key in kinds if key not in made):
        check_kind(raw, key, kinds[key], lookup(plain, key))
    for path, node in walk(plain):
        if isinstance(node, dict) and "_target_" in node:
            check_arguments(raw, path, node, own)
    for key in made:  # lists of other settings, which are named first
        check_kind(raw, key, kinds[key], lookup(plain, key))


def check_own(plain: dict, readers: Mapping[str, type]) -> None:
    """Refuse a value of the wrong kind of a key that the program reads itself, in a resolved config.

    Raises:
        ValueError: naming the setting.
    """
    for key, kind in own_kinds(readers).items():
        check_kind({}, key, kind, lookup(plain, key))


def own_kinds(readers: Mapping[str, type]) -> dict[str, Any]:
    """The keys that the program reads itself, with their annotations."""
    own = dict(OWN)
    for group, found in readers.items():
        kinds, given = arguments(found)[0], GIVEN.get(group, ())
        own |= {f"{group}.{name}": kind for name, kind in kinds.items() if name not in given}
    return own


def kind_of(plain: dict, key: str, readers: Mapping[str, type]) -> Any:
    """The annotation of a setting's reader."""
    path, _, name = key.rpartition(".")
    node, own = lookup(plain, path), own_kinds(readers)
    if key in own or not isinstance(node, dict) or "_target_" not in node:
        return own.get(key, Any)
    return arguments(check_target(path, node["_target_"]))[0].get(name, Any)


def check_parts(plain: dict, paths: Sequence[str] = PARTS) -> None:
    """Refuse a part that is missing or names no class.

    Args:
        plain: the config.
        paths: of the parts in it.

    Raises:
        ValueError: naming the part.
    """
    for path in paths:
        node = lookup(plain, path)
        if path == "optimizer.schedule" and node in (None, {}):
            continue
        if not isinstance(node, dict) or "_target_" not in node:
            got = "nothing" if node is ABSENT else repr(node)
            choice = "optimizer/schedule" if path == "optimizer.schedule" else path.split(".")[0]
            raise ValueError(f"{path} must name a class (_target_), got {got}; choose one with {choice}=OPTION")
        is_partial = node.get("_partial_", False)
        if is_partial is not (path == "optimizer"):  # which waits for the parameters
            raise ValueError(f"{path}._partial_ must be {str(path == 'optimizer').lower()}, got {is_partial!r}")


def check_members(plain: dict, group: str) -> None:
    """Refuse a member of a collection that names no class; null is none."""
    members = plain.get(group, "nothing")
    if not isinstance(members, dict):
        raise ValueError(f"{group} must be a dict of classes, got {members}; choose one with {group}=OPTION")
    for name, member in members.items():
        if isinstance(member, dict) and "_target_" not in member:
            raise ValueError(f"{group}.{name} has settings, but the chosen {group}= option has no {name}, got {member}")
        if member is not None and not isinstance(member, dict):
            raise ValueError(f"{group}.{name} must name a class (_target_) or be null, got {member!r}")


def check_read(raw: dict, plain: dict, own: set[str]) -> None:
    """Refuse settings that nothing reads, such as a mistyped one, or one that an experiment sets for another model.

    A setting is read by the program, by a class that it is an argument of, or by another setting as `${key}`.
    """
    hydra = OmegaConf.to_container(HydraConfig.get()) if HydraConfig.initialized() else {}  # the name of a run's folder
    text = "\n".join(node for _, node in walk([raw, hydra]) if isinstance(node, str))
    insides = re.sub(r"\[[\"']?(\w+)[\"']?\]", r".\1", " ".join(re.findall(r"\$\{([^}]*)", text)))
    referred = set(re.findall(r"[\w.]+", insides))
    keys = list(plain)  # that are no arguments of a class, or were not set there instead
    for group in ("dataset", "model", "loss", "sweep"):
        parts = [lookup(plain, part) for part in PARTS if part.startswith(f"{group}.")]
        keys += [f"{group}.{name}" for name in plain.get(group, {}) if all(name not in part for part in parts)]
    ours = {*own, *COLLECTIONS, *(key.split(".")[0] for key in own)}
    unread = [key for key in keys if key not in ours and not any(is_same(key, other) for other in referred)]
    if unread:
        meant = did_you_mean(unread[0], (name for name in setting_names(raw) if name not in unread))
        group = unread[0].partition(".")[0]
        other = f" (perhaps another option of {group}= does)" if "." in unread[0] else ""
        raise ValueError(
            f"nothing reads {', '.join(unread)}{other}{meant or ';'} "
            f"remove it, or refer to it from another setting as ${{{unread[0]}}}"
        )


def is_same(key: str, reference: str) -> bool:
    """Whether a reference reaches a key: by its name, by that of its group or of a part, or relative to its place."""
    if reference.startswith("."):
        return f".{key}".endswith(f".{reference.lstrip('.')}")
    return f"{key}.".startswith(f"{reference}.") or reference.startswith(f"{key}.")


def check_arguments(raw: dict, path: str, node: dict, own: set[str]) -> None:
    """Refuse what the constructor of a node's class does not take, except keys that the program reads itself."""
    found = check_target(path, node["_target_"])
    kinds, takes_any = arguments(found)
    for name, value in node.items():
        key = f"{path}.{name}"
        if name.startswith("_") or key in own:
            continue
        if name in GIVEN.get(path, ()):
            raise ValueError(f"{key} is set by the program; remove it")
        if name not in kinds and not takes_any:
            meant = did_you_mean(name, kinds) or f"; remove it (~{key})"
            raise ValueError(f"there is no {key}, because {node['_target_']} takes no {name}{meant}")
        check_kind(raw, key, kinds.get(name, Any), value)
        least = LEAST.get(name) if found.__module__.startswith("lightning.") else None
        if least is not None and isinstance(value, int | float) and value < least:
            raise ValueError(f"{key} must be >= {least}, got {value}")


def arguments(found: type) -> tuple[dict[str, Any], bool]:
    """The annotations of a constructor's arguments by name, and whether it takes arguments of any name besides."""
    try:
        parameters = inspect.signature(found).parameters.values()
        hints = get_type_hints(found.__init__)  # type: ignore[misc]
    except (ValueError, NameError):  # not written in Python, or annotated for a type checker only
        return {}, True
    # None as a default says that it is allowed, whatever the annotation says.
    kinds = {p.name: hints.get(p.name, Any) | None if p.default is None else hints.get(p.name, Any) for p in parameters}
    return kinds, any(p.kind is p.VAR_KEYWORD for p in parameters)


def check_kind(raw: dict, key: str, kind: Any, value: Any) -> None:
    """Refuse a plain value that an annotation does not allow; what is absent or still to be built is of every kind."""
    inside = [node for _, node in walk(value)]
    if value is ABSENT or any(isinstance(node, dict) and "_target_" in node for node in inside):
        return
    numbers = [node for node in inside if isinstance(node, int | float)]
    largest = {int: LARGEST_INT, float: LARGEST_FLOAT, bool: 1}
    is_large = any(largest[type(number)] < abs(number) < math.inf for number in numbers)
    is_fit = fits(kind, value)
    if is_fit and not is_large:
        return
    wanted, key = describe(kind), origin(raw, key)
    if is_large and "number" in wanted:
        raise ValueError(f"{key} is too large: {value}")
    if wanted and not is_fit:
        quoted = f""" (as text: "{key}='{value}'")""" if type(value) in (int, float) and "text" in wanted else ""
        raise ValueError(f"{key} must be {wanted}, got {value!r}{quoted}")


def origin(raw: dict, key: str) -> str:
    """The dotted key that a value comes from: another one, where the config there says `${other}`."""
    while isinstance(source := lookup(raw, key), str) and (found := re.fullmatch(r"\$\{([A-Za-z_][\w.]*)\}", source)):
        key = found[1]
    return key


def fits(kind: Any, value: Any) -> bool:
    """Whether a plain value is what an annotation asks for: as JSON, in which a list may stand for a tuple."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        adapter(kind).validate_json(text.encode(errors="replace"))
    except ValidationError:
        return False
    return True


@cache
def adapter(kind: Any) -> TypeAdapter:
    """What checks values of a kind; of one that pydantic does not know, it allows everything."""
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))
    except PydanticUserError:
        return TypeAdapter(Any)


def describe(kind: Any) -> str:
    """What an annotation asks for, in words: `a whole number or null`; empty where YAML cannot express it."""
    try:
        return in_words(adapter(kind).json_schema())
    except PydanticInvalidForJsonSchema:
        return ""


def in_words(schema: dict[str, Any]) -> str:
    """As `describe`, for a JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(in_words, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum") or [schema["const"]]))
    if schema.get("type") != "array":
        return WORDS.get(schema.get("type", ""), "")
    number = f"{schema['maxItems']} " if "maxItems" in schema else ""
    element = in_words(schema["prefixItems"][0] if "prefixItems" in schema else schema.get("items", {}))
    elements = f"{element.removeprefix('a ')}s" if element.startswith("a ") else element
    return f"a list of {number}{elements}" if elements else "a list"
