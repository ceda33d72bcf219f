"""A trained model, from the folder of its run or from an export of it, `model.safetensors` and `config.json`.

Whoever made the files, reading them executes nothing. The two of an export are checked against hashes, the text by
one of its own, the weights by that of the parameters.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vae_lab.config.instantiate import build_vae
from vae_lab.config.nested import ABSENT, lookup, walk
from vae_lab.config.roles import PLACES, Role, keys
from vae_lab.config.saved import check_links, load_saved
from vae_lab.errors import RunError, one_line
from vae_lab.models.vae import VAE
from vae_lab.runs.checkpoints import load_checkpoint
from vae_lab.runs.measurements import parameters_sha256
from vae_lab.runs.structure import check_structure

FORMAT, FORMAT_VERSION = "vae_lab", 1  # of an export
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MAX_BYTES = 1_000_000  # of config.json

# What must be in a checkpoint of ours, and in the text of an export.
CHECKPOINT = {
    **{"state_dict": dict, "global_step": 0, "vae_lab.images": str, "vae_lab.means": dict, "vae_lab.lr": 0.0},
    **dict.fromkeys(("vae_lab.seed", "vae_lab.epoch", "vae_lab.batch", "vae_lab.batches_seen"), 0),
    "vae_lab.validated_at": int,
}
EXPORT = {
    **{"checkpoint": str, "epoch": 0, "step": 0, "images": str, "parameters_sha256": str, "metrics": dict},
    "config": {key: 0 if key in ("seed", "latent_dim") else dict for key in keys(Role.SHARED)},
    "config.dataset.source": dict,
}


class Stored(NamedTuple):
    """What a folder holds of a trained model."""

    cfg: DictConfig
    weights: dict[str, Tensor]
    checkpoint: str  # best, last or one that was kept
    epoch: int  # that it was saved in, from 1
    step: int
    images: str  # the fingerprint of the images it was trained on
    source: Path  # the file of the weights
    sha256: str | None  # of the parameters, where it was kept
    objective: dict[str, Tensor] | None = None  # its weights, an adversary's; None of an export, which has none


def read_stored(folder: str | Path, checkpoint: str) -> Stored:
    """Read a run folder or an export; nothing in it is executed.

    Args:
        folder: of either kind.
        checkpoint: `best`, `last`, or one that was kept.

    Raises:
        RunError: if the folder or the checkpoint is missing or damaged.
        ValueError: if the config holds more than plain settings.
    """
    if not re.fullmatch(r"best|last|epoch_\d+", checkpoint):
        raise ValueError(f"checkpoint must be best, last or one that was kept, as epoch_0010, got {checkpoint!r}")
    folder = Path(folder)
    if is_export(folder):
        return read_export(folder, checkpoint)
    cfg = load_saved(folder)
    cfg.run_dir = str(folder)  # where it is now; it may have been moved, and there is no Hydra to ask
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    content = load_checkpoint(path)
    weights, facts = split_checkpoint(content, path)
    epoch = facts["epoch"] + (facts["batch"] > 0)
    named = {str(name): weight for name, weight in content["state_dict"].items()}
    of_objective = {n.removeprefix("objective."): w for n, w in named.items() if n.startswith("objective.")}
    return Stored(cfg, weights, checkpoint, epoch, content["global_step"], facts["images"], path, None, of_objective)


def is_export(folder: Path) -> bool:
    """Whether a folder holds a shared model, not a run."""
    return (folder / CONFIG).is_file() and not (folder / ".hydra").exists()


def read_export(folder: Path, checkpoint: str) -> Stored:
    """Read an export; whether the weights are those of its hash is for the model to say."""
    check_links(folder)
    content, path = read_content(folder / CONFIG), folder / WEIGHTS
    if checkpoint not in ("best", content["checkpoint"]):
        raise RunError(f"{folder} holds the {content['checkpoint']} checkpoint, not the {checkpoint} one")
    if not path.is_file():
        raise RunError(f"{folder} is not a whole export: there is no {path}")
    try:
        weights = safetensors.torch.load_file(path)
    except Exception as error:  # a damaged file raises the library's own error or one of half a dozen others
        raise RunError(f"{path} is damaged: {one_line(error)}; get it again") from error
    cfg = OmegaConf.create({"data_root": None, "run_dir": str(folder), **content["config"]})
    for key, place in PLACES.items():
        if OmegaConf.select(cfg, key, default=ABSENT) is not ABSENT:
            OmegaConf.update(cfg, key, place)  # this machine's, whatever the file says
    facts = {key: content[key] for key in ("checkpoint", "epoch", "step", "images")}
    return Stored(cfg, weights, **facts, source=path, sha256=content["parameters_sha256"])


def read_content(path: Path) -> dict[str, Any]:
    """Read `config.json`; nothing in it is left to be filled in from this machine."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} is no export: it has more than {MAX_BYTES:,} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(f"{path} is no export of vae-lab")
        if content.get("format_version") != FORMAT_VERSION:
            raise RunError(f"{path} has format {content.get('format_version')!r}, this program reads {FORMAT_VERSION}")
        if content.pop("sha256", None) != content_sha256(content):
            raise RunError(f"{path} is damaged or was changed: its checksum is wrong; get it again")
        for key, value in walk(content):
            if isinstance(value, str) and ("${" in value or value == "???"):
                raise RunError(f"{path}: {key} must not be left to be filled in, got {value[:200]!r}")
        check_structure("", {key: lookup(content, key) for key in EXPORT}, EXPORT)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}; get it again") from error
    return content


def content_sha256(content: dict[str, Any]) -> str:
    """Hash of JSON content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def split_checkpoint(content: dict[str, Any], path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of the model in a checkpoint, by their names there, and what we added to it.

    Args:
        content: of the checkpoint.
        path: of it, for the message.

    Raises:
        RunError: if it is not a checkpoint of ours.
    """
    try:
        check_structure("", {key: lookup(content, key) for key in CHECKPOINT}, CHECKPOINT)
    except ValueError as error:
        raise RunError(f"{path} is not a checkpoint of vae-lab: {error}") from error
    weights = {str(name): weight for name, weight in content["state_dict"].items()}
    own = {name.removeprefix("vae."): w for name, w in weights.items() if not name.startswith("objective.")}
    return own, content["vae_lab"]


def build_stored(stored: Stored) -> VAE:
    """Build the model and load its weights; on the CPU, in evaluation mode and without gradients.

    Args:
        stored: what a folder holds.

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
    vae.load_state_dict(stored.weights)
    if stored.sha256 not in (None, parameters_sha256(vae)):
        raise RunError(f"{stored.source} is damaged: its weights are not those that were exported; get it again")
    return vae.eval().requires_grad_(False)


def initialize(vae: VAE, folder: str | Path) -> str:
    """Start a model from the best weights of a run, whatever else that run's settings were.

    Args:
        vae: the model; each weight must have its counterpart of the same shape.
        folder: of the run, or an export.

    Returns:
        What was taken, for the record.

    Raises:
        RunError: if the folder or the checkpoint is missing or damaged.
        ValueError: naming the first weight that does not fit.
    """
    stored = read_stored(Path(folder).expanduser(), "best")
    try:
        check_structure("", stored.weights, dict(vae.state_dict()))
    except ValueError as error:
        raise ValueError(f"init={folder}: its weights do not fit this model: {error}") from error
    vae.load_state_dict(stored.weights)
    return f"starting from {stored.source} of {stored.epoch} epochs, weights {parameters_sha256(vae)[:12]}"


def check_fit(vae: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Compare names, shapes and types of weights with those of a model.

    Args:
        vae: the model.
        weights: by their names in it.
        source: their file, for the message.

    Raises:
        RunError: naming the file and the first weight that does not fit.
    """
    try:
        check_structure("", weights, dict(vae.state_dict()))
    except ValueError as error:
        raise RunError(f"{source} does not fit its config: {error}") from error
