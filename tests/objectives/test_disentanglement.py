import math

import pytest
import torch
from linear_gaussian import EVALUATION, SHAPE, LinearGaussian, evaluate
from torch.distributions import MultivariateNormal

from vae_lab.models.posteriors import DiagonalGaussian
from vae_lab.objectives import Context
from vae_lab.objectives.disentanglement import DIP, BetaTC, Capacity
from vae_lab.objectives.elbo import ELBO


@pytest.fixture
def vae():
    return LinearGaussian().vae(0.3, 0.5)


@pytest.mark.parametrize(
    "objective",
    [Capacity(1.0, 0.0, 0), DIP(1.0, 0.0, 0.0, 1), DIP(1.0, 0.0, 0.0, 2)],
    ids=["capacity", "dip 1", "dip 2"],
)
def test_special_cases_are_the_elbo(vae, objective):
    x = torch.rand(8, *SHAPE)
    terms, expected = evaluate(objective, vae, x), evaluate(ELBO(1.0, 0, 0.0), vae, x)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value)


def test_the_capacity_rises_and_evaluation_asks_for_the_last(vae):
    objective = Capacity(10.0, 6.0, 4)
    assert [objective.target(Context(step, 1, "train")) for step in (0, 1, 4, 9)] == [0, 1.5, 6, 6]
    assert objective.target(EVALUATION) == 6
    terms = evaluate(objective, vae, torch.rand(8, *SHAPE))
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 10 * (terms["kl"] - 6).abs())


@pytest.mark.parametrize("estimator", ["weighted", "stratified"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_three_equal_weights_are_the_sampled_kl(vae, estimator, size):
    x = torch.rand(size, *SHAPE)
    terms = evaluate(BetaTC(1.0, 1.0, 1.0, estimator), vae, x)
    torch.manual_seed(1)
    q = vae.encode(x)
    z = q.rsample(1)
    sampled = (q.log_prob(z) - vae.prior.log_prob(z)).mean()
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + sampled, rtol=1e-5, atol=1e-5)
    assert terms["elbo"] == -(terms["reconstruction"] + terms["kl"])  # that of the closed form
    three = sum(terms[f"{key}_estimate"] for key in ("information", "correlation", "dimension_kl"))
    torch.testing.assert_close(three, sampled, rtol=1e-5, atol=1e-5)


def test_the_stratified_estimate_of_the_aggregate_posterior_is_unbiased():
    # All batches of 3 of 5 images, each in every order: the mean over those is the expectation, exactly.
    objective, num_images = BetaTC(1.0, 1.0, 1.0, "stratified"), 5
    density = torch.rand(num_images, dtype=torch.float64)  # of a sample of image 0, given each image
    estimates = []
    for second in range(1, num_images):
        for third in set(range(1, num_images)) - {second}:
            weights = objective.log_weights(3, num_images).double().exp()[0]
            estimates.append(weights @ density[[0, second, third]])
    assert torch.stack(estimates).mean().item() == pytest.approx(density.mean().item(), rel=1e-6)  # float32 weights
    for size in (2, 5, 9):
        rows = objective.log_weights(size, 20).exp().sum(1)
        torch.testing.assert_close(rows, torch.ones(size))
    assert BetaTC(1.0, 1.0, 1.0, "weighted").log_weights(3, 20).exp().unique().item() == pytest.approx(1 / 60)


class Latents(torch.nn.Module):
    """What an encoder would say of images that are their own parameters."""

    def forward(self, x):
        return x.flatten(1)


def test_total_correlation_of_a_gaussian(vae):
    # The aggregate posterior is N(0, C) with correlation 0.8: TC = -1/2 log(1 - 0.8^2). Batch = data set, so that both
    # estimators mean the same; with small posterior variances they are off by the width of the kernel, some hundredths.
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
    codes = MultivariateNormal(torch.zeros(2), covariance).sample((1500,))
    vae.encoder = Latents()
    images = torch.cat([codes, torch.full_like(codes, math.log(0.01))], 1).unflatten(1, SHAPE)
    terms = evaluate(BetaTC(1.0, 1.0, 1.0, "stratified"), vae, images, Context(0, 1500, "val"))
    expected = -0.5 * math.log(1 - 0.8**2)
    assert terms["correlation_estimate"].item() == pytest.approx(expected, abs=0.15)
    # And with nothing to tell the images apart, there is no information.
    same = torch.cat([torch.zeros(100, 2), torch.zeros(100, 2)], 1).unflatten(1, SHAPE)
    terms = evaluate(BetaTC(1.0, 1.0, 1.0, "stratified"), vae, same, Context(0, 100, "val"))
    assert [abs(terms[key].item()) < 1e-5 for key in ("information_estimate", "correlation_estimate")] == [True] * 2


def test_dip_is_nothing_at_identity_covariance_and_the_paper_s_sum_elsewhere():
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * math.sqrt(3 / 4)  # covariance I
    narrow, wide = torch.full((4, 2), -50.0), torch.zeros(4, 2)
    assert DIP(1.0, 5.0, 7.0, 1).penalty(DiagonalGaussian(corners, wide)).item() == pytest.approx(0, abs=1e-12)
    assert DIP(1.0, 5.0, 7.0, 2).penalty(DiagonalGaussian(corners, narrow)).item() == pytest.approx(0, abs=1e-12)
    assert DIP(1.0, 5.0, 7.0, 2).penalty(DiagonalGaussian(0 * corners, wide)).item() == pytest.approx(0, abs=1e-12)
    mean, log_var = torch.randn(20, 3), torch.randn(20, 3)
    for kind, covariance in ((1, mean.T.cov()), (2, mean.T.cov() + torch.diag(log_var.exp().mean(0)))):
        off = sum(covariance[i, j] ** 2 for i in range(3) for j in range(3) if i != j)
        expected = 5 * off + 7 * sum((covariance[i, i] - 1) ** 2 for i in range(3))
        torch.testing.assert_close(DIP(1.0, 5.0, 7.0, kind).penalty(DiagonalGaussian(mean, log_var)), expected)
    assert DIP(1.0, 5.0, 7.0, 1).penalty(DiagonalGaussian(mean[:1], log_var[:1])).item() == 21  # of one image: 7 * 3
