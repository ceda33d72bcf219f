"""Objectives with an adversary: what they are where the discriminator knows nothing, or weighs nothing."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from vae_lab.data.batches import Batch
from vae_lab.evaluation.evaluate import DEFAULTS, evaluate, evaluate_runs
from vae_lab.models.likelihoods import Bernoulli
from vae_lab.models.networks.discriminator import PatchDiscriminator
from vae_lab.models.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.models.posteriors import Gaussian, NoPosterior
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.adversarial import AAE, GAN, VAEGAN, Factor, permuted, standardized
from vae_lab.objectives.elbo import ELBO
from vae_lab.training.train import train

SHAPE = (1, 8, 8)
TRAIN, VAL = Context(3, 100, "train"), Context(3, 100, "val")


def make_vae(posterior=None) -> VAE:
    posterior = posterior or Gaussian()
    encoder = MLPEncoder(SHAPE, 3 * posterior.params_per_latent, [16], "tanh") if posterior.params_per_latent else None
    decoder = MLPDecoder(3, SHAPE, [16], "tanh")
    return VAE(encoder, decoder, posterior, StandardNormal((3,)), Bernoulli(), (3,), SHAPE)


class Undecided(nn.Module):
    """A discriminator that gives one half to everything."""

    def forward(self, x):
        return x.flatten(1)[:, :1] * 0


OF_CODES = lambda: MLPEncoder((3, 1, 1), 1, [8], "relu")  # noqa: E731
OF_IMAGES = lambda: PatchDiscriminator(SHAPE, 1, [4, 8], "group")  # noqa: E731
MAKERS = {
    "gan": lambda adversary: GAN(adversary),
    "vae_gan": lambda adversary: VAEGAN(adversary, 1.0, 0, 0.0, 1.0, 0, False),
    "aae": lambda adversary: AAE(adversary, 1.0),
    "factor": lambda adversary: Factor(adversary, 1.0, 0, 0.0, 1.0),
}


@pytest.mark.parametrize("name", MAKERS)
def test_where_it_cannot_tell_a_discriminator_loses_two_log_two(name):
    objective, vae = MAKERS[name](Undecided()), make_vae(NoPosterior() if name == "gan" else None)
    batch = Batch(torch.rand(8, *SHAPE))
    judged = objective.adversary_loss(vae, batch, TRAIN)
    assert judged["discriminator_loss"].item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert judged["score_real"].item() == judged["score_generated"].item() == 0.5
    terms = objective(vae, batch, TRAIN)
    if name == "factor":
        assert terms["total_correlation_adversary"].item() == 0
    else:
        assert terms["generator_loss"].item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VAEGAN(OF_IMAGES(), 2.0, 10, 0.1, 0.0, 0, False),
        lambda: VAEGAN(OF_IMAGES(), 2.0, 10, 0.1, 0.0, 0, True),
        lambda: VAEGAN(OF_IMAGES(), 2.0, 10, 0.1, 5.0, 4, True),  # not yet
        lambda: Factor(OF_CODES(), 2.0, 10, 0.1, 0.0),
    ],
    ids=["vae_gan", "adaptive vae_gan", "vae_gan before its start", "factor"],
)
def test_an_adversary_without_weight_is_the_elbo(make):
    objective, elbo, vae, batch = make(), ELBO(2.0, 10, 0.1), make_vae(), Batch(torch.rand(8, *SHAPE))
    ends = []
    for one in (objective, elbo):
        torch.manual_seed(1)
        terms = one(vae, batch, TRAIN)
        ends.append((terms, torch.autograd.grad(terms["loss"], list(vae.parameters()))))
    (terms, gradients), (expected, of_elbo) = ends
    assert all(torch.equal(terms[key], value) for key, value in expected.items())
    assert all(torch.equal(one, other) for one, other in zip(gradients, of_elbo, strict=True))


def test_an_adversarial_autoencoder_without_weight_is_the_plain_one():
    objective, vae, batch = AAE(OF_CODES(), 0.0), make_vae(), Batch(torch.rand(8, *SHAPE))
    torch.manual_seed(1)
    terms = objective(vae, batch, TRAIN)
    torch.manual_seed(1)
    assert torch.equal(terms["loss"], ELBO(0.0, 0, 0.0)(vae, batch, TRAIN)["loss"])


def test_before_its_start_a_discriminator_stays_as_it_is():
    objective = VAEGAN(OF_IMAGES(), 1.0, 0, 0.0, 1.0, 4, False)
    for step, moves in ((3, False), (4, True)):
        loss = objective.adversary_loss(make_vae(), Batch(torch.rand(8, *SHAPE)), Context(step, 100, "train"))
        gradients = torch.autograd.grad(loss["discriminator_loss"], list(objective.adversary.parameters()))
        assert any(gradient.any() for gradient in gradients) == moves


def test_the_adaptive_weight_makes_both_gradients_equally_long_at_the_last_layer():
    objective, vae, batch = VAEGAN(OF_IMAGES(), 1.0, 0, 0.0, 0.5, 0, True), make_vae(), Batch(torch.rand(8, *SHAPE))
    terms = objective(vae, batch, TRAIN)
    last = vae.decoder[-2].weight
    rest = terms["loss"] - terms["reconstruction"] - terms["kl"]  # what the adversary adds
    both = (terms["reconstruction"], rest)
    reconstruction, added = (torch.autograd.grad(term, last, retain_graph=True)[0] for term in both)
    assert added.norm().item() == pytest.approx(0.5 * reconstruction.norm().item(), rel=1e-3)
    with torch.no_grad():  # evaluation takes the last weight of training
        assert torch.equal(objective(vae, batch, VAL)["adversarial_weight"], terms["adversarial_weight"])


def test_permuting_keeps_the_marginals_and_breaks_the_dependence():
    z = torch.randn(4000, 1) + 0.1 * torch.randn(4000, 3)
    shuffled = permuted(z)
    assert torch.equal(shuffled.sort(0).values, z.sort(0).values)
    off_diagonal = ~torch.eye(3, dtype=torch.bool)
    assert (torch.corrcoef(z.T)[off_diagonal] > 0.9).all()
    assert (torch.corrcoef(shuffled.T)[off_diagonal].abs() < 4 / math.sqrt(4000)).all()


def test_a_perfect_discriminator_of_codes_gives_their_total_correlation():
    """Of a Gaussian with correlation r, KL(q, product of marginals) is -log(1 - r^2) / 2."""
    r, num = 0.8, 100_000
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1, r], [r, 1]]))

    class LogRatio(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            return (normal.log_prob(z) - torch.distributions.Normal(0, 1).log_prob(z).sum(1))[:, None]

    class Codes:
        terms, mean = {}, torch.zeros(num, 2)
        diagnostics = dict

        def rsample(self, _):
            return normal.sample((1, num))

        def kl(self, _):
            return self.mean

    vae = make_vae()
    vae.encode, vae.decode = lambda *_: Codes(), lambda *_: torch.zeros(1, num, 1, 1, 1)
    terms = Factor(LogRatio(), 1.0, 0, 0.0, 1.0)(vae, Batch(torch.zeros(num, 1, 1, 1)), VAL)
    # The log-ratio has a standard deviation of about r; 4 standard errors.
    expected = -0.5 * math.log(1 - r**2)
    assert terms["total_correlation_adversary"].item() == pytest.approx(expected, abs=4 / math.sqrt(num))


def test_what_a_discriminator_sees_does_not_depend_on_the_scale_of_pixels():
    x = torch.rand(8, *SHAPE)
    seen = standardized(x, x)
    assert (seen.mean().item(), seen.std(correction=0).item()) == pytest.approx((0, 1), abs=1e-5)
    torch.testing.assert_close(standardized(0.2 * x + 0.1, 0.2 * x + 0.1), seen, rtol=1e-4, atol=1e-4)
    assert standardized(x, torch.zeros(1, *SHAPE)).isfinite().all()


RUNS = {
    "gan": ["objective=gan", "posterior=none"],
    "vae_gan": ["objective=vae_gan", "objective.adversary.channels=[4]", "objective.adversarial_start=2"],
    "aae": ["objective=aae", "posterior=deterministic"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs_and_is_evaluated_with_its_own_adversary(name, config, caplog):
    cfg = config(*RUNS[name], "dataset.batch_size=32")
    folder = Path(cfg.run_dir)
    train(cfg)
    assert not [one for one in caplog.records if one.levelname == "WARNING"]
    result = json.loads((folder / "result.json").read_text())
    assert {"val/loss", "val/discriminator_loss", "val/score_real", "val/score_generated"} <= result.keys()
    assert ("val/mse" in result) == (name != "gan")
    last, best = (torch.load(folder / "checkpoints" / f"{n}.ckpt", weights_only=True) for n in ("last", "best"))
    assert best["global_step"] == last["global_step"] == result["best_step"] == 6  # whatever the loss is
    assert result["best_value"] == result["val/loss"]
    evaluate_runs([str(folder), "split=val", "checkpoint=last", "batch_size=32", "samples=2"])
    assert len(list((folder / "samples").iterdir())) == 2


def test_a_game_of_two_is_refused_where_a_lower_loss_should_end_it(config):
    with pytest.raises(ValueError, match=r"callbacks\.early_stopping\.monitor must not be val/loss: of GAN"):
        train(config("objective=gan", "posterior=none", "callbacks=early_stopping"))


def test_an_evaluation_judges_with_the_adversary_of_the_run(config):
    cfg = config("objective=gan", "posterior=none", "trainer.limit_val_batches=1.0")
    train(cfg)
    folder = Path(cfg.run_dir)
    result = json.loads((folder / "result.json").read_text())
    again = evaluate(folder, {**DEFAULTS, "split": "val", "batch_size": 16})
    for key in ("val/generator_loss", "val/discriminator_loss", "val/score_real"):
        assert again[key] == pytest.approx(result[key], rel=1e-5)
