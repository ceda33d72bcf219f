"""Hydra, asked for a config within any process: what Hydra and its user keep there is afterwards as it was."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode, TaskFunction
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.help import CONF

LOCK = threading.Lock()  # Hydra composes one config at a time


def composed(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The config of a command line, with Hydra's own node.

    Args:
        overrides: of the command line, without flags.
        name: of the file in `conf/`, or of a config that Hydra's store holds.

    Raises:
        HydraException, OmegaConfBaseException, YAMLError: see `vae_lab.config.explain`.
    """
    with LOCK:
        state, base = GlobalHydra.instance(), VersionBase.instance()
        before, state.hydra, version = state.hydra, None, base.version_base  # of a program of Hydra's that runs
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return compose(name, list(overrides), return_hydra_config=True)
        finally:
            GlobalHydra.set_instance(state)
            state.hydra, base.version_base = before, version


def run_once(task: TaskFunction, mode: RunMode, arguments: Sequence[str]) -> bool:
    """Run what `hydra.main` would, which composes the config twice: the first time only for its `hydra.mode`.

    Args:
        task: of each job.
        mode: whether the command is a single run or a sweep.
        arguments: of the command, without the flag that says so.

    Returns:
        Whether it was run: not where there are other flags, or where the config may choose another mode.

    Raises:
        HydraException, OmegaConfBaseException, YAMLError: see `vae_lab.config.explain`.
    """
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if argument not in flags]
    name = flags.pop().removeprefix("--config-name=") if flags else "config"
    if flags or name.startswith("-"):
        return False
    parsed = OverridesParser.create().parse_overrides(overrides)
    if mode == RunMode.RUN and any(override.is_sweep_override() for override in parsed):
        return False
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        cfg = hydra.compose_config(name, overrides, mode, with_log_configuration=True)
        if cfg.hydra.mode not in (None, mode):
            return False
        if cfg.hydra.mode is None:
            cfg.hydra.mode = mode
            cfg.hydra.overrides.hydra.append(f"hydra.mode={mode.name}")
        hydra.compose_config = lambda **_: cfg  # of this object alone, which does the rest
        (hydra.run if mode == RunMode.RUN else hydra.multirun)(name, task, overrides)
    return True


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy without Hydra's own node."""
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    OmegaConf.set_struct(own, OmegaConf.is_struct(cfg))
    OmegaConf.copy_cache(cfg, own)  # of resolvers such as ${now:}, which all jobs of a sweep share
    return own


def names_folder(cfg: DictConfig, hydra: DictConfig) -> bool:
    """Whether a config, with Hydra's node, names the run's folder, which else is a new one at every start."""
    plain: Any = OmegaConf.to_container(cfg)
    is_given = plain.get("run_dir", "${hydra:runtime.output_dir}") != "${hydra:runtime.output_dir}"
    return is_given or "${unique:}" not in cast(dict, OmegaConf.to_container(hydra.run))["dir"]


def folder_of(cfg: DictConfig) -> str:
    """The run's folder, as a config that holds Hydra's node names it."""
    with chosen(cfg):
        return os.path.abspath(cfg.hydra.run.dir)


@contextmanager
def chosen(cfg: DictConfig) -> Iterator[None]:
    """While the block runs, Hydra knows what was chosen in a config that holds its node, as in a run of its own."""
    state = HydraConfig.instance()
    before = state.cfg
    state.set_config(cfg)
    try:
        yield
    finally:
        state.cfg = before
