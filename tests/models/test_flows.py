"""Flows: log-determinants against autograd's, inverses, densities, and the Gaussian at the identity."""

import pytest
import torch

from vae_lab.models.flows import InverseAutoregressive, Planar, Radial
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import StandardNormal

D = 3
FLOWS = {
    "planar": lambda dim: Planar(num_maps=4, max_log_var=20.0),
    "radial": lambda dim: Radial(num_maps=4, max_log_var=20.0),
    "iaf": lambda dim: InverseAutoregressive(dim, num_maps=3, hidden_dim=16, max_log_var=20.0),
}
EACH = pytest.mark.parametrize("name", FLOWS)


def flow(name, dim=D, scale=1.0, batch=4):
    """A posterior whose maps bend, and parameters for it."""
    posterior = FLOWS[name](dim)
    for network in getattr(posterior, "networks", ()):
        torch.nn.init.normal_(network.last.weight, std=scale / 2)
    num = dim * posterior.params_per_latent + getattr(posterior, "params_per_image", 0)
    params = scale * torch.randn(batch, num)
    params[:, : 2 * dim] *= 0.3  # a Gaussian near the origin, where the maps bend
    return posterior, params


@EACH
@pytest.mark.parametrize("dim", [1, 2, D])
def test_log_determinants_are_those_of_autograd_and_maps_invert(name, dim):
    posterior, params = flow(name, dim, scale=2.0)
    q = posterior(params[:1])
    z = torch.randn(5, 1, dim)
    pushed, log_det = q.push(z)
    assert log_det.shape == (5, 1)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda x: q.push(x[None, None])[0][0, 0], z[i, 0])
        # float32, through up to four maps that stretch
        torch.testing.assert_close(log_det[i, 0], torch.linalg.slogdet(jacobian)[1], rtol=1e-3, atol=1e-3)
        assert torch.linalg.slogdet(jacobian)[0] > 0
    for one in reversed(q.maps):
        pushed = one.inverse(pushed)
    torch.testing.assert_close(pushed, z, rtol=1e-3, atol=1e-3)


@EACH
def test_the_density_is_that_of_its_samples_whether_it_remembers_them_or_not(name):
    posterior, params = flow(name)
    q = posterior(params)
    z = q.rsample(6)
    assert z.shape == (6, 4, D)
    assert q.kl(StandardNormal((D,))) is None
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), rtol=1e-3, atol=2e-3)
    assert q.mean.shape == (4, D)
    # It integrates to 1: importance sampling from a wide Gaussian, 4 standard errors.
    wide = Gaussian()(torch.cat([q.mean, torch.full((4, D), 2.5)], 1))
    z = wide.rsample(8000)
    weights = (q.log_prob(z) - wide.log_prob(z)).exp()
    assert ((weights.mean(0) - 1).abs() < 4 * weights.std(0) / 8000**0.5).all()


@EACH
def test_gradients_of_the_density_agree_and_reach_all_parameters(name):
    posterior, params = flow(name)
    params.requires_grad_()
    z = torch.randn(2, 4, D, requires_grad=True)
    posterior(params).log_prob(z).sum().backward()
    numeric = torch.zeros(D)
    with torch.no_grad():
        for i in range(D):
            step = 1e-2 * torch.eye(D)[i]
            high, low = (posterior(params).log_prob(z[:1] + sign * step)[0, 0] for sign in (1, -1))
            numeric[i] = (high - low) / 2e-2
    torch.testing.assert_close(z.grad[0, 0], numeric, rtol=0.05, atol=0.05)  # central differences in float32
    q = posterior(params)
    z = q.rsample(8)
    loss = q.log_prob(z).sum() + z.square().sum()
    (grad,) = torch.autograd.grad(loss, params)
    assert grad.isfinite().all()
    assert grad.any(0).all()


@EACH
def test_the_identity_gives_the_gaussian(name):
    posterior, params = flow(name)
    if name == "iaf":
        posterior = FLOWS[name](D)  # as it begins, whatever its context
    elif name == "planar":
        for k in range(4):
            params[:, 2 * D + 2 * k * D : 2 * D + (2 * k + 1) * D] = 0  # u
    else:
        params[:, -7::2] = 0  # b
    q, gaussian = posterior(params), Gaussian()(params[:, : 2 * D])
    torch.testing.assert_close(q.mean, gaussian.mean)
    torch.manual_seed(1)
    z = q.rsample(3)
    torch.manual_seed(1)
    torch.testing.assert_close(z, gaussian.rsample(3))
    torch.testing.assert_close(q.log_prob(z), gaussian.log_prob(z))


def test_an_autoregressive_map_looks_back_only():
    posterior, params = flow("iaf")
    q = posterior(params[:1])
    for one in q.maps:
        jacobian = torch.autograd.functional.jacobian(lambda x, one=one: one(x[None, None])[0][0, 0], torch.randn(D))
        assert not (jacobian.tril(-1) if one.turned else jacobian.triu(1)).any()
        assert (jacobian.triu(1) if one.turned else jacobian.tril(-1)).any()
    assert {one.turned for one in q.maps} == {False, True}


@EACH
@pytest.mark.parametrize("scale", [1e-30, 1e4, -1e4])
def test_extreme_parameters_stay_finite(name, scale):
    posterior, params = flow(name)
    params = (scale * params.sign()).bfloat16().requires_grad_()
    q = posterior(params)
    z = q.rsample(2)
    value = q.log_prob(z)
    assert z.dtype == value.dtype == torch.float32
    assert z.isfinite().all()
    assert value.isfinite().all()
    value.sum().backward()
    assert params.grad.isfinite().all()
