"""Cross-checks that a config of shipped parts cannot reach; the others are in `faults/test_config.py`."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import OmegaConf
from torch import nn

from vae_lab.metrics.standard import MSE, ActiveUnits, Terms
from vae_lab.models.likelihoods import Bernoulli
from vae_lab.models.posteriors import Deterministic, Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives.elbo import ELBO
from vae_lab.training.build import check_end, check_monitors, names_of_metrics
from vae_lab.training.module import LitVAE

CFG = OmegaConf.create(
    {
        "resume": None,
        "dataset": {"val_size": 1},
        "trainer": {"max_epochs": -1, "max_steps": -1, "max_time": None, "limit_val_batches": None},
        "callbacks": {"stop": {"check_on_train_epoch_end": False}},
    }
)


class Distance(Callback):
    """A user's own: it may log a metric, and end the training."""


def make_vae(posterior, decoded=4):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 3 * posterior.params_per_latent), nn.Dropout())
    decoder = nn.Sequential(nn.Linear(3, decoded), nn.Unflatten(1, (1, 2, decoded // 2)))
    prior = StandardNormal((3,)) if posterior.has_density else None
    return VAE(encoder, decoder, posterior, prior, Bernoulli(), (3,), (1, 2, 2))


def make_module(vae):
    metrics = [Terms(), MSE(), ActiveUnits()]
    return LitVAE(vae, ELBO(1, 0, 0), metrics, optimizer=None, schedule=None, lr=1.0, seed=0)


def test_the_metrics_are_those_of_the_objective_and_of_evaluation():
    common = {"train/loss", "train/reconstruction", "val/loss", "val/reconstruction", "val/mse"}
    assert names_of_metrics(make_module(make_vae(Deterministic()))) == common
    found = names_of_metrics(make_module(make_vae(Gaussian())))
    assert found > common | {"train/elbo", "val/elbo", "val/kl", "val/active_units"}


def test_looking_for_metrics_leaves_no_trace():
    vae = make_vae(Gaussian())
    before = torch.random.get_rng_state()
    names_of_metrics(make_module(vae))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in vae.modules())


def test_parts_that_do_not_fit_each_other_are_named():
    with pytest.raises(ValueError, match=r"^the model of ELBO, Gaussian, Bernoulli, .* cannot be evaluated: .+$"):
        names_of_metrics(make_module(make_vae(Gaussian(), decoded=6)))


def test_an_own_callback_may_log_what_another_monitors():
    stop = EarlyStopping("val/distance", check_on_train_epoch_end=False)
    with pytest.raises(ValueError, match=r"callbacks\.stop\.monitor must be one of val/loss, got 'val/distance'"):
        check_monitors(CFG, {"stop": stop}, {"val/loss"})
    check_monitors(CFG, {"stop": stop, "distance": Distance()}, {"val/loss"})


def test_an_own_callback_may_end_the_training():
    with pytest.raises(ValueError, match="nothing ends the training"):
        check_end(CFG.trainer, {}, None)
    check_end(CFG.trainer, {"distance": Distance()}, None)


def test_early_stopping_that_looks_before_a_validation_is_refused():
    cfg = OmegaConf.merge(CFG, {"callbacks": {"stop": {"check_on_train_epoch_end": None}}})
    with pytest.raises(ValueError, match=r"callbacks\.stop\.check_on_train_epoch_end must be false to watch val/loss"):
        check_monitors(cfg, {"stop": EarlyStopping("val/loss")}, {"val/loss"})
    check_monitors(cfg, {"stop": EarlyStopping("train/loss")}, {"train/loss"})
    cfg.resume = "a run of before"
    check_monitors(cfg, {"stop": EarlyStopping("val/loss")}, {"val/loss"})
