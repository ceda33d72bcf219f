"""Two layers of latents: their KL is a sum, and they reduce to one layer."""

import pytest
import torch
from torch import distributions

from vae_lab.models.hierarchical import HierarchicalGaussian, HierarchicalPrior
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import StandardNormal

D, T, B = 5, 2, 4


@pytest.fixture
def layers():
    """Posterior, prior and q, with networks that are not zero."""
    posterior, prior = HierarchicalGaussian(D, T, 8), HierarchicalPrior((D,), T, 8)
    with torch.no_grad():
        for part in (posterior, prior):
            part.below[-1].weight.normal_(std=0.3)
            part.below[-1].bias.normal_(std=0.3)
    return posterior, prior, posterior(torch.randn(B, 2 * D))


@torch.no_grad()
def test_the_kl_is_the_sum_over_the_layers(layers):
    _, prior, q = layers
    z = q.rsample(20_000)
    estimate = (q.log_prob(z) - prior.log_prob(z)).mean(0)
    of_top = q.diagnostics()["kl_top"]
    mean, log_var = (each[..., T:] for each in q.moments(z[..., :T]))
    shift, spread = prior.below(z[..., :T])
    of_bottom = distributions.kl_divergence(
        distributions.Normal(mean, torch.exp(0.5 * log_var)), distributions.Normal(shift, torch.exp(0.5 * spread))
    )
    expected = of_top + of_bottom.sum(-1).mean()
    # 20,000 samples of a log-ratio whose deviation is about 3 nats, averaged over the batch.
    torch.testing.assert_close(estimate.mean(), expected, atol=0.05, rtol=0)


@torch.no_grad()
def test_both_are_densities_and_samples_have_their_means(layers):
    _, prior, q = layers
    wide = distributions.Normal(0.0, 3.0)
    z = wide.sample((100_000, B, D))
    for part, drawn in ((q, q.rsample(50_000)), (prior, prior.sample(200_000).view(50_000, B, D))):
        weights = (part.log_prob(z) - wide.log_prob(z).sum(-1)).exp()
        error = 5 * weights.std(0) / 100_000**0.5
        assert ((weights.mean(0) - 1).abs() < error).all()
        mean = (weights[..., None] * z).mean(0)  # by the density
        error = 5 * ((weights[..., None] * z).std(0) / 100_000**0.5 + drawn.std(0) / 50_000**0.5)
        assert ((mean - drawn.mean(0)).abs() < error).all()
    top = torch.randn(3, T)
    assert torch.equal(prior.sample_below(top)[:, :T], top)


@torch.no_grad()
def test_they_begin_as_one_layer():
    params = torch.randn(B, 2 * D)
    posterior, prior = HierarchicalGaussian(D, None, 8), HierarchicalPrior((D,), None, 8)
    q, one = posterior(params), Gaussian()(params)
    z = one.rsample(3)
    torch.testing.assert_close(q.log_prob(z), one.log_prob(z))
    torch.testing.assert_close(prior.log_prob(z), StandardNormal((D,)).log_prob(z))
    torch.testing.assert_close(q.mean, one.mean)
    torch.manual_seed(1)
    drawn = q.rsample(3)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, one.rsample(3))
