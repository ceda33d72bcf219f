"""Every option of every group composes and builds, and every network goes with every posterior and likelihood."""

import itertools

import pytest
import torch
from composed import composed
from omegaconf import OmegaConf

from vae_lab.config.help import CONF, groups
from vae_lab.config.instantiate import build_vae
from vae_lab.data.batches import Batch
from vae_lab.objectives import Context
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build, build_objective

CHOICES = [f"{group}={name}" for group, names in groups(CONF).items() for name in names if "hydra" not in group]
WITH = {"objective=rae": ["posterior=deterministic"]}  # what does not go with the other defaults


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_and_builds_from_the_defaults(choice, tmp_path):
    cfg = composed(choice, *WITH.get(choice, []), f"run_dir={tmp_path}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if choice == "trainer=gpu":
        return
    cfg.trainer.accelerator = "cpu"
    experiment = build(cfg, Preemption())
    assert sum(p.numel() for p in experiment.lit.parameters()) > 0
    assert list(tmp_path.iterdir()) == []  # building touches nothing


GRID = list(itertools.product(("mlp", "conv", "resnet"), ("gaussian", "deterministic"), ("bce", "mse")))


@pytest.mark.parametrize(("model", "posterior", "loss"), GRID, ids=str)
def test_every_network_goes_with_every_posterior_and_likelihood(model, posterior, loss):
    cfg = composed(f"model={model}", f"posterior={posterior}", f"loss={loss}", "latent_dim=2")
    for channels, size in ((1, 8), (3, 32)):
        cfg.dataset.channels, cfg.dataset.image_size = channels, size
        vae = build_vae(cfg)
        batch = Batch(torch.rand(4, channels, size, size))
        terms = build_objective(cfg, vae)(vae, batch, Context(step=0, num_images=4, stage="train"))
        terms["loss"].backward()
        assert terms["loss"].isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
        assert vae.reconstruct(batch.x).shape == batch.x.shape
