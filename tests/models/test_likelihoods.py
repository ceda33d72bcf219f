import math

import numpy as np
import pytest
import torch
from torch import distributions

from vae_lab.models.likelihoods import Bernoulli, Gaussian

SHAPE = (5, 3, 4, 4)
LIKELIHOODS = [Bernoulli(), Gaussian()]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_bernoulli_is_the_sum_of_coins():
    x, logits = torch.rand(SHAPE).round(), 5 * torch.randn(SHAPE)
    expected = distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Bernoulli().log_prob(x, logits), expected, rtol=1e-5, atol=0)  # float32 sums of 48


def test_bernoulli_of_grey_pixels_is_the_cross_entropy():
    x, logits = torch.rand(SHAPE), 3 * torch.randn(SHAPE)
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    grey = x.double().numpy()
    expected = (grey * np.log(p) + (1 - grey) * np.log1p(-p)).sum((1, 2, 3))
    actual = Bernoulli().log_prob(x, logits).double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)  # float32 against float64


def test_bernoulli_is_a_distribution_over_binary_images():
    logits = torch.randn(1, 1, 2, 2).expand(16, -1, -1, -1)
    every_image = torch.tensor([[(i >> k) & 1 for k in range(4)] for i in range(16)]).float().view(16, 1, 2, 2)
    assert Bernoulli().log_prob(every_image, logits).exp().sum().item() == pytest.approx(1, abs=1e-6)  # float32 sum


@pytest.mark.parametrize("logit", [1000.0, -1000.0])
def test_bernoulli_is_stable_at_extreme_logits(logit):
    logits = torch.full((2, 1, 2, 2), logit, requires_grad=True)
    x = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    value = Bernoulli().log_prob(x, logits)
    wrong = 0 if logit > 0 else 1
    assert value[wrong].item() == -4 * 1000  # exactly |logit| nats for each wrong pixel
    assert value[1 - wrong].item() == 0
    value.sum().backward()
    # The gradient of a wrong pixel is x - p = -+1: it does not die, as it would after a sigmoid.
    assert logits.grad[wrong].abs().eq(1).all()


def test_bernoulli_mean_and_samples():
    logits = torch.tensor([-2.0, 0.0, 1.0, 3.0]).view(1, 1, 2, 2)
    num = 50_000
    mean = Bernoulli().mean(logits)
    torch.testing.assert_close(mean, torch.sigmoid(logits))
    samples = Bernoulli().sample(logits.expand(num, -1, -1, -1))
    assert samples.unique().tolist() == [0, 1]
    standard_error = (mean * (1 - mean) / num).sqrt()
    assert ((samples.mean(0, keepdim=True) - mean).abs() < 4 * standard_error).all()


def test_gaussian_is_normal_with_variance_one_half():
    x, params = torch.rand(SHAPE), 2 * torch.randn(SHAPE)
    expected = distributions.Normal(params, math.sqrt(0.5)).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Gaussian().log_prob(x, params), expected, rtol=1e-5, atol=0)  # float32 sums of 48


def test_gaussian_is_the_sum_of_squared_errors_and_a_constant():
    x, params = torch.rand(SHAPE), torch.randn(SHAPE)
    num_pixels = 3 * 4 * 4
    expected = ((x - params) ** 2).sum((1, 2, 3)) + num_pixels / 2 * math.log(math.pi)
    torch.testing.assert_close(-Gaussian().log_prob(x, params), expected, rtol=1e-5, atol=0)
    best = Gaussian().log_prob(x, x)
    torch.testing.assert_close(best, torch.full((5,), -num_pixels / 2 * math.log(math.pi)), rtol=1e-6, atol=0)


def test_gaussian_mean_and_samples():
    params = torch.tensor([-3.0, 0.0, 0.5, 7.0]).view(1, 1, 2, 2)
    num = 50_000
    assert torch.equal(Gaussian().mean(params), params)
    samples = Gaussian().sample(params.expand(num, -1, -1, -1))
    # 4 standard errors: sqrt(var / n) of a mean, var * sqrt(2 / n) of a Gaussian's variance
    assert ((samples.mean(0) - params[0]).abs() < 4 * math.sqrt(0.5 / num)).all()
    assert ((samples.var(0) - 0.5).abs() < 4 * 0.5 * math.sqrt(2 / num)).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_images_of_a_batch_do_not_mix(likelihood):
    x, params = torch.rand(SHAPE), torch.randn(SHAPE)
    whole = likelihood.log_prob(x, params)
    assert whole.shape == (5,)
    alone = torch.cat([likelihood.log_prob(x[i : i + 1], params[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=0)  # the order of a float32 sum may differ


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_sample_of_z_is_held_against_the_same_images(likelihood):
    x, params = torch.rand(SHAPE), torch.randn(7, *SHAPE)
    value = likelihood.log_prob(x, params)
    assert value.shape == (7, 5)
    assert torch.equal(value, torch.stack([likelihood.log_prob(x, one) for one in params]))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_give_the_float32_value(likelihood, dtype):
    x, params = torch.rand(SHAPE), torch.randn(SHAPE).to(dtype)
    value = likelihood.log_prob(x, params)
    assert value.dtype == torch.float32
    assert torch.equal(value, likelihood.log_prob(x, params.float()))
    assert likelihood.mean(params).dtype == torch.float32


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_gradient_points_from_the_mean_to_the_image(likelihood):
    x = torch.rand(SHAPE)
    params = torch.randn(SHAPE, requires_grad=True)
    likelihood.log_prob(x, params).sum().backward()
    scale = 1 if isinstance(likelihood, Bernoulli) else 2  # d/dlogit is x - p; d/dmean is (x - mean) / variance
    torch.testing.assert_close(params.grad, scale * (x - likelihood.mean(params.detach())), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_bernoulli_refuses_pixels_outside_its_range(value):
    x = torch.full((2, 1, 2, 2), 0.5)
    Bernoulli().check(x)
    x[1, 0, 1, 0] = value
    with pytest.raises(ValueError, match=rf"loss=bce needs pixels in \[0, 1\], got .*{value:g}"):
        Bernoulli().check(x)


def test_bernoulli_accepts_the_ends_of_its_range():
    Bernoulli().check(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gaussian_refuses_only_what_is_not_finite(value):
    x = torch.tensor([-3.0, 1.1, 200.0, 0.0]).view(1, 1, 2, 2)
    Gaussian().check(x)
    x[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="loss=mse needs finite pixels"):
        Gaussian().check(x)
