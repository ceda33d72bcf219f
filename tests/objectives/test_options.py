"""Every option of the groups, built from its YAML file as a run builds it."""

import itertools

import pytest
import torch
from composed import composed
from omegaconf import OmegaConf

from vae_lab.__main__ import CONF
from vae_lab.config.instantiate import build_vae
from vae_lab.data.batches import Batch
from vae_lab.metrics.catalogue import UNKNOWN, find
from vae_lab.objectives import Context
from vae_lab.training.build import build_objective

OBJECTIVES, PRIORS = (sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("objective", "prior"))
SMALL = ("dataset.image_size=4", "model.hidden_dims=[8]", "latent_dim=3")
# What does not go with a posterior that is a point, and what goes with nothing else.
REFUSED = {
    "gaussian": {"rae": "RAE needs a posterior that is a point"},
    "deterministic": {
        **dict.fromkeys(("capacity", "info"), "needs a model with prior, which posterior Deterministic has none of"),
        **dict.fromkeys(("beta_tc", "dip", "iwae", "miwae", "ciwae", "piwae"), "needs a model with prior"),
    },
}


def build(objective: str, posterior: str, prior: str):
    cfg = composed(f"objective={objective}", f"posterior={posterior}", *SMALL)
    cfg.prior = OmegaConf.load(CONF / "prior" / f"{prior}.yaml")
    vae = build_vae(cfg)
    return vae, build_objective(cfg, vae)


@pytest.mark.parametrize("posterior", ["gaussian", "deterministic"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_option_trains_and_evaluates_or_is_refused(objective, posterior):
    if message := REFUSED[posterior].get(objective):
        with pytest.raises(ValueError, match=message):
            build(objective, posterior, "standard_normal")
        return
    torch.manual_seed(0)
    vae, objective = build(objective, posterior, "standard_normal")
    for size, stage in itertools.product((1, 5), ("train", "val")):  # the last batch of an epoch may be one image
        with torch.set_grad_enabled(stage == "train"):
            terms = objective(vae, Batch(torch.rand(size, 1, 4, 4)), Context(3, 20, stage))
        assert all(value.ndim == 0 and value.isfinite() for value in terms.values()), terms
        assert [key for key in terms if find(key) is UNKNOWN] == []
        assert ("elbo" in terms) == ("kl" in terms) == (posterior == "gaussian")
        if "elbo" in terms:
            torch.testing.assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]))
    objective(vae, Batch(torch.rand(5, 1, 4, 4)), Context(3, 20, "train"))["loss"].backward()
    for network in (vae.encoder, vae.decoder):
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_goes_with_every_objective_that_has_one_and_learns(prior):
    torch.manual_seed(0)
    for name in OBJECTIVES:
        if name in REFUSED["gaussian"]:
            continue
        vae, objective = build(name, "gaussian", prior)
        objective(vae, Batch(torch.rand(5, 1, 4, 4)), Context(3, 20, "train"))["loss"].backward()
        learned = [weight_name for weight_name, weight in vae.prior.named_parameters() if weight.grad is not None]
        # Samples have no gradient for the weights of a mixture, and a discrepancy sees only samples.
        missing = {"logits"} if (name, prior) == ("wae_mmd", "mixture") else set()
        assert {*dict(vae.prior.named_parameters())} - {*learned} == missing, name
        assert vae.sample(3).shape == (3, 1, 4, 4)
