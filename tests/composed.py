"""Configs as the command line composes them, in a few milliseconds each after the first with the same choices."""

import copy
from functools import cache

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab.__main__ import CONF


def composed(*overrides: str) -> DictConfig:
    """The config of a command line. Hydra composes what chooses options; values are then set as Hydra sets them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    values = [one for one in parsed if not one.is_delete() and not (CONF / one.key_or_group).is_dir()]
    cfg = copy.deepcopy(_composed(tuple(one.input_line for one in parsed if one not in values)))
    try:
        for one in values:
            if one.is_add() and OmegaConf.select(cfg, one.key_or_group) is not None:
                break
            OmegaConf.update(cfg, one.key_or_group, one.value(), force_add=one.is_add() or one.is_force_add())
        else:
            return cfg
    except OmegaConfBaseException:
        pass
    return copy.deepcopy(_composed(overrides))  # Hydra says what is wrong


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", list(overrides))
