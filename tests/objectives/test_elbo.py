import math

import pytest
import torch
from linear_gaussian import SHAPE, LinearGaussian, Sampled
from torch import nn
from torch.distributions import Normal, kl_divergence

from vae_lab.data.batches import Batch
from vae_lab.models.likelihoods import Bernoulli
from vae_lab.models.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.models.posteriors import Deterministic, Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO


def during(step: int | None) -> Context:
    """The context of a training step; None is evaluation."""
    return Context(0, 100, "val") if step is None else Context(step, 100, "train")


def elbo_and_error(vae: VAE, x: torch.Tensor) -> tuple[float, float]:
    """The ELBO of a batch, and its standard error over the samples of z, measured on other samples."""
    elbo = ELBO(1.0, 0, 0.0)(vae, Batch(x), during(None))["elbo"].item()
    log_prob = vae.likelihood.log_prob(x, vae.decode(vae.encode(x).rsample(8)))
    return elbo, (log_prob.var(0).sum().sqrt() / len(x)).item()


@pytest.fixture
def model() -> LinearGaussian:
    return LinearGaussian()


def test_the_log_weight_of_every_sample_is_log_p_at_the_exact_posterior(model):
    vae, x = model.vae(), torch.randn(50, *SHAPE)
    q = vae.encode(x)
    z = q.rsample(3)
    log_weight = vae.likelihood.log_prob(x, vae.decode(z)) + vae.prior.log_prob(z) - q.log_prob(z)
    # No Monte Carlo error at all; the sums are float32 with terms up to about 30.
    torch.testing.assert_close(log_weight.double(), model.log_prob(x).expand(3, -1), rtol=1e-5, atol=1e-4)


def test_the_elbo_is_log_p_at_the_exact_posterior(model):
    x = torch.randn(5, *SHAPE).repeat(20_000, 1, 1, 1)
    elbo, error = elbo_and_error(model.vae(), x)
    assert error < 0.005  # else the next line would prove little
    assert elbo == pytest.approx(model.log_prob(x).mean().item(), abs=4 * error)


@pytest.mark.parametrize(("shift", "log_var_shift"), [(0.4, 0.0), (-0.2, 0.0), (0.0, 0.7), (0.0, -0.7), (0.3, -0.5)])
def test_any_other_encoder_loses_its_kl_to_the_exact_posterior(model, shift, log_var_shift):
    x = torch.randn(5, *SHAPE).repeat(20_000, 1, 1, 1)
    vae = model.vae(shift, log_var_shift)
    q = vae.encode(x)
    gap = kl_divergence(Normal(q.mean.double(), torch.exp(0.5 * q.log_var.double())), model.posterior(x))
    elbo, error = elbo_and_error(vae, x)
    log_p = model.log_prob(x).mean().item()
    assert elbo < log_p - 4 * error
    assert elbo == pytest.approx(log_p - gap.sum(1).mean().item(), abs=4 * error)


def small_vae(likelihood=None, posterior=None) -> VAE:
    posterior = posterior or Gaussian()
    encoder = MLPEncoder((1, 4, 4), 3 * posterior.params_per_latent, [16], "tanh")
    decoder = MLPDecoder(3, (1, 4, 4), [16], "tanh")
    prior = StandardNormal((3,)) if posterior.has_density else None
    return VAE(encoder, decoder, posterior, prior, likelihood or Bernoulli(), (3,), (1, 4, 4))


@pytest.mark.parametrize("step", [0, 3, 10, None])
@pytest.mark.parametrize("kld_weight", [0.0, 0.5, 1.0, 4.0])
def test_terms_add_up(kld_weight, step):
    objective = ELBO(kld_weight, 10, 0.0)
    context = during(step)
    terms = objective(small_vae(), Batch(torch.rand(8, 1, 4, 4)), context)
    assert list(terms) == ["loss", "elbo", "reconstruction", "kl", "clamped"]
    assert all(value.ndim == 0 for value in terms.values())
    assert terms["kl"] > 0
    # The elbo has weight 1 whatever the weight in the loss; float32 sums of a few terms of about 10.
    torch.testing.assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]), rtol=1e-6, atol=0)
    expected = terms["reconstruction"] + objective.weight(context) * terms["kl"]
    torch.testing.assert_close(terms["loss"], expected, rtol=1e-6, atol=0)


def test_terms_are_nats_per_image(monkeypatch):
    monkeypatch.setattr(torch, "randn", torch.zeros)
    vae, x = small_vae(), torch.rand(8, 1, 4, 4)
    posterior = vae.encode(x)
    terms = ELBO(1.0, 0, 0.0)(vae, Batch(x), during(None))
    # Summed over pixels and latents, averaged over images only.
    expected_kl = torch.stack([row.sum() for row in posterior.kl(vae.prior)]).mean()
    nll = [-vae.likelihood.log_prob(x[i : i + 1], vae.decode(posterior.mean[i : i + 1])) for i in range(8)]
    torch.testing.assert_close(terms["kl"], expected_kl, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["reconstruction"], torch.cat(nll).mean(), rtol=1e-5, atol=0)


def test_the_weight_rises_linearly_and_evaluation_does_not_see_it():
    objective = ELBO(4.0, 10, 0.0)
    assert [objective.weight(during(step)) for step in (0, 5, 10, 11, 10_000, None)] == [0, 2, 4, 4, 4, 4]
    assert ELBO(4.0, 0, 0.0).weight(during(0)) == 4


def test_a_cyclic_weight_rises_in_each_cycle_and_one_cycle_is_linear():
    cyclic = ELBO(4.0, 10, 0.0, "cyclic", cycles=2, rise=0.5)
    steps = (0, 5, 10, 19, 20, 25, 30, 39, 40, 45, None)
    assert [cyclic.weight(during(step)) for step in steps] == [0, 2, 4, 4, 0, 2, 4, 4, 4, 4, 4]
    assert cyclic.varies_until == 30
    one, linear = ELBO(4.0, 10, 0.0, "cyclic", cycles=1), ELBO(4.0, 10, 0.0)
    assert one.varies_until == linear.varies_until == 10
    assert all(one.weight(during(step)) == linear.weight(during(step)) for step in range(50))


class Constant(nn.Module):
    """An encoder whose output is its parameter, for every image."""

    def __init__(self, params: list[float]):
        super().__init__()
        self.params = nn.Parameter(torch.tensor(params))

    def forward(self, x):
        return self.params.expand(len(x), -1)


class Blind(nn.Module):
    """A decoder that ignores its latents, so that only the KL has a gradient."""

    def forward(self, z):
        return torch.zeros(len(z), 1, 2, 2) + 0 * z.sum()


def gradient(free_bits: float, params: list[float]) -> tuple[torch.Tensor, dict]:
    encoder = Constant(params)
    vae = VAE(encoder, Blind(), Gaussian(), StandardNormal((2,)), Bernoulli(), (2,), SHAPE)
    terms = ELBO(3.0, 0, free_bits)(vae, Batch(torch.ones(4, *SHAPE)), during(0))
    terms["loss"].backward()
    return encoder.params.grad, terms


def test_free_bits_cost_nothing_below_the_bound_and_change_nothing_above():
    params = [0.2, 2.0, -0.1, -1.5]  # means, then log variances; KLs of 0.02 and 2.36
    plain, terms = gradient(0.0, params)
    free, free_terms = gradient(0.5, params)
    assert plain.ne(0).all()
    assert free[[0, 2]].tolist() == [0, 0]
    assert torch.equal(free[[1, 3]], plain[[1, 3]])
    kl = Gaussian()(torch.tensor([params])).kl(StandardNormal((2,)))[0]
    assert kl[0] < 0.5 < kl[1]
    paid = free_terms["loss"] - free_terms["reconstruction"]
    torch.testing.assert_close(paid, 3 * (0.5 + kl[1]), rtol=1e-6, atol=1e-6)  # a float32 difference
    # The reported values stay free of free bits.
    assert free_terms["kl"] == terms["kl"]
    assert free_terms["elbo"] == terms["elbo"]


def test_free_bits_bound_the_mean_over_the_batch_not_each_image():
    # Kingma et al. 2016, eq. 15: one image below and one above the bound, their mean above it.
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1).expand(2, *SHAPE)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        encoder[1].weight.copy_(torch.tensor([[0.25] * 4, [0.0] * 4]))
        encoder[1].bias.zero_()
    vae = VAE(encoder, Blind(), Gaussian(), StandardNormal((1,)), Bernoulli(), (1,), SHAPE)
    terms = ELBO(1.0, 0, 0.5)(vae, Batch(x / 2), during(0))
    assert terms["kl"].item() == pytest.approx(0.25)  # the images' KLs are 0 and 1/2
    assert (terms["loss"] - terms["reconstruction"]).item() == pytest.approx(0.5, abs=1e-6)
    terms = ELBO(1.0, 0, 0.2)(vae, Batch(x / 2), during(0))
    assert (terms["loss"] - terms["reconstruction"]).item() == pytest.approx(0.25, abs=1e-6)
    # Outside training there is no bound, so that a mean over batches is the mean over images, however they are batched.
    whole, *parts = (ELBO(1.0, 0, 0.5)(vae, Batch(part), during(None)) for part in (x / 2, x[:1] / 2, x[1:] / 2))
    paid = [(terms["loss"] - terms["reconstruction"]).item() for terms in (whole, *parts)]
    assert paid[0] == pytest.approx((paid[1] + paid[2]) / 2, abs=1e-6)


def test_a_plain_autoencoder_has_neither_kl_nor_elbo():
    vae, x = small_vae(posterior=Deterministic()), torch.rand(8, 1, 4, 4)
    terms = ELBO(4.0, 10, 0.5)(vae, Batch(x), during(5))
    assert list(terms) == ["loss", "reconstruction"]
    expected = -vae.likelihood.log_prob(x, vae.decode(vae.encode(x).mean)).mean()
    assert terms["loss"].item() == terms["reconstruction"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_a_closed_form_the_kl_is_estimated_at_the_samples():
    vae = small_vae()
    batch = Batch(torch.rand(1, 1, 4, 4).expand(20_000, -1, -1, -1))
    exact = ELBO(1.0, 0, 0.0)(vae, batch, during(None))["kl"]
    q = vae.encode(batch.x)
    z = q.rsample(1)
    error = (q.log_prob(z) - vae.prior.log_prob(z)).std() / math.sqrt(20_000)
    vae.prior = Sampled()
    terms = ELBO(2.0, 0, 0.0)(vae, batch, during(None))
    assert (terms["kl"] - exact).abs() < 4 * error
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 2 * terms["kl"])
