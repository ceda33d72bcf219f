"""A trained model, from the folder of its run or from an export of it."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vae_lab.config.instantiate import build_vae
from vae_lab.config.saved import check_links, load_saved, one_line
from vae_lab.errors import RunError
from vae_lab.models.vae import VAE
from vae_lab.runs.bundle import WEIGHTS, is_bundle, located, read_bundle
from vae_lab.runs.checkpoints import load_checkpoint
from vae_lab.runs.measure import parameters_sha256

# What must be in a checkpoint of ours.
CHECKPOINT = {
    **{"state_dict": dict, "global_step": int, "vae_lab": dict, "vae_lab.images": str, "vae_lab.means": dict},
    **dict.fromkeys((f"vae_lab.{count}" for count in ("seed", "epoch", "batch", "batches_seen", "validated_at")), int),
    "vae_lab.lr": float | int,
}


class TrainedRun(NamedTuple):
    """A trained model with the config it was built from."""

    vae: VAE
    cfg: DictConfig


class Stored(NamedTuple):
    """What a folder holds of a trained model."""

    cfg: DictConfig
    weights: dict[str, Tensor]
    checkpoint: str  # best or last
    epoch: int  # finished epochs
    images: str  # the fingerprint of the images it was trained on
    source: Path  # the file of the weights
    sha256: str | None  # of the parameters, where it was kept


def load_run(run_dir: str | Path, checkpoint: str = "best") -> TrainedRun:
    """Load a trained model and its config.

    Args:
        run_dir: the run folder, or a folder that `vae-lab-export` wrote.
        checkpoint: `best` or `last`; an export holds only one of them.

    Returns:
        The model on the CPU, in evaluation mode and without gradients, and its config.

    Raises:
        RunError: if the folder or the checkpoint is missing or damaged.
        ValueError: if the config names a class that is not trusted.
    """
    stored = read_stored(run_dir, checkpoint)
    return TrainedRun(build_stored(stored), stored.cfg)


def read_stored(folder: str | Path, checkpoint: str) -> Stored:
    """Read a run folder or an export; nothing in it is executed.

    Raises:
        RunError, ValueError: as `load_run`.
    """
    folder = Path(folder)
    if not is_bundle(folder):
        return read_run(folder, checkpoint)
    check_links(folder)
    content, weights = read_bundle(folder)
    if checkpoint not in ("best", content["checkpoint"]):
        raise RunError(f"{folder} holds the {content['checkpoint']} checkpoint, not the {checkpoint} one")
    facts = (content[key] for key in ("checkpoint", "epoch", "images"))
    return Stored(located(content["config"], folder), weights, *facts, folder / WEIGHTS, content["parameters_sha256"])


def read_run(folder: Path, checkpoint: str) -> Stored:
    """Read a run folder.

    Raises:
        RunError, ValueError: as `load_run`.
    """
    cfg = load_saved(folder)
    cfg.run_dir = str(folder)  # where it is now; it may have been moved, and there is no Hydra to ask
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    weights, facts = split_checkpoint(load_checkpoint(path), path)
    return Stored(cfg, weights, checkpoint, facts["epoch"], facts["images"], path, None)


def split_checkpoint(content: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of the model in a checkpoint, by their names there, and what we added to it.

    Raises:
        RunError: if it is not a checkpoint of ours.
    """
    facts = content.get("vae_lab")
    inner = facts if isinstance(facts, dict) else {}
    found = {**content, **{f"vae_lab.{key}": value for key, value in inner.items()}}
    for key, kind in CHECKPOINT.items():
        value = found.get(key)
        if not isinstance(value, kind) or kind is int and value < (-1 if key == "vae_lab.validated_at" else 0):
            raise RunError(f"{path} is not a checkpoint of vae-lab: {key} is missing or not what it must be")
    return {str(name).removeprefix("vae."): weight for name, weight in content["state_dict"].items()}, facts


def build_stored(stored: Stored) -> VAE:
    """Build the model and load its weights; on the CPU, in evaluation mode and without gradients.

    Raises:
        RunError: if the weights do not fit the config, or are not those that were exported.
        ValueError: if the config does not describe a model.
    """
    try:
        vae = build_vae(stored.cfg)
    except ValueError:
        raise  # it names the key
    except Exception as error:  # a config that is not one of ours can lack anything, anywhere
        raise ValueError(f"the config beside {stored.source} does not describe a model: {one_line(error)}") from error
    check_fit(vae, stored.weights, stored.source)
    try:
        vae.load_state_dict(stored.weights)
    except RuntimeError as error:
        raise RunError(f"{stored.source} does not fit its config: {one_line(error)}") from error
    if stored.sha256 not in (None, parameters_sha256(vae)):
        raise RunError(f"{stored.source} is damaged: its weights are not those that were exported; get it again")
    return vae.eval().requires_grad_(False)


def check_fit(vae: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Compare names, shapes and types of weights with what a model wants, so that one line can say what differs.

    Raises:
        RunError: naming the file and the first weight that does not fit.
    """
    wanted = vae.state_dict()
    for name in sorted({*wanted, *weights}, key=str):
        has, wants = describe(weights.get(name)), describe(wanted.get(name))
        if has != wants:
            raise RunError(f"{source} does not fit its config: {name} is {has}, the model wants {wants}")


def describe(weight: object) -> str:
    """What decides whether a weight fits."""
    if not isinstance(weight, Tensor):
        return "missing" if weight is None else f"a {type(weight).__name__}"
    kind = str(weight.dtype).removeprefix("torch.")
    layout = "" if weight.layout == torch.strided else f" {weight.layout}"
    return f"{kind} {tuple(weight.shape)}{layout}{'' if weight.device.type == 'cpu' else f' on {weight.device}'}"
