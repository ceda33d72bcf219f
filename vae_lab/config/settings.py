"""Every setting of a config is read by something, and is of the kind that its reader asks for.

What a class reads, its signature says (`vae_lab.config.signatures`); what the program reads itself is listed here.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.explain import did_you_mean, setting_names
from vae_lab.config.signatures import ABSENT, check_arguments, check_kind, lookup, origin

READ = {
    "seed": int,
    "latent_dim": int,
    "data_root": str,
    "compile": bool,
    "find_lr": bool,
    "resume": str | None,
    "run_name": str | None,
    "run_dir": str,
    "sweep.name": str | None,
    "sweep.default_name": str,
    "sweep.n_jobs": int | None,
    "sweep.jobs_per_device": int,
    "sweep.on_failure": str,
    "dataset.channels": int,
    "dataset.image_size": int,
    "dataset.image_shape": tuple[int, int, int],
    "dataset.source.image_shape": tuple[int, int, int],
    "dataset.fit": str,
    "dataset.batch_size": int,
    "dataset.binarize": str,
    "dataset.flip": bool,
    "dataset.val_size": float,
    "dataset.test_size": float,
    "dataset.split_seed": int,
    "dataset.num_workers": int,
    "loss.KLD_weight": float,
    "loss.warmup_steps": int,
    "loss.free_bits": float,
    "trainer.precision": Any,  # `mixed` is ours
}
# What names a class, each in a group of its own name.
PARTS = (
    *("dataset.source", "model.encoder", "model.decoder", "posterior", "prior", "loss.likelihood", "objective"),
    *("optimizer", "optimizer.schedule", "trainer"),
)
COLLECTIONS = ("logger", "callbacks", "metrics")  # each member names a class


def check_settings(cfg: DictConfig) -> None:
    """Refuse what is missing, what nothing reads, and what is not of its reader's kind.

    Raises:
        ValueError: naming the setting by its full key, and its value.
    """
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    raw = OmegaConf.to_container(cfg)
    check_not_empty(raw, plain)
    check_parts(plain)
    for group in COLLECTIONS:
        check_members(plain, group)
    if cfg.resume in (None, "auto"):  # what continues was accepted when it began
        check_read(cfg, plain)
    for key, kind in READ.items():
        check_kind(raw, key, kind, lookup(plain, key))
    for path, node in walk(plain):
        if isinstance(node, dict) and "_target_" in node:
            check_arguments(raw, path, node, {*READ, *PARTS})


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested containers and all that is in them, each with its dotted key."""
    yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from walk(child, f"{path}.{key}" if path else str(key))


def check_not_empty(raw: dict, plain: dict) -> None:
    """Refuse `key=`, which a shell leaves of a variable that is not set.

    Raises:
        ValueError: naming the key.
    """
    for key, value in walk(plain):
        is_folder = re.fullmatch(r"logger\.\w+\.version", key)  # empty: Lightning's loggers make none of their own
        if value == "" and not is_folder:
            key = origin(raw, key)
            raise ValueError(f"{key} is empty; write {key}=VALUE, or {key}=null for none")


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
    """Refuse a member of a collection that names no class; null is none.

    Raises:
        ValueError: naming the member.
    """
    members = plain.get(group, "nothing")
    if not isinstance(members, dict):
        raise ValueError(f"{group} must be a dict of classes, got {members}; choose one with {group}=OPTION")
    for name, member in members.items():
        if isinstance(member, dict) and "_target_" not in member:
            raise ValueError(f"{group}.{name} has settings, but the chosen {group}= option has no {name}, got {member}")
        if member is not None and not isinstance(member, dict):
            raise ValueError(f"{group}.{name} must name a class (_target_) or be null, got {member!r}")


def check_read(cfg: DictConfig, plain: dict) -> None:
    """Refuse settings that nothing reads, such as a mistyped one, or one that an experiment sets for another model.

    A setting is read by the program, by a class that it is an argument of, or by another setting as `${key}`.

    Raises:
        ValueError: naming the settings.
    """
    text = OmegaConf.to_yaml(cfg)
    if HydraConfig.initialized():  # the name of a run's folder
        text += OmegaConf.to_yaml(HydraConfig.get())
    referred = references(text)
    ours = {*READ, *PARTS, *COLLECTIONS, *(key.split(".")[0] for key in (*READ, *PARTS))}
    unread = [key for key in own_keys(plain) if key not in ours and not any(is_same(key, other) for other in referred)]
    if unread:
        meant = did_you_mean(unread[0], (name for name in setting_names(cfg) if name not in unread))
        group = unread[0].partition(".")[0]
        other = f" (perhaps another option of {group}= does)" if "." in unread[0] else ""
        raise ValueError(
            f"nothing reads {', '.join(unread)}{other}{meant or ';'} "
            f"remove it, or refer to it from another setting as ${{{unread[0]}}}"
        )


def own_keys(plain: dict) -> Iterator[str]:
    """The keys that are not arguments of a class, without those that an argument of a part has been set instead of."""
    yield from plain
    for group in ("dataset", "model", "loss", "sweep"):
        parts = [part for part in PARTS if part.startswith(f"{group}.")]
        yield from (
            f"{group}.{k}" for k in plain.get(group, {}) if all(lookup(plain, f"{p}.{k}") is ABSENT for p in parts)
        )


def references(text: str) -> set[str]:
    """The dotted names inside every `${...}`."""
    insides = " ".join(re.findall(r"\$\{([^}]*)", text))
    return set(re.findall(r"[\w.]+", re.sub(r"\[[\"']?(\w+)[\"']?\]", r".\1", insides)))


def is_same(key: str, reference: str) -> bool:
    """Whether a reference reaches a key: by its name, by that of its group or of a part, or relative to its place."""
    if reference.startswith("."):
        return f".{key}".endswith(f".{reference.lstrip('.')}")
    return f"{key}.".startswith(f"{reference}.") or reference.startswith(f"{key}.")
