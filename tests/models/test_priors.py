import math

import pytest
import torch

from vae_lab.models.likelihoods import Bernoulli
from vae_lab.models.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import Flow, Mixture, StandardNormal, Vamp
from vae_lab.models.vae import VAE

IMAGE = (1, 3, 3)


def random_flow(latent_shape=(2,)) -> Flow:
    """One whose map is far from the identity."""
    flow = Flow(latent_shape, 4, 16)
    for coupling in flow.couplings:
        torch.nn.init.normal_(coupling[-1].weight, std=0.4)
    return flow


def random_mixture(latent_shape=(2,)) -> Mixture:
    mixture = Mixture(latent_shape, 5)
    torch.nn.init.normal_(mixture.logits)
    torch.nn.init.normal_(mixture.log_vars, std=0.3)
    return mixture


def bound_vamp(latent_shape=(2,), components=4) -> Vamp:
    vamp = Vamp(latent_shape, components)
    size = math.prod(latent_shape)
    encoder, decoder = MLPEncoder(IMAGE, 2 * size, [8], "tanh"), MLPDecoder(size, IMAGE, [8], "tanh")
    VAE(encoder, decoder, Gaussian(), vamp, Bernoulli(), latent_shape, IMAGE)
    return vamp


PRIORS = {"mixture": random_mixture, "vamp": bound_vamp, "flow": random_flow, "normal": StandardNormal}


@pytest.mark.parametrize("name", PRIORS)
def test_a_density_integrates_to_one_and_is_that_of_the_samples(name):
    prior = PRIORS[name]((2,))
    axis = torch.linspace(-12, 12, 400)
    z = torch.cartesian_prod(axis, axis).unsqueeze(0)
    with torch.no_grad():
        density, samples = prior.log_prob(z)[0].exp(), prior.sample(20_000)
    cell = (axis[1] - axis[0]) ** 2
    assert (density.sum() * cell).item() == pytest.approx(1, abs=2e-3)  # of the grid; the tails are below that
    mean = (density[:, None] * z[0]).sum(0) * cell
    second = (density[:, None] * z[0].square()).sum(0) * cell
    for found, expected in ((samples, mean), (samples.square(), second)):
        assert ((found.mean(0) - expected).abs() < 5 * found.std(0) / math.sqrt(20_000) + 5e-3).all()


@pytest.mark.parametrize("name", PRIORS)
def test_shapes_and_draws(name):
    shape = (3, 2, 2)
    if name == "vamp":  # of an encoder that keeps a grid
        prior = Vamp(shape, 4)
        encoder = torch.nn.Conv2d(1, 6, 2)
        VAE(encoder, torch.nn.Identity(), Gaussian(), prior, Bernoulli(), shape, IMAGE)
    else:
        prior = PRIORS[name](shape)
    drawn = [prior.sample(7, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == (7, *shape)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    z = torch.stack([drawn[0], drawn[2]])
    assert prior.log_prob(z).shape == (2, 7)
    # A sample and an image at a time are the same.
    torch.testing.assert_close(prior.log_prob(z[1:, 3:5]), prior.log_prob(z)[1:, 3:5])


def test_a_flow_inverts_and_its_determinant_is_that_of_autograd():
    flow = random_flow((5,))
    z = torch.randn(6, 5)
    u, log_det = flow.to_normal(z)
    torch.testing.assert_close(flow.from_normal(u), z, rtol=1e-4, atol=1e-5)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda row: flow.to_normal(row)[0], row) for row in z])
    torch.testing.assert_close(log_det, jacobians.slogdet().logabsdet, rtol=1e-4, atol=1e-4)


def test_priors_that_are_the_standard_normal():
    z = torch.randn(3, 4, 2)
    mixture = Mixture((2,), 1)
    torch.nn.init.zeros_(mixture.means)
    expected = StandardNormal((2,)).log_prob(z)
    torch.testing.assert_close(mixture.log_prob(z), expected)
    torch.testing.assert_close(Flow((2,), 3, 8).log_prob(z), expected)


def test_vamp_of_all_training_images_is_the_aggregate_posterior():
    vamp = bound_vamp((2,), 6)
    images = torch.rand(6, *IMAGE)
    with torch.no_grad():
        vamp.pseudo_inputs.copy_(images)
    z = torch.randn(3, 4, 2)
    q = vamp.encode(images)
    of_each = torch.distributions.Normal(q.mean, torch.exp(0.5 * q.log_var)).log_prob(z[:, :, None]).sum(3)
    torch.testing.assert_close(vamp.log_prob(z), of_each.exp().mean(2).log())


def test_vamp_leaves_the_encoder_to_the_model():
    vamp = bound_vamp()
    assert [name for name, _ in vamp.named_parameters()] == ["pseudo_inputs"]
    vamp.log_prob(torch.randn(1, 3, 2)).sum().backward()
    assert vamp.pseudo_inputs.grad.ne(0).any()
    assert next(vamp.encode.__self__.encoder.parameters()).grad.ne(0).any()
