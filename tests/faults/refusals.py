"""What the tests of wrong settings share."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vae_lab.__main__ import CONF
from vae_lab.data.standard import Digits
from vae_lab.training.train import train


def composed(*overrides: str) -> DictConfig:
    """The config of a command line."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", list(overrides))


def refused(cfg: DictConfig) -> str:
    """Train, which must be refused before the bundled digits are read; the one line that says why."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "read", lambda self: pytest.fail("data was read"))
        with pytest.raises(ValueError, match=r"\A.+\Z") as caught:
            train(cfg)
    return str(caught.value)
