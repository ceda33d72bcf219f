import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vae_lab.models.posteriors import Deterministic, Gaussian
from vae_lab.models.priors import StandardNormal

STANDARD = Normal(0.0, 1.0)
PRIOR = StandardNormal((3,))


def some_params() -> torch.Tensor:
    """Means to +-6 and log variances to +-12 for 64 images and 3 latents."""
    return torch.cat([2 * torch.randn(64, 3), 4 * torch.randn(64, 3)], dim=1)


def test_kl_is_the_closed_form_of_each_latent():
    q = Gaussian()(some_params())
    expected = kl_divergence(Normal(q.mean, torch.exp(0.5 * q.log_var)), STANDARD)
    torch.testing.assert_close(q.kl(PRIOR), expected, rtol=1e-5, atol=1e-5)  # float32, two orders of summation
    assert q.kl(PRIOR).shape == (64, 3)


def test_the_first_half_of_the_parameters_is_the_mean_and_the_second_the_log_variance():
    q = Gaussian()(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert q.mean.tolist() == [[1, 2]]
    assert q.log_var.tolist() == [[3, 4]]


def test_samples_have_the_mean_and_variance_of_the_posterior():
    num = 200_000
    q = Gaussian()(torch.tensor([[3.0, -2.0, 0.0, 2.0, -4.0, 0.0]]).expand(num, -1))
    z = q.rsample(1)[0]
    variance = q.log_var[0].exp()
    # 4 standard errors: sqrt(var / n) of a mean, var * sqrt(2 / n) of a Gaussian's variance
    assert ((z.mean(0) - q.mean[0]).abs() < 4 * (variance / num).sqrt()).all()
    assert ((z.var(0) - variance).abs() < 4 * variance * math.sqrt(2 / num)).all()
    correlation = torch.corrcoef(z.T) - torch.eye(3)
    assert (correlation.abs() < 4 / math.sqrt(num)).all()


def test_a_sample_is_differentiable_in_both_parameters():
    params = torch.tensor([[0.5, -1.0]], requires_grad=True)
    q = Gaussian()(params)
    z = q.rsample(1)[0]
    z.sum().backward()
    eps = (z - q.mean) / torch.exp(0.5 * q.log_var)
    expected = torch.tensor([[1.0, 0.5 * math.exp(-0.5) * eps.item()]])
    torch.testing.assert_close(params.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_the_clamp_bounds_the_sample_and_the_kl_together(extreme):
    q = Gaussian(max_log_var=3.0)(torch.tensor([[0.0, extreme]]).expand(10_000, -1))
    bound = math.copysign(3.0, extreme)
    expected = 0.5 * (math.exp(bound) - bound - 1)
    torch.testing.assert_close(q.kl(PRIOR), torch.full((10_000, 1), expected), rtol=1e-5, atol=0)
    # The variance of 10,000 samples is known to sqrt(2 / 10,000) = 1.4 %; 4 standard errors.
    assert q.rsample(1)[0].var().item() == pytest.approx(math.exp(bound), rel=0.06)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_parameters_stay_finite_and_float32(dtype, sign):
    params = torch.full((4, 6), sign * 1e4, dtype=dtype, requires_grad=True)
    q = Gaussian()(params)
    z, kl = q.rsample(1)[0], q.kl(PRIOR)
    assert z.dtype == kl.dtype == q.mean.dtype == torch.float32
    assert z.isfinite().all()
    assert kl.isfinite().all()
    (kl.sum() + z.sum()).backward()
    assert params.grad.isfinite().all()
    params = some_params().to(dtype)
    torch.testing.assert_close(Gaussian()(params).kl(PRIOR), Gaussian()(params.float()).kl(PRIOR), rtol=0, atol=0)


def test_the_density_and_the_kl_are_those_of_independent_normals():
    q = Gaussian()(some_params())
    z = q.rsample(5)
    normal = Normal(q.mean, torch.exp(0.5 * q.log_var))
    assert z.shape == (5, 64, 3)
    # float32 sums of three terms up to a few hundred
    torch.testing.assert_close(q.log_prob(z), normal.log_prob(z).sum(2), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(PRIOR.log_prob(z), STANDARD.log_prob(z).sum(2), rtol=1e-5, atol=1e-4)
    assert q.kl(torch.nn.Identity()) is None  # no closed form with just any prior


def test_a_grid_of_latents_is_a_posterior_too():
    q = Gaussian()(torch.randn(6, 8, 2, 2))
    z = q.rsample(2)
    prior = StandardNormal((4, 2, 2))
    assert z.shape == (2, 6, 4, 2, 2)
    assert q.kl(prior).shape == (6, 4, 2, 2)
    assert q.log_prob(z).shape == prior.log_prob(z).shape == (2, 6)
    assert prior.sample(7).shape == (7, 4, 2, 2)


def test_a_plain_autoencoder_samples_its_code():
    params = torch.randn(4, 3).bfloat16()
    q = Deterministic()(params)
    assert q.mean.dtype == torch.float32
    assert torch.equal(q.mean, params.float())
    assert torch.equal(q.rsample(1)[0], q.mean)
    assert q.terms == q.diagnostics() == {}
