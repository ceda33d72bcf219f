"""A trained model as two files to share: `model.safetensors`, and `config.json` with what rebuilds it.

Neither can hold code. Both are checked when they are read: the text by a hash of its own, the weights by theirs.
They hold nothing of the machine they come from: no path, no secret and no text from the environment.
"""

import hashlib
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vae_lab.config.roles import PLACES, Role, keys
from vae_lab.config.secrets import MASK, redact
from vae_lab.errors import RunError
from vae_lab.runs.files import durable_open, write_json

FORMAT, FORMAT_VERSION = "vae_lab", 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
SHARED = keys(Role.SHARED)
FACTS = {"checkpoint": str, "epoch": int, "images": str, "parameters_sha256": str, "config": dict, "metrics": dict}
MAX_BYTES = 1_000_000  # of config.json
_ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*(\w+)")


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a shared model, not a run."""
    return (folder / CONFIG).is_file() and not (folder / ".hydra").exists()


def shareable(cfg: DictConfig) -> dict[str, Any]:
    """What of a run's config rebuilds its model and its images, resolved; text that belongs to one machine is null."""
    named = _ENVIRONMENT.findall(OmegaConf.to_yaml(cfg))
    values = {os.environ[name] for name in named if os.environ.get(name)}
    cfg = cfg.copy()
    for key in PLACES:
        if OmegaConf.select(cfg, key) is not None:
            OmegaConf.update(cfg, key, None)
    nodes = {key: cfg[key] for key in SHARED}
    resolved = {k: OmegaConf.to_container(n, resolve=True) if OmegaConf.is_config(n) else n for k, n in nodes.items()}
    return without_local(redact(resolved), values)


def located(config: dict[str, Any], folder: Path) -> DictConfig:
    """The config of an export, with the places that a run on this machine has by default."""
    cfg = OmegaConf.create({"data_root": None, "run_dir": str(folder), **config})
    for key, value in PLACES.items():
        if OmegaConf.select(cfg, key, default="absent") is None:
            OmegaConf.update(cfg, key, value)
    return cfg


def without_local(node: Any, values: set[str]) -> Any:
    """A copy of nested containers in which text of one machine is null: paths, secrets and the values given."""
    if isinstance(node, dict):
        kept = {key: item for key, item in node.items() if not is_path(str(key))}
        return {key: item if key == "_target_" else without_local(item, values) for key, item in kept.items()}
    if isinstance(node, list):
        return [without_local(item, values) for item in node]
    if not isinstance(node, str):
        return node
    has_value = any(node == value or (len(value) > 3 and value in node) for value in values)
    return None if has_value or is_path(node) or MASK in node else node


def is_path(text: str) -> bool:
    """Whether text could lead to a file."""
    return "/" in text or "\\" in text or text.startswith(("~", ".."))


def write_bundle(folder: Path, config: dict, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write both files, each whole or not at all; between the two, the old and the new do not fit and are not read.

    Args:
        folder: made if it does not exist.
        config: from `shareable`.
        weights: of the model.
        facts: the other `FACTS`.

    Raises:
        RunError: if they cannot be written, or would replace files of another kind.
    """
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        check_replaces(folder)
    separate = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    with durable_open(folder / WEIGHTS, sum(value.nbytes for value in separate.values())) as file:
        file.write(safetensors.torch.save(separate))
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "vae_lab": version("vae_lab"), **facts}
    content = json.loads(json.dumps({**content, "config": config}))
    write_json(folder / CONFIG, {**content, "sha256": content_sha256(content)})


def check_replaces(folder: Path) -> None:
    """Refuse to write over files that are no export.

    Raises:
        RunError: naming the folder.
    """
    try:
        is_ours = json.loads((folder / CONFIG).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise RunError(f"{folder} holds a {CONFIG} or {WEIGHTS} that is no export; choose another folder with out=DIR")


def read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check both files; whether the weights are those of `parameters_sha256` is for the model to say.

    Returns:
        The content of `config.json`, and the weights.

    Raises:
        RunError: if a file is missing, damaged, of another kind, or holds what no export does.
    """
    content = read_content(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise RunError(f"{folder} is not a whole export: there is no {path}")
    try:
        return content, safetensors.torch.load_file(path)
    except Exception as error:  # a damaged file raises the library's own error or one of half a dozen others
        raise RunError(f"{path} is damaged: {' '.join(str(error).split())}; get it again") from error


def read_content(path: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        RunError: if it is damaged, of another kind, or holds what no export does.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} is no export: it has more than {MAX_BYTES:,} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}; get it again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunError(f"{path} is no export of vae-lab")
    if content.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} has format {content.get('format_version')!r}, this program reads {FORMAT_VERSION}")
    if content.pop("sha256", None) != content_sha256(content):
        raise RunError(f"{path} is damaged or was changed: its checksum is wrong; get it again")
    for key, kind in FACTS.items():
        if not isinstance(content.get(key), kind):
            raise RunError(f"{path} is damaged: {key} is not a {kind.__name__}")
    config = content["config"]
    kinds = {key: int if key in ("seed", "latent_dim") else dict for key in SHARED}
    if set(config) != set(SHARED) or not all(isinstance(config[key], kind) for key, kind in kinds.items()):
        raise RunError(f"{path} is no export: config must hold {', '.join(SHARED)}, each of its kind")
    if not isinstance(config["dataset"].get("source"), dict):
        raise RunError(f"{path} is no export: config.dataset.source is not a dict")
    check_text(path, "config", config)
    return content


def check_text(path: Path, key: str, node: Any) -> None:
    """Refuse text that would take something from this machine: interpolations, and paths.

    Raises:
        RunError: naming the file and the key.
    """
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            check_text(path, f"{key}.{name}", child)
            check_text(path, f"{key}: a name in it", name)
    elif isinstance(node, str) and ("${" in node or node == "???" or is_path(node)):
        raise RunError(f"{path}: {key} must be neither a path nor left to be filled in, got {node[:200]!r}")


def content_sha256(content: dict[str, Any]) -> str:
    """Hash of JSON content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
