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

OPTIONS = {group: list(names) for group, names in groups(CONF).items() if "hydra" not in group}
# What an option needs beside it.
WITH = {
    "objective=rae": ["posterior=deterministic"],
    "objective=gan": ["posterior=none"],
    "posterior=none": ["objective=gan"],
    "model=unpadded": ["dataset.image_size=16"],
    "dataset=image_folder": ["dataset.root=pictures"],
    "dataset=arrays": ["dataset.root=images.npy"],
    "trainer=gpu": ["trainer.accelerator=cpu"],
    "metrics=nll": ["metrics.nll.samples=2"],
}
# What makes a model is tried option by option, most of it beside ../test_grid.py; the others go together, an option of
# each group at a time.
MODEL = [
    pytest.param([f"{group}={name}"], marks=[] if group in ("experiment", "model") else pytest.mark.slow)
    for group in ("experiment", "model", "objective", "posterior", "prior") for name in OPTIONS.pop(group)
]  # fmt: skip
REST = itertools.zip_longest(*([f"{group}={name}" for name in names] for group, names in OPTIONS.items()))


@pytest.mark.parametrize("choices", [*MODEL, *([one for one in row if one] for row in REST)], ids=" ".join)
def test_every_option_composes_and_builds(choices, tmp_path):
    needs = [need for choice in choices for need in WITH.get(choice, [])]
    cfg = composed(*choices, *needs, f"run_dir={tmp_path}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    cfg.trainer.accelerator = "cpu"
    experiment = build(cfg, Preemption())
    assert sum(p.numel() for p in experiment.lit.parameters()) > 0
    assert list(tmp_path.iterdir()) == []  # building touches nothing


# Each network with two kinds of posterior and of likelihood; ../test_grid.py has all of them.
GRID = [("mlp", "gaussian", "bce"), ("conv", "deterministic", "bce"), ("resnet", "gaussian", "mse")]
GRID += zip(
    ("conv spatial", "resnet spatial") * 2, ("gaussian", "deterministic", "vq", "fsq"), ("mse",) * 4, strict=True
)


@pytest.mark.parametrize(("model", "posterior", "loss"), GRID, ids=str)
def test_networks_go_with_posteriors_and_likelihoods(model, posterior, loss):
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
