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


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_and_builds_from_the_defaults(choice, tmp_path):
    cfg = composed(choice, f"run_dir={tmp_path}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if choice == "trainer=gpu":
        return
    cfg.trainer.accelerator = "cpu"
    experiment = build(cfg, Preemption())
    assert sum(p.numel() for p in experiment.lit.parameters()) > 0
    assert list(tmp_path.iterdir()) == []  # building touches nothing


GRID = list(itertools.product(("mlp", "conv", "resnet"), ("gaussian", "deterministic"), ("bce", "mse")))
GRID += [("mlp", name, "bce") for name in ("planar", "radial", "iaf", "vq", "fsq", "gumbel", "vmf")]
GRID += itertools.product(("conv spatial", "resnet spatial"), ("gaussian", "deterministic", "vq", "fsq"), ("mse",))


@pytest.mark.parametrize(("model", "posterior", "loss"), GRID, ids=str)
def test_every_network_goes_with_every_posterior_and_likelihood(model, posterior, loss):
    name, *spatial = model.split()
    cfg = composed(f"model={name}", f"posterior={posterior}", f"loss={loss}", "latent_dim=4")
    if spatial:
        cfg.model.spatial = True
    for channels, size in ((1, 8), (3, 32)):
        cfg.dataset.channels, cfg.dataset.image_size = channels, size
        vae = build_vae(cfg)
        batch = Batch(torch.rand(4, channels, size, size))
        terms = build_objective(cfg, vae)(vae, batch, Context(step=0, num_images=4, stage="train"))
        terms["loss"].backward()
        assert terms["loss"].isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
        assert vae.reconstruct(batch.x).shape == batch.x.shape
        assert vae.latent_shape == ((4, size // 4, size // 4) if spatial else (4,))
        if vae.prior is not None:
            assert vae.sample(3).shape == (3, channels, size, size)
            torch.testing.assert_close(vae.project(z := vae.prior.sample(3)), z)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "posterior=planar model=conv model.spatial=true",
            "Planar has one vector of latents for each image, not a grid",
        ),
        ("posterior=vmf model=resnet model.spatial=true", "VonMisesFisher has one vector of latents"),
        ("posterior=vq prior=wide", "prior: VectorQuantizer brings a prior of its own"),
        ("posterior=vq posterior.code_dim=3", r"posterior\.code_dim must divide latent_dim=16, got 3"),
        ("posterior=fsq latent_dim=6", r"latent_dim must be a multiple of 4, .* got 6"),
        ("posterior=vmf latent_dim=1", r"latent_dim must be >= 2 for a sphere"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, message):
    cfg = composed(*(word for word in overrides.split() if word != "prior=wide"))
    if "prior=wide" in overrides:
        cfg.prior._target_ = "vae_lab.models.vae.VAE"  # any other class
    with pytest.raises(ValueError, match=message):
        build_vae(cfg)


def test_a_model_without_an_encoder_reconstructs_nothing():
    vae = build_vae(composed("posterior=none"))
    assert vae.encoder is None
    assert vae.sample(2).shape == (2, 1, 8, 8)
    with pytest.raises(ValueError, match="need an encoder, which posterior=none does not have"):
        vae.reconstruct(torch.zeros(2, 1, 8, 8))
