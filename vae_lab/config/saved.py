"""The config in a run folder, read as what it may be: somebody else's.

A run writes its config as plain YAML. Whatever else YAML or Hydra would do with the file is refused: tags that build
objects, anchors that unfold into gigabytes, and the sections with which Hydra itself is configured.
"""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab.errors import RunError, one_line

MAX_BYTES = 200_000  # a hundred times what a run writes
MAX_DEPTH = 40


Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C, which may be missing, is ten times as fast


class Loader(Base):
    """Reads plain values as OmegaConf does: 1e-3 is a number, 2026-01-01 is text."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


NUMBER = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789"))


def saved_config(folder: str | Path) -> Path:
    """Where a run folder keeps its config."""
    return Path(folder) / ".hydra" / "config.yaml"


def load_saved(folder: str | Path) -> DictConfig:
    """Read the config of a run, unresolved.

    Raises:
        RunError: if the folder is not a run folder, leads elsewhere, or its config is damaged.
        ValueError: if the config holds more than plain settings.
    """
    try:
        return OmegaConf.create(read_saved(folder))
    except OmegaConfBaseException as error:
        raise RunError(f"{saved_config(folder)} is damaged: {one_line(error)}") from error


def read_saved(folder: str | Path) -> dict:
    """The same as plain values, in a sixth of the time; what OmegaConf would refuse is not noticed."""
    path = saved_config(folder)
    if not path.is_file():
        runs = sorted(p.parent.parent for p in Path(folder).glob("*/.hydra/config.yaml"))
        more = f"; it holds {len(runs)} runs: name one of them, such as {runs[0]}" if runs else ""
        raise RunError(f"{folder} is not a run folder: there is no {path}{more}")
    check_links(Path(folder))
    content = read_plain(path)
    for key in ("hydra", "defaults"):
        if key in content:
            raise ValueError(f"{path} must not set {key}, which Hydra obeys; remove that key")
    return content


def read_plain(path: Path) -> dict:
    """Read a mapping of plain values from YAML; what no run writes is refused: aliases, which unfold, and deep nesting.

    Raises:
        RunError: if the file cannot be read, or is damaged.
        ValueError: if it holds more than plain settings.
    """
    refused = f"{path} holds more than plain settings"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} is not a config: it has more than {MAX_BYTES:,} bytes")
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"{refused}: a YAML alias; write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"{refused}: more than {MAX_DEPTH} levels")
        content = yaml.load(text, Loader)
    except yaml.constructor.ConstructorError as error:
        raise ValueError(f"{refused}: {one_line(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a config: it holds no keys")
    return content


def check_links(folder: Path) -> None:
    """Refuse a folder with a link out of it, through which we would write, or with a pipe, which would wait for ever.

    Inside `wandb/` there may be links and sockets: W&B makes them itself, and writes to no file that is there already.

    Raises:
        RunError: naming the link, the pipe, socket or device.
    """
    inside = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise RunError(f"{path} is a link out of the run folder; replace it by what it leads to")
            if path.exists() and not path.is_file() and not path.is_dir():
                raise RunError(f"{path} is neither a file nor a folder; remove it")
        if Path(parent) == folder and "wandb" in folders:
            folders.remove("wandb")
