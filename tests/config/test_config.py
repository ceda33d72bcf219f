"""Every option of every group composes and builds; ../test_grid.py has the pairs of those that make a model."""

import itertools

import pytest
import torch
from composed import composed
from omegaconf import OmegaConf

from vae_lab.config.composing import without_hydra
from vae_lab.config.help import CONF, groups
from vae_lab.config.instantiate import build_vae
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build

OPTIONS = {group: list(names) for group, names in groups(CONF).items() if "hydra" not in group}
# What an option needs beside it.
WITH = {
    "model=unpadded": ["dataset.image_size=16"],
    "dataset=image_folder": ["dataset.root=pictures"],
    "dataset=arrays": ["dataset.root=images.npy"],
    "trainer=gpu": ["trainer.accelerator=cpu"],
    "metrics=nll": ["metrics.nll.samples=2"],
}


def together(*names: str) -> list[list[str]]:
    """An option of each of some groups at a time."""
    rows = itertools.zip_longest(*([f"{group}={name}" for name in OPTIONS[group]] for group in names))
    return [[one for one in row if one] for row in rows]


PARTS = ("objective", "posterior", "prior")  # ../test_grid.py builds each, and all their pairs
REST = [group for group in OPTIONS if group not in (*PARTS, "experiment", "model")]


def test_a_config_without_hydra_knows_what_was_resolved():
    """The jobs of a sweep share it, such as the time in its name."""
    whole = composed("run_name=${now:%f}")
    resolved = whole.run_name
    own = without_hydra(whole)
    assert own.run_name == resolved
    assert "hydra" not in own
    assert OmegaConf.is_struct(own)


@pytest.mark.slow
def test_every_part_of_a_model_composes():
    for choices in together(*PARTS):
        OmegaConf.to_container(composed(*choices, "run_dir=nowhere"), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("choices", together("experiment") + together("model") + together(*REST), ids=" ".join)
def test_every_option_composes_and_builds(choices, tmp_path):
    needs = [need for choice in choices for need in WITH.get(choice, [])]
    cfg = composed(*choices, *needs, f"run_dir={tmp_path}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    cfg.trainer.accelerator = "cpu"
    experiment = build(cfg, Preemption())
    assert sum(p.numel() for p in experiment.lit.parameters()) > 0
    assert list(tmp_path.iterdir()) == []  # building touches nothing


def test_a_model_without_an_encoder_reconstructs_nothing():
    vae = build_vae(composed("posterior=none"))
    assert vae.encoder is None
    assert vae.sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="need an encoder, which posterior=none does not have"):
        vae.reconstruct(torch.zeros(2, 1, 8, 8))
