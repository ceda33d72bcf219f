"""What a key is that a config lacks: what its class takes without it, or else its default in `conf/` as it is now.

So a key that is new in `conf/` makes no other experiment of the older runs, if it says what went without saying. A
default that has changed does: their configs hold the value that they had.
"""

import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab.config.composing import composed
from vae_lab.config.help import CONF
from vae_lab.config.nested import ABSENT, Settings, leaves, resolved
from vae_lab.config.roles import HERE, differences
from vae_lab.config.saved import MAX_BYTES, read_plain, read_saved, saved_config

KEPT = 4096  # configs of runs that are remembered
EMPTY = inspect.Parameter.empty
REMOVED = re.compile(r"^- '?~([\w.@/]+)", re.MULTILINE)  # in a run's overrides.yaml


def settings_of(cfg: DictConfig) -> Settings:
    """The leaves of a config, references followed; where things are on this machine stands there by name."""
    return resolved(plain_leaves(OmegaConf.to_container(cfg)))


def plain_leaves(plain: Any) -> Settings:
    """The same of plain dicts, with references as they are written; an empty dict says nothing."""
    own = {key: value for key, value in plain.items() if key != "hydra"}
    return {key: value for key, value in leaves(own | HERE).items() if value != {}}


def changes(folder: Path, wanted: Settings, hydra: DictConfig | None = None) -> dict[str, tuple[Any, Any]]:
    """The settings in which a config differs from that of the run in a folder, with both values.

    Args:
        folder: of the run.
        wanted: the settings of a config that was composed now.
        hydra: Hydra's own node of that config, which says where config files are.

    Raises:
        RunError, ValueError: if it is no run folder, or its config is damaged.
    """
    saved = saved_leaves(folder, written(folder))
    if not wanted.keys() <= saved.keys():
        sources = hydra.runtime.config_sources if hydra else ()
        places = tuple(source.path for source in sources if source.schema == "file" and Path(source.path) != CONF)
        known = defaults_of(folder, places)
        saved = complete(saved, {key: known.get(key, ABSENT) for key in wanted})
    return differences(resolved(saved), complete(wanted, dict.fromkeys(saved, ABSENT)))


@lru_cache(KEPT)
def saved_settings(folder: Path, time: int) -> Settings:
    """The settings of a run's config, as that was written at some time."""
    return resolved(saved_leaves(folder, time))


@lru_cache(KEPT)
def saved_leaves(folder: Path, time: int) -> Settings:
    """The same with references as they are written."""
    return plain_leaves(read_saved(folder))


def written(folder: Path) -> int:
    """When the config of a run was written, in nanoseconds."""
    path = saved_config(folder)
    return path.stat().st_mtime_ns if path.is_file() else 0


def defaults_of(folder: Path, places: tuple[str, ...] = ()) -> Settings:
    """What `conf/` has now for the options that a run chose, without what its command removed; {} where nobody knows.

    Args:
        folder: of the run.
        places: further folders of options.

    Raises:
        RunError, ValueError: if the record of its options is damaged.
    """
    choices, overrides = (saved_config(folder).with_name(f"{name}.yaml") for name in ("choices", "overrides"))
    if not choices.is_file() or not overrides.is_file():
        return {}
    known = options(tuple((group, str(option)) for group, option in read_plain(choices).items()), places)
    text = overrides.read_bytes()[:MAX_BYTES].decode(errors="replace")
    removed = tuple(f"{key}." for key in REMOVED.findall(text))
    return {key: value for key, value in known.items() if not f"{key}.".startswith(removed)}


@lru_cache
def options(choices: tuple[tuple[str, str], ...], places: tuple[str, ...] = ()) -> Settings:
    """The leaves of some options as `conf/` has them now, references as they are written; {} where one is gone.

    Args:
        choices: an option of each group; what an experiment sets is no default, and a machine's own file comes anyway.
        places: further folders of options.
    """
    others = ("hydra/", "experiment", "local")
    ours = [(group, option) for group, option in choices if option != "None" and not group.startswith(others)]
    if not all(re.fullmatch(r"[\w/@.-]+=[\w/-]+", f"{group}={option}") for group, option in ours):
        return {}
    search = [f"hydra.searchpath=[{','.join(f'file://{place}' for place in places)}]"] if places else []
    try:
        return plain_leaves(
            OmegaConf.to_container(composed([*(f"{group}={option}" for group, option in ours), *search]))
        )
    except (HydraException, OmegaConfBaseException, yaml.YAMLError):
        return {}


def complete(settings: Settings, defaults: Settings) -> Settings:
    """Settings with the keys that they lack.

    Args:
        settings: of a config.
        defaults: the keys that it may lack, each with its default, or ABSENT where there is none.
    """
    inner = {key[: dot.start()] for key in settings for dot in re.finditer(r"\.", key)}
    found = dict(settings)
    for key, default in defaults.items():
        above = (key[: dot.start()] for dot in re.finditer(r"\.", key))
        if key in settings or key in inner or any(node in settings for node in above):
            continue
        taken = taken_without(settings, key)
        value = default if taken is ABSENT or (taken is None and default is not ABSENT) else taken
        if value is not ABSENT:
            found[key] = value
    return found


def taken_without(settings: Settings, key: str) -> Any:
    """What the class that a key is an argument of takes without it; ABSENT where that is not plain."""
    part, _, name = key.rpartition(".")
    if f"{part}._target_" not in settings:
        return ABSENT
    from vae_lab.config.instantiate import check_target  # torch, some seconds

    try:
        parameters = inspect.signature(check_target(part, settings[f"{part}._target_"])).parameters
    except ValueError:  # not trusted, or not written in Python
        return ABSENT
    value = parameters[name].default if name in parameters else EMPTY
    value = list(value) if isinstance(value, tuple) else value
    return value if value is None or isinstance(value, bool | int | float | str | list) else ABSENT
