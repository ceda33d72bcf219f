"""The one door from config to objects: only classes of trusted packages are imported or called.

A config may come from a colleague or from a downloaded run, and `_target_` names what to call. Hydra refuses a list of
known dangerous targets; here only what is listed may be named at all.
"""

import os
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

TRUSTED_PACKAGES = (
    "vae_lab",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "torch.optim",
)
TRUSTED_CLASSES = ("lightning.pytorch.Trainer", "lightning.pytorch.trainer.trainer.Trainer")


def trusted_packages() -> tuple[str, ...]:
    """What a `_target_` may start with: our own list and the user's packages in VAE_LAB_TRUST, separated by commas."""
    named = os.environ.get("VAE_LAB_TRUST", "").split(",")
    return TRUSTED_PACKAGES + tuple(package.strip() for package in named if package.strip())


def is_trusted(path: str) -> bool:
    """Whether a dotted path lies inside a trusted package."""
    return path in TRUSTED_CLASSES or any(path.startswith(package + ".") for package in trusted_packages())


def targets(node: Any) -> Iterator[tuple[str, Any]]:
    """Every `_target_` in a plain nested container, with the path of the node that holds it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield "", node["_target_"]
        children = node.items()
    elif isinstance(node, list):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        for path, target in targets(child):
            yield f".{key}{path}", target


def check_target(key: str, target: Any) -> None:
    """Refuse a target outside the trusted packages, before and after it is imported.

    The name is checked first, so that nothing else is imported; then what it leads to, because a module's own imports
    are reachable under its name (`vae_lab.runs.os.system`).

    Raises:
        ValueError: naming the config key and the target.
    """
    if not isinstance(target, str) or not is_trusted(target):
        raise ValueError(
            f"{key}: _target_ {target!r} is not trusted; allowed are {', '.join(trusted_packages())} "
            "(add your own package with VAE_LAB_TRUST=my_package)"
        )
    try:
        found = hydra.utils.get_object(target)
    except Exception as error:  # whatever a module raises at its import
        raise ValueError(f"{key}: cannot import {target}: {' '.join(str(error).split())}") from error
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not isinstance(found, type) or not is_trusted(home):
        raise ValueError(f"{key}: _target_ {target} is not a class of a trusted package")


def instantiate(config: DictConfig | ListConfig, key: str, **kwargs: Any) -> Any:
    """Build the object that a config node describes, and all nodes inside it.

    Args:
        config: a node with `_target_`, or a container of such nodes.
        key: where the node stands in the config, for messages.
        **kwargs: further constructor arguments.

    Returns:
        The object; containers arrive in constructors as plain lists and dicts.

    Raises:
        ValueError: if a target is not trusted or a constructor refuses its arguments.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    found = list(targets(plain))
    for path, target in found:
        check_target(key + path, target)
    if hasattr(hydra.utils, "execution_whitelist"):  # from Hydra 1.4 on
        kwargs["_execution_whitelist_"] = [target for _, target in found]
    try:
        return hydra.utils.instantiate(plain, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__ or error
        message = " ".join(str(cause).split())
        if isinstance(cause, ValueError) and str(plain.get("_target_")).startswith("vae_lab."):  # names its key
            raise ValueError(message) from error
        if not isinstance(cause, TypeError):
            raise ValueError(f"{key}: {message}") from error
        settings = ", ".join(f"{k}={v!r}" for k, v in plain.items() if k != "_target_" and not isinstance(v, dict))
        raise ValueError(f"{key}: {message} (from {settings})") from error
