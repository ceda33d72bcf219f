"""The one door from config to objects: only trusted classes are imported or called.

A config may come from a colleague or from a downloaded run, and `_target_` names what to call. Hydra refuses a list of
known dangerous targets; here only what is listed may be named at all.
"""

import os
import pydoc
from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vae_lab.config.nested import walk
from vae_lab.errors import one_line
from vae_lab.models.networks.conditional import ConditionalDecoder, ConditionalEncoder
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE

# The rooms of the parts: whatever class is defined there may be named.
ROOMS = ("vae_lab.models", "vae_lab.objectives", "vae_lab.metrics", "vae_lab.data", "vae_lab.training.schedules")
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


def is_trusted(path: str) -> bool:
    """Whether a dotted path lies in a trusted package (VAE_LAB_TRUST adds some), or names a class that is listed."""
    named = (package.strip() for package in os.environ.get("VAE_LAB_TRUST", "").split(","))
    if any(path.startswith(f"{package}.") for package in (*ROOMS, *filter(None, named))):
        return True
    name = path.rpartition(".")[2]
    return any(path.startswith(f"{package}.") and name in names for package, names in CLASSES.items())


def targets(plain: Any, key: str = "") -> list[tuple[str, Any]]:
    """Every `_target_` in a plain nested container, with the dotted key of the node that holds it."""
    return [
        (path, node["_target_"]) for path, node in walk(plain, key) if isinstance(node, dict) and "_target_" in node
    ]


def check_target(key: str, target: Any) -> type:
    """The class that a target names, which must be defined in a trusted package.

    The name is checked first, so that nothing else is imported; then what it leads to, because a module's own imports
    are reachable under its name (`vae_lab.runs.folder.os.system`).

    Raises:
        ValueError: naming the config key and the target.
    """
    if not isinstance(target, str) or not is_trusted(target):
        raise ValueError(
            f"{key}: _target_ {target!r} is not trusted: it is in none of {', '.join(ROOMS)}, and none of the classes "
            "listed in vae_lab/config/instantiate.py (add your own package with VAE_LAB_TRUST=my_package)"
        )
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise ValueError(f"{key}: cannot import {target}: {one_line(error)}") from error
    if found is None:
        raise ValueError(f"{key}: cannot import {target}: there is no such name")
    home = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not isinstance(found, type) or not is_trusted(home):
        raise ValueError(f"{key}: _target_ {target} is not a trusted class")
    return found


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
    plain: Any = OmegaConf.to_container(config, resolve=True)
    for path, node in walk(plain, key):
        if isinstance(node, str) and "${" in node:  # what is built may resolve it, after the targets were checked
            raise ValueError(f"{path}: ${{...}} is not allowed as plain text, got {node!r}")
    for path, target in targets(plain, key):
        check_target(path, target)
    try:
        return construct(plain, **kwargs)
    except Exception as cause:  # of a constructor, a user's own among them
        message, target = one_line(cause), plain.get("_target_", "") if isinstance(plain, dict) else ""
        if isinstance(cause, TypeError) and target:
            settings = [f"{name}={value!r}" for name, value in plain.items() if name != "_target_"]
            message = f"{message} (from {', '.join(settings)})"
        names_its_key = isinstance(cause, ValueError) and target.startswith("vae_lab.")
        raise ValueError(message if names_its_key else f"{key}: {message}") from cause


def construct(node: Any, **given: Any) -> Any:
    """What a plain node describes, whose targets were checked; Hydra's own takes milliseconds for each."""
    if isinstance(node, list):
        return [construct(child) for child in node]
    if not isinstance(node, dict):
        return node
    values = {key: construct(child) for key, child in node.items()} | given
    if "_target_" not in values:
        return values
    found: Any = pydoc.locate(values.pop("_target_"))
    return partial(found, **values) if values.pop("_partial_", False) else found(**values)


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
    for key, part, size in (("posterior", posterior, "latent"), ("loss.likelihood", likelihood, "channel")):
        if not hasattr(part, f"params_per_{size}"):
            raise ValueError(f"{key} must be a class with params_per_{size}, got {type(part).__name__}")
    num_params = cfg.latent_dim * posterior.params_per_latent + getattr(posterior, "params_per_image", 0)
    labels = num_classes(cfg)
    sizes = {"image_shape": (channels + bool(labels), height, width), "out_features": num_params}
    encoder: Any = instantiate(cfg.model.encoder, "model.encoder", **sizes) if num_params else None
    shape = (channels * likelihood.params_per_channel, height, width)
    sizes = {"latent_dim": cfg.latent_dim + sum(labels), "image_shape": shape}
    decoder = instantiate(cfg.model.decoder, "model.decoder", **sizes)
    spatial = [bool(getattr(network, "grid", ())) for network in (encoder, decoder)]
    if encoder is not None and spatial[0] != spatial[1]:
        got = f"got {spatial[0]} and {spatial[1]}"
        raise ValueError(f"model.encoder.spatial and model.decoder.spatial must be the same, {got}; set model.spatial")
    if labels:
        encoder = ConditionalEncoder(encoder, labels, (height, width)) if num_params else None
        decoder = ConditionalDecoder(decoder, labels)
    name, grid = type(posterior).__name__, getattr(decoder, "grid", ())  # a decoder with a grid takes (B, D, h, w)
    if grid and not getattr(posterior, "takes_grid", False):
        raise ValueError(
            f"posterior: {name} has one vector of latents for each image, not a grid; set model.spatial=false"
        )
    latent_shape = (cfg.latent_dim, *grid)
    has_prior = posterior.has_density
    if not has_prior and "objective" in cfg:
        has_prior = getattr(check_target("objective", cfg.objective._target_), "matches_prior", False)
    if not hasattr(posterior, "prior"):
        prior = instantiate(cfg.prior, "prior", latent_shape=latent_shape) if has_prior else None
    elif check_target("prior", cfg.prior._target_) is StandardNormal:  # the default
        prior = posterior.prior(latent_shape)
    else:
        raise ValueError(
            f"prior: {name} brings a prior of its own, because no other has its latents; leave prior=standard_normal"
        )
    return VAE(encoder, decoder, posterior, prior, likelihood, latent_shape, (channels, height, width))


def num_classes(cfg: DictConfig) -> list[int]:
    """The classes of each label column that the networks see; none of a model that is not conditional.

    Raises:
        ValueError: if the dataset has no labels.
    """
    if not cfg.model.get("conditional", False):
        return []
    found = cfg.dataset.get("num_classes")
    if not found or any(type(number) is not int or number < 1 for number in found):
        raise ValueError(
            f"model.conditional=true needs a dataset with labels, got dataset.num_classes={found}; for pictures in a "
            "folder for each class, or arrays with labels, say how many there are: dataset.num_classes=[NUMBER]"
        )
    return list(found)
