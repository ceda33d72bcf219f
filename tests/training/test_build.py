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
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build, check_callbacks, names_of_metrics
from vae_lab.training.module import LitVAE

TRAINER = {"max_epochs": 1, "max_steps": -1, "max_time": None, "limit_val_batches": None}
STOP = {"stop": {"check_on_train_epoch_end": False}}
CFG = OmegaConf.create({"resume": None, "dataset": {"val_size": 1}, "trainer": TRAINER, "callbacks": STOP})


class Distance(Callback):
    """A user's own: it may log a metric, and end the training."""


def make_module(posterior, decoded=4):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 3 * posterior.params_per_latent), nn.Dropout())
    decoder = nn.Sequential(nn.Linear(3, decoded), nn.Unflatten(1, (1, 2, decoded // 2)))
    prior = StandardNormal((3,)) if posterior.has_density else None
    vae = VAE(encoder, decoder, posterior, prior, Bernoulli(), (3,), (1, 2, 2))
    return LitVAE(vae, ELBO(1, 0, 0), [Terms(), MSE(), ActiveUnits()], None, None, lr=1.0, seed=0)


def test_the_metrics_are_those_of_the_objective_and_of_evaluation_and_looking_leaves_no_trace():
    common = {"train/loss", "train/reconstruction", "val/loss", "val/reconstruction", "val/mse"}
    assert names_of_metrics(make_module(Deterministic())) == common
    lit = make_module(Gaussian())
    before = torch.random.get_rng_state()
    assert names_of_metrics(lit) > common | {"train/elbo", "val/elbo", "val/kl", "val/active_units"}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(module.training for module in lit.modules())


def test_parts_that_do_not_fit_each_other_are_named():
    with pytest.raises(ValueError, match=r"^the model of ELBO, Gaussian, Bernoulli, .* cannot be evaluated: .+$"):
        names_of_metrics(make_module(Gaussian(), decoded=6))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("stage", "returned", "message"),
    [
        ("val", lambda terms: terms["loss"], "got a Tensor"),
        ("val", lambda terms: None, "got a NoneType"),
        ("val", lambda terms: {"elbo": terms["elbo"], "kl": terms["kl"]}, "got elbo, kl$"),
        ("val", lambda terms: terms | {"kl": 0.5}, "got 'kl': 0.5"),
        ("val", lambda terms: terms | {"own": {"kl": terms["kl"]}}, "got 'own': a dict"),
        ("train", lambda terms: terms | {"loss": terms["loss"].expand(2)}, r"got 'loss': float32 \(2,\)"),
        ("train", lambda terms: terms | {"loss": terms["loss"].detach()}, "got loss without a gradient"),
        ("train", lambda terms: terms | {"own": 1 / 0}, "the model of Own, .* cannot be trained, at step 0: division"),
        ("val", lambda terms: terms["nll"], "the model of Own, .* cannot be evaluated: KeyError: 'nll'"),
    ],
)
def test_an_objective_that_returns_something_else_is_told_what_to_return(stage, returned, message):
    class Own(ELBO):
        def forward(self, vae, batch, context):
            terms = super().forward(vae, batch, context)
            return returned(terms) if context.stage == stage else terms

    lit = make_module(Gaussian())
    lit.objective = Own(1, 0, 0)
    form = "objective: Own must return a flat dict of 0-dim tensors, loss among them, "
    with pytest.raises(ValueError, match=message if message.startswith("the") else form + message):
        names_of_metrics(lit)


def test_an_own_callback_may_log_what_another_monitors_and_end_the_training():
    lit, stop = make_module(Gaussian()), EarlyStopping("val/distance", check_on_train_epoch_end=False)
    with pytest.raises(ValueError, match=r"callbacks\.stop\.monitor must be one of val/.*, got 'val/distance'"):
        check_callbacks(CFG, {"stop": stop}, lit)
    check_callbacks(CFG, {"stop": stop, "distance": Distance()}, lit)
    endless = OmegaConf.merge(CFG, {"trainer": {"max_epochs": -1}})
    with pytest.raises(ValueError, match="nothing ends the training"):
        check_callbacks(endless, {}, lit)
    check_callbacks(endless, {"distance": Distance()}, lit)


def test_early_stopping_that_looks_before_a_validation_is_refused():
    lit, cfg = make_module(Gaussian()), CFG.copy()
    cfg.callbacks.stop.check_on_train_epoch_end = None
    with pytest.raises(ValueError, match=r"callbacks\.stop\.check_on_train_epoch_end must be false to watch val/loss"):
        check_callbacks(cfg, {"stop": EarlyStopping("val/loss")}, lit)
    check_callbacks(cfg, {"stop": EarlyStopping("train/loss")}, lit)
    cfg.resume = "a run of before"
    check_callbacks(cfg, {"stop": EarlyStopping("val/loss")}, lit)


def test_what_lightning_would_read_from_the_environment_is_refused(config, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_BAREBONES", "1")
    with pytest.raises(ValueError, match=r"PL_TRAINER_BAREBONES is set.*trainer\.barebones=VALUE"):
        build(config(), Preemption())


def test_compiled_networks_keep_the_names_of_their_parameters(config, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda network: compiled.append(network))  # in place
    lit = build(config("compile=true"), Preemption()).lit
    assert compiled == [lit.vae.encoder, lit.vae.decoder]
