"""The von Mises-Fisher law against numerical integration, and its gradients against closed forms."""

import math

import pytest
import torch
from scipy import integrate, special

from vae_lab.models.spheres import UniformSphere, VonMisesFisher, VonMisesFisherLaw, cosine_slope, log_bessel

DIMS = pytest.mark.parametrize("dim", [2, 3, 16, 100])


def law(dim, kappa):
    """Of one image in a random direction."""
    mean = VonMisesFisher(1e4).project(torch.randn(1, dim))
    return VonMisesFisherLaw(mean, torch.tensor([[kappa]], dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize("order", [0, 0.5, 1, 7, 29.5, 49])
def test_the_bessel_function_is_that_of_scipy(order):
    x = torch.tensor([1e-3, 0.1, 1, 10, 1000, 1e5], dtype=torch.double)
    log_i, ratio = log_bessel(order, x)
    scaled = torch.from_numpy(special.ive(order, x.numpy())).clamp(min=1e-300)
    known = scaled > 1e-290
    torch.testing.assert_close(log_i[known], (scaled.log() + x)[known], rtol=0, atol=1e-7)
    above = torch.from_numpy(special.ive(order + 1, x.numpy()))
    torch.testing.assert_close(ratio[known], (above / scaled)[known], rtol=1e-7, atol=0)


@DIMS
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 40.0, 2000.0])
def test_the_kl_is_that_of_numerical_integration(dim, kappa):
    """Over the angle to the mean, of f log(f / g), with f and g the densities of the angle under q and the prior."""

    def log_f(angle):
        return kappa * (math.cos(angle) - 1) + (dim - 2) * math.log(max(math.sin(angle), 1e-300))

    mode = min(math.pi / 2, math.sqrt(dim / kappa))
    quad = {"points": [0.1 * mode, mode, min(3 * mode, 3)], "limit": 200, "epsabs": 1e-13}
    shift = max(log_f(mode * factor) for factor in (1e-3, 0.1, 0.3, 0.5, 0.7, 1, 1.5) if mode * factor < math.pi)
    total = integrate.quad(lambda a: math.exp(log_f(a) - shift), 0, math.pi, **quad)[0]
    mean = integrate.quad(lambda a: math.cos(a) * math.exp(log_f(a) - shift), 0, math.pi, **quad)[0] / total
    even = math.sqrt(math.pi) * special.gamma((dim - 1) / 2) / special.gamma(dim / 2)
    expected = kappa * (mean - 1) - (math.log(total) + shift) + math.log(even)
    q = law(dim, kappa)
    assert q.kl(UniformSphere(dim)).item() == pytest.approx(expected, rel=1e-5, abs=2e-7)


@DIMS
@pytest.mark.parametrize("kappa", [0.1, 5.0])
def test_the_density_integrates_to_one_and_its_mean_log_ratio_is_the_kl(dim, kappa):
    q, prior, num = law(dim, kappa), UniformSphere(dim), 20_000
    even, drawn = prior.sample(num)[:, None], q.rsample(num)
    for values, expected in (
        ((q.log_prob(even) - prior.log_prob(even)).exp(), 1.0),
        (q.log_prob(drawn) - prior.log_prob(drawn), q.kl(prior).item()),
    ):
        assert (
            abs(values.mean().item() - expected) < 4 * values.std().item() / math.sqrt(num) + 1e-6
        )  # 4 standard errors


@DIMS
@pytest.mark.parametrize("kappa", [0.1, 5.0, 500.0])
def test_samples_and_their_gradients_are_those_of_the_law(dim, kappa):
    num = 4000
    q = law(dim, kappa)
    z = q.rsample(num)
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(num, 1))
    cosine = (z.detach() * q.mean).sum(-1)
    _, ratio = log_bessel(dim / 2 - 1, q.concentration)
    # 4 standard errors; E cos = I_{D/2} / I_{D/2 - 1}, and its derivative is what the gradients of samples average to
    assert (cosine.mean() - ratio).abs().item() < 4 * (cosine.std() / math.sqrt(num)).item()
    (exact,) = torch.autograd.grad(ratio.sum(), q.concentration)
    slopes = cosine_slope(cosine[..., None].double().clamp(-1 + 1e-7, 1 - 1e-7), q.concentration.detach(), dim)
    assert (slopes.mean() - exact).abs().item() < 4 * (slopes.std() / math.sqrt(num)).item() + 1e-3 * exact.item()
    # The density is that of the samples: the mean log-ratio to the uniform law is the KL.
    prior = UniformSphere(dim)
    logs = (q.log_prob(z) - prior.log_prob(z)).detach()
    assert (logs.mean() - q.kl(prior)).abs().item() < 4 * (logs.std() / math.sqrt(num)).item() + 1e-5


def test_a_gradient_of_the_law_in_closed_form():
    # E (a.z)^2 on the sphere in three dimensions, along and across the mean: 1 - 2 A / kappa and A / kappa.
    num, kappa = 8000, 4.0
    q = VonMisesFisherLaw(torch.tensor([[0.0, 0, 1]]), torch.tensor([[kappa]], dtype=torch.double, requires_grad=True))
    squares = q.rsample(num)[:, 0].square().mean(0)
    a = 1 / math.tanh(kappa) - 1 / kappa
    torch.testing.assert_close(squares, torch.tensor([a / kappa, a / kappa, 1 - 2 * a / kappa]), rtol=0.05, atol=0)
    (grad,) = torch.autograd.grad(squares[2], q.concentration)
    slope = (1 - 1 / math.tanh(kappa) ** 2 + 1 / kappa**2) / kappa - a / kappa**2
    assert grad.item() == pytest.approx(-2 * slope, rel=0.1)


def test_encoder_outputs_become_laws_under_every_precision():
    posterior = VonMisesFisher(1e4)
    params = torch.cat([torch.randn(3, 4), torch.tensor([[-1e4], [0.0], [3e4]])], 1).bfloat16().requires_grad_()
    q, prior = posterior(params), posterior.prior((4,))
    assert q.mean.dtype == q.kl(prior).dtype == q.rsample(2).dtype == q.log_prob(q.rsample(1)).dtype == torch.float32
    torch.testing.assert_close(q.concentration.flatten().tolist(), [1e-3, 4 * math.log(2), 1e4])
    assert q.diagnostics()["concentration"].item() == pytest.approx(q.concentration.mean().item())
    assert q.kl(None) is None
    (q.kl(prior).sum() + q.rsample(5).square().sum() + q.log_prob(prior.sample(3)[:, None]).sum()).backward()
    assert params.grad.isfinite().all()
    torch.testing.assert_close(posterior(torch.zeros(2, 5)).mean.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(prior.sample(9).norm(dim=1), torch.ones(9))
    assert UniformSphere(3).log_prob(torch.zeros(1, 1, 3)).item() == pytest.approx(-math.log(4 * math.pi))
