"""What the tests of wrong settings share."""

import pytest
from omegaconf import DictConfig

from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build


def refused(cfg: DictConfig) -> str:
    """Build what is trained, which must be refused; the one line that says why."""
    with pytest.raises(ValueError, match=r"\A.+\Z") as caught:
        build(cfg, Preemption())
    return str(caught.value)
