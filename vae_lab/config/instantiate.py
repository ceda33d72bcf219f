"""The one door from config to objects: only trusted classes are imported or called.

A config may come from a colleague or from a downloaded run, and `_target_` names what to call. Hydra refuses a list of
known dangerous targets; here only what is listed may be named at all.
"""

import os
import pydoc
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from vae_lab.models.vae import VAE

# Modules that hold nothing but parts.
PARTS = ("vae_lab.models", "vae_lab.objectives", "vae_lab.metrics", "vae_lab.data", "vae_lab.training.schedules")
# Single classes of packages that hold more. None of them calls what it is given, or writes where it is told to; loggers
# are told to write into the run folder. A run that has them and is killed continues exactly: what keeps a state outside
# the checkpoint, or evaluates a batch more than once, is not here.
CLASSES = {
    "vae_lab": ("Checkpoints", "Gallery", "Progress", "Pruning", "CsvLogger", "TensorBoardLogger", "WandbLogger"),
    "lightning.pytorch": ("Trainer",),
    "lightning.pytorch.callbacks": (
        *("DeviceStatsMonitor", "EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor", "ModelSummary"),
        *("RichModelSummary", "Timer", "WeightAveraging"),
    ),
    "lightning.pytorch.loggers": ("CSVLogger", "TensorBoardLogger"),
    "torch.optim": (
        *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop"),
        *("Rprop", "SGD"),
    ),
}


def trusted_packages() -> tuple[str, ...]:
    """The packages of which a `_target_` may name any class: ours, and those in VAE_LAB_TRUST, separated by commas."""
    named = os.environ.get("VAE_LAB_TRUST", "").split(",")
    return PARTS + tuple(package.strip() for package in named if package.strip())


def is_trusted(path: str) -> bool:
    """Whether a dotted path lies in a trusted package, or ends in the name of a trusted class of its package."""
    name = path.rpartition(".")[2]
    return any(path.startswith(f"{package}.") for package in trusted_packages()) or any(
        path.startswith(f"{package}.") and name in names for package, names in CLASSES.items()
    )


def check_resolved(key: str, node: Any) -> None:
    """Refuse text that another resolution would turn into something else, after the targets were checked.

    Raises:
        ValueError: naming the config key.
    """
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"{key}: ${{...}} is not allowed as plain text, got {node!r}")
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        check_resolved(f"{key}.{name}", child)


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
    are reachable under its name (`vae_lab.runs.folder.os.system`).

    Raises:
        ValueError: naming the config key and the target.
    """
    if not isinstance(target, str) or not is_trusted(target):
        raise ValueError(
            f"{key}: _target_ {target!r} is not trusted: it is none of our parts and none of the classes listed in "
            "vae_lab/instantiate.py (add your own package with VAE_LAB_TRUST=my_package)"
        )
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"{key}: cannot import {target}: {' '.join(str(error).split())}") from error
    if found is None:
        raise ValueError(f"{key}: cannot import {target}: there is no such name")
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not isinstance(found, type) or not is_trusted(home):
        raise ValueError(f"{key}: _target_ {target} is not a trusted class")


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
    check_resolved(key, plain)
    found = list(targets(plain))
    for path, target in found:
        check_target(key + path, target)
    if hasattr(hydra.utils, "execution_whitelist"):  # from Hydra 1.4 on
        kwargs["_execution_whitelist_"] = [target for _, target in found]
    try:
        return hydra.utils.instantiate(plain, _convert_="all", **kwargs)
    except InstantiationException as error:
        raise ValueError(refusal(key, plain, error.__cause__ or error)) from error


def refusal(key: str, plain: dict | list, cause: BaseException) -> str:
    """One line on why a constructor refused its arguments."""
    message = " ".join(str(cause).split())
    target = plain.get("_target_", "") if isinstance(plain, dict) else ""
    if isinstance(cause, ValueError) and target.startswith("vae_lab."):
        return message  # it names its key
    if isinstance(cause, TypeError) and target:
        settings = [f"{name}={value!r}" for name, value in plain.items() if name != "_target_"]
        return f"{key}: {message} (from {', '.join(settings)})"
    return f"{key}: {message}"


def build_vae(cfg: DictConfig) -> VAE:
    """Build the model a config describes.

    Raises:
        ValueError: if the parts do not fit each other or the images.
    """
    if not isinstance(cfg.latent_dim, int) or cfg.latent_dim < 1:
        raise ValueError(f"latent_dim must be a whole number >= 1, got {cfg.latent_dim!r}")
    channels, height, width = cfg.dataset.image_shape
    posterior = instantiate(cfg.posterior, "posterior")
    likelihood = instantiate(cfg.loss.likelihood, "loss.likelihood")
    for key, part, size in (
        ("posterior", posterior, "params_per_latent"),
        ("loss.likelihood", likelihood, "params_per_channel"),
    ):
        if not hasattr(part, size):
            raise ValueError(f"{key} must be a class with {size}, got {type(part).__name__}")
    encoder = instantiate(
        cfg.model.encoder,
        "model.encoder",
        image_shape=(channels, height, width),
        out_features=cfg.latent_dim * posterior.params_per_latent,
    )
    decoder = instantiate(
        cfg.model.decoder,
        "model.decoder",
        latent_dim=cfg.latent_dim,
        image_shape=(channels * likelihood.params_per_channel, height, width),
    )
    return VAE(encoder, decoder, posterior, likelihood, cfg.latent_dim, (channels, height, width))
