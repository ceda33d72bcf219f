"""What makes two jobs the same: the settings that decide their numbers. A job's folder is found again by them."""

import hashlib
import json
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae_lab.config.nested import leaves
from vae_lab.config.roles import is_identity
from vae_lab.runs.folder import folder_name

MAX_TITLE = 80  # characters of a folder's name that say what the job is


def identity(cfg: DictConfig) -> str:
    """Eight hexadecimal digits: the hash of the resolved config without what is free.

    Paths below `data_root` count as they are written, so that a moved data folder changes nothing.

    Args:
        cfg: a composed config, with or without Hydra's own node.
    """
    kept = OmegaConf.masked_copy(cfg, [key for key in cfg if is_identity(key)])
    kept.data_root = "data_root"
    settings = leaves(OmegaConf.to_container(kept, resolve=True))
    content = {key: value for key, value in settings.items() if is_identity(key)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def job_folder(overrides: list[str] | None = None, *, _root_: DictConfig) -> str:
    """The name of a job's folder in that of its sweep: the one that has its identity, else `OVERRIDES_IDENTITY`.

    Args:
        overrides: that say what the job is; None is all that it has.
        _root_: its composed config, with Hydra's own node.
    """
    key = identity(_root_)
    existing = next(Path(_root_.hydra.sweep.dir).glob(f"*_{key}"), None)
    return existing.name if existing else f"{title(overrides or _root_.hydra.overrides.task)}_{key}"


def title(overrides: list[str]) -> str:
    """Overrides as part of a folder's name."""
    shown = [override for override in overrides if is_identity(override.lstrip("+~").partition("=")[0])]
    return folder_name(None, re.sub(r"[\s'\"\\]", "", ",".join(shown))[:MAX_TITLE] or "defaults")


def sweep_of(run: Path) -> Path | None:
    """The folder of the sweep that a run folder belongs to, by the file that Hydra writes there."""
    parent = run.absolute().parent
    return parent if (parent / "multirun.yaml").exists() else None


def tags_of(run: Path) -> list[str]:
    """The overrides of a job that make it what it is, as W&B takes them: at most 64 characters each."""
    path = run / ".hydra" / "overrides.yaml"
    overrides = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
    return [override[:64] for override in overrides if is_identity(override.lstrip("+~").partition("=")[0])]
