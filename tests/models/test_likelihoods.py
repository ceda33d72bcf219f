import math

import numpy as np
import pytest
import torch
from torch import distributions

from vae_lab.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    LearnedGaussian,
    OptimalGaussian,
)

SHAPE = (5, 3, 4, 4)
LIKELIHOODS = [
    *(Bernoulli(), Gaussian(), LearnedGaussian(False, 0.01), LearnedGaussian(True, 0.01), OptimalGaussian().eval()),
    *(Laplace(0.3), ContinuousBernoulli(), DiscretizedLogistic(1), DiscretizedLogistic(4)),
]
MEANS = [Bernoulli(), Gaussian(), ContinuousBernoulli()]  # whose gradient is x - mean
LEVELS = (torch.arange(256.0) / 255).view(256, 1, 1, 1)


def name(likelihood) -> str:
    return type(likelihood).__name__


def some_params(likelihood, *leading: int, scale: float = 1.0) -> torch.Tensor:
    batch, channels, *size = SHAPE
    return scale * torch.randn(*leading, batch, likelihood.params_per_channel * channels, *size)


def test_bernoulli_of_grey_pixels_is_the_cross_entropy():
    x, logits = torch.rand(SHAPE), 3 * torch.randn(SHAPE)
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    grey = x.double().numpy()
    expected = (grey * np.log(p) + (1 - grey) * np.log1p(-p)).sum((1, 2, 3))
    actual = Bernoulli().log_prob(x, logits).double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)  # float32 against float64


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


def test_gaussian_is_the_sum_of_squared_errors_and_a_constant():
    x, params = torch.rand(SHAPE), torch.randn(SHAPE)
    num_pixels = 3 * 4 * 4
    expected = ((x - params) ** 2).sum((1, 2, 3)) + num_pixels / 2 * math.log(math.pi)
    torch.testing.assert_close(-Gaussian().log_prob(x, params), expected, rtol=1e-5, atol=0)
    best = Gaussian().log_prob(x, x)
    torch.testing.assert_close(best, torch.full((5,), -num_pixels / 2 * math.log(math.pi)), rtol=1e-6, atol=0)


def one_pixel(likelihood, rows: torch.Tensor, n: int) -> torch.Tensor:
    """The same parameters (R, P) for n images of one pixel, (R, n, P, 1, 1)."""
    return rows[:, None, :, None, None].expand(-1, n, -1, 1, 1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
def test_densities_integrate_and_probabilities_sum_to_one(likelihood):
    num_params = likelihood.params_per_channel
    rows = torch.cat([torch.zeros(1, num_params), 3 * torch.rand(20, num_params) - 1.5])
    if isinstance(likelihood, ContinuousBernoulli):
        rows = torch.tensor([0, 1e-4, -0.09, 0.0999, 0.1001, -1, 30.0])[:, None]
    if isinstance(likelihood, DiscretizedLogistic):
        x, cell = LEVELS, 1.0
        rows[1:3] *= 10  # means far outside, and the narrowest logistics
    elif isinstance(likelihood, Bernoulli):
        x, cell = LEVELS[[0, 255]], 1.0
    else:
        low, high, n = (0, 1, 20_000) if isinstance(likelihood, ContinuousBernoulli) else (-40, 40, 40_000)
        cell = (high - low) / n
        x = (low + cell * (torch.arange(n) + 0.5)).view(n, 1, 1, 1)
    with torch.no_grad():
        total = likelihood.log_prob(x, one_pixel(likelihood, rows, len(x))).double().exp().sum(1) * cell
    # The rounding of log p in float32, and the midpoint rule: cell^2 / 24 times the jump of the density's slope.
    torch.testing.assert_close(total, torch.ones_like(total), rtol=2e-4, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
def test_samples_have_the_mean_that_is_told(likelihood):
    num = 20_000
    with torch.no_grad():
        params = some_params(likelihood)[:1]
        samples = likelihood.sample(params.expand(num, -1, -1, -1))
        error = (samples.mean(0) - likelihood.mean(params)[0]).abs()
    assert samples.shape == (num, *SHAPE[1:])
    half_a_level = 1 / 510 if isinstance(likelihood, DiscretizedLogistic) else 0
    assert (error < 5 * samples.std(0) / math.sqrt(num) + half_a_level).all()  # 5 standard errors, of 48 pixels
    if isinstance(likelihood, Bernoulli):
        assert samples.unique().tolist() == [0, 1]
    if type(likelihood) is Gaussian:  # 5 standard errors of its variance, 1/2
        assert ((samples.var(0) - 0.5).abs() < 5 * 0.5 * math.sqrt(2 / num)).all()


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
def test_images_of_a_batch_do_not_mix_and_every_sample_of_z_is_held_against_the_same(likelihood):
    x, params = torch.rand(SHAPE), some_params(likelihood, 7)
    whole = likelihood.log_prob(x, params)
    assert whole.shape == (7, 5)
    alone = [[likelihood.log_prob(x[i : i + 1], one[i : i + 1]).squeeze() for i in range(5)] for one in params]
    alone = torch.stack([torch.stack(row) for row in alone])
    torch.testing.assert_close(whole, alone, rtol=1e-6, atol=0)  # the order of a float32 sum may differ


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_give_the_float32_value(likelihood, dtype):
    x, params = torch.rand(SHAPE), some_params(likelihood).to(dtype)
    value = likelihood.log_prob(x, params)
    assert value.dtype == torch.float32
    assert torch.equal(value, likelihood.log_prob(x, params.float()))
    assert likelihood.mean(params).dtype == likelihood.sample(params).dtype == torch.float32


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=name)
def test_extreme_outputs_have_finite_values_and_gradients(likelihood):
    for size in (0.0, 30.0, -30.0):
        params = torch.full((2, likelihood.params_per_channel, 1, 1), size, requires_grad=True)
        value = likelihood.log_prob(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), params)
        value.sum().backward()
        assert value.isfinite().all()
        assert params.grad.isfinite().all()


@pytest.mark.parametrize("likelihood", MEANS, ids=name)
def test_the_gradient_points_from_the_mean_to_the_image(likelihood):
    x = torch.rand(SHAPE)
    params = (torch.randn(SHAPE) * torch.tensor([0.01, 0.2, 5]).view(3, 1, 1)).requires_grad_()
    likelihood.log_prob(x, params).sum().backward()
    scale = 2 if isinstance(likelihood, Gaussian) else 1  # d/dlogit is x - p; d/dmean is (x - mean) / variance
    torch.testing.assert_close(params.grad, scale * (x - likelihood.mean(params.detach())), rtol=1e-4, atol=1e-5)


def test_a_learned_sigma_of_root_one_half_is_mse_and_its_best_value_is_the_root_of_the_mean_squared_error():
    x, params = torch.rand(SHAPE), torch.randn(SHAPE)
    shared, emitted = LearnedGaussian(False, 1e-6), LearnedGaussian(True, 1e-6)
    assert [name for name, _ in shared.named_parameters()] == ["log_sigma"]
    assert not list(emitted.parameters())

    def set_sigma(sigma: float) -> torch.Tensor:  # before the bound
        raw = torch.tensor(math.log(sigma) - shared.least).double().expm1().log() + shared.least
        shared.log_sigma.data = raw.float().requires_grad_()
        return shared.log_sigma

    raw = set_sigma(math.sqrt(0.5))
    both = torch.cat([params, raw.detach().expand_as(params)], 1)
    for value in (shared.log_prob(x, params), emitted.log_prob(x, both)):
        torch.testing.assert_close(value, Gaussian().log_prob(x, params), rtol=1e-4, atol=0)
    set_sigma((x - params).square().mean().sqrt().item())
    shared.log_prob(x, params).mean().backward()
    assert abs(shared.log_sigma.grad) < 1e-3  # of 48 pixels
    optimal = OptimalGaussian().log_prob(x, params).mean()
    torch.testing.assert_close(shared.log_prob(x, params).mean(), optimal, rtol=1e-4, atol=0)


def test_the_deviation_is_bounded_from_below_but_never_stuck():
    likelihood = LearnedGaussian(True, 0.01)
    params = torch.tensor([0.0, -20.0]).view(1, 2, 1, 1).requires_grad_()
    value = likelihood.log_prob(torch.zeros(1, 1, 1, 1), params)
    torch.testing.assert_close(value, torch.tensor([-math.log(0.01) - 0.5 * math.log(2 * math.pi)]))
    likelihood.log_prob(torch.ones(1, 1, 1, 1), params).sum().backward()
    assert params.grad[0, 1, 0, 0] > 0


def test_the_optimal_sigma_is_that_of_the_batch_in_training_and_its_average_afterwards():
    x, params = torch.rand(SHAPE), torch.randn(SHAPE, requires_grad=True)
    likelihood, num_pixels = OptimalGaussian(), 48
    error = (x - params).square().mean()
    expected = -num_pixels / 2 * (error.log() + 1 + math.log(2 * math.pi))
    value = likelihood.log_prob(x, params).mean()
    torch.testing.assert_close(value, expected)
    gradient, through_sigma = (torch.autograd.grad(each, params)[0] for each in (value, expected))
    torch.testing.assert_close(gradient, through_sigma)  # although none of it went through sigma
    for _ in range(200):
        likelihood.log_prob(x, params)
    assert likelihood.variance.item() == pytest.approx(error.item(), rel=1e-4)
    before = likelihood.eval().variance.clone()
    likelihood.log_prob(x, params + 1)
    assert torch.equal(likelihood.variance, before)
    assert list(likelihood.state_dict()) == ["variance"]


def test_laplace_is_the_sum_of_absolute_errors_and_a_constant():
    x, params = torch.rand(SHAPE), torch.randn(SHAPE)
    expected = distributions.Laplace(params, 0.3).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(Laplace(0.3).log_prob(x, params), expected, rtol=1e-5, atol=0)


def test_the_constant_of_the_continuous_bernoulli():
    logits = torch.tensor([0, 1e-8, -1e-4, 0.03, 0.0999, -0.1001, 0.2, -1, 5, 40, -300.0]).view(-1, 1, 1, 1)
    x = torch.full_like(logits, 0.25)
    constant = ContinuousBernoulli().log_prob(x, logits) - Bernoulli().log_prob(x, logits)
    exact = logits.double().flatten()
    half = exact.where(exact.abs() > 0, 1) / 2
    expected = torch.where(exact == 0, math.log(2), (2 * half / half.tanh()).log())
    torch.testing.assert_close(constant.double(), expected, rtol=1e-6, atol=2e-7)  # a few units of float32
    assert constant[0].item() == pytest.approx(math.log(2))  # C(1/2) = 2
    mean = ContinuousBernoulli().mean(logits).double().flatten()
    expected = torch.where(exact == 0, 0.5, -1 / torch.expm1(-2 * half) - 1 / (2 * half))
    torch.testing.assert_close(mean, expected, rtol=2e-6, atol=0)


def test_a_mixture_of_equal_logistics_is_one_of_them_and_its_cells_are_differences_of_the_logistic_function():
    x, one = (torch.rand(SHAPE) * 255).round() / 255, torch.randn(5, 6, 4, 4)
    mean, log_scale = one.chunk(2, 1)
    value = DiscretizedLogistic(1).log_prob(x, one)
    both = torch.cat([mean, mean, log_scale, log_scale, torch.randn(5, 6, 4, 4)], 1)  # whatever the weights
    torch.testing.assert_close(DiscretizedLogistic(2).log_prob(x, both), value, rtol=1e-5, atol=0)
    x, mean, scale = (2 * x - 1).double(), mean.double(), log_scale.double().exp()  # Salimans et al.'s units
    upper = torch.where(x > 0.999, 1, torch.sigmoid((x + 1 / 255 - mean) / scale))
    lower = torch.where(x < -0.999, 0, torch.sigmoid((x - 1 / 255 - mean) / scale))
    expected = (upper - lower).log().sum((1, 2, 3))
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=0)  # the soft bound of log s


def test_samples_of_a_discretized_logistic_are_levels():
    likelihood = DiscretizedLogistic(3)
    samples = likelihood.sample(some_params(likelihood, scale=3))
    likelihood.check(samples)
    with pytest.raises(ValueError, match="loss=discretized_logistic needs pixels that are one of 256 levels"):
        likelihood.check(samples.clamp(0, 0.9) + 1 / 510)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_bernoulli_refuses_pixels_outside_its_range(value):
    x = torch.tensor([0.0, 0.5, 1.0, 0.5]).view(1, 1, 2, 2).repeat(2, 1, 1, 1)
    Bernoulli().check(x)
    x[1, 0, 1, 0] = value
    for name, likelihood in (("bce", Bernoulli()), ("continuous_bernoulli", ContinuousBernoulli())):
        with pytest.raises(ValueError, match=rf"loss={name} needs pixels in \[0, 1\], got .*{value:g}"):
            likelihood.check(x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_gaussian_refuses_only_what_is_not_finite(value):
    x = torch.tensor([-3.0, 1.1, 200.0, 0.0]).view(1, 1, 2, 2)
    Gaussian().check(x)
    x[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="loss=mse needs finite pixels"):
        Gaussian().check(x)
