import math

import pytest
import torch
from linear_gaussian import SHAPE, LinearGaussian, evaluate

from vae_lab.models.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.models.posteriors import Deterministic
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.mmd import InfoVAE, WassersteinMMD, mmd


def similarity_of_normals(squared_distance: float, variance: float, d: int) -> float:
    """E exp(-|a - b|^2 / (2 D)) of a - b ~ N(mean, variance I), with |mean|^2 given."""
    return (1 + variance / d) ** (-d / 2) * math.exp(-squared_distance / (2 * (d + variance)))


def test_the_estimate_is_unbiased_and_has_the_closed_form_of_normals():
    d, shift, scale = 3, 0.7, 1.5
    within = similarity_of_normals(0, 2, d) + similarity_of_normals(0, 2 * scale**2, d)
    expected = within - 2 * similarity_of_normals(d * shift**2, 1 + scale**2, d)
    batches = torch.randn(2000, 2, 8, d)
    for target, moved in ((0.0, batches[:, 1]), (expected, batches[:, 1] * scale + shift)):
        found = torch.vmap(lambda z, other: mmd(z, other, "rbf"))(batches[:, 0], moved)
        assert abs(found.mean() - target) < 4 * found.std() / math.sqrt(2000)
        assert found.std() / math.sqrt(2000) < 0.005  # else the line above would prove little
    found = torch.vmap(lambda z, other: mmd(z, other, "imq"))(batches[:, 0], batches[:, 1])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(2000)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_estimate_of_a_few_points_by_hand(kernel):
    z, other = torch.randn(3, 2, 2), torch.randn(3, 2, 2)  # of a grid of latents

    def k(a, b):
        squares, c = (a - b).square().sum().item(), 8
        return c / (c + squares) if kernel == "imq" else math.exp(-squares / c)

    pairs = [(i, j) for i in range(3) for j in range(3)]
    expected = sum(k(a[i], a[j]) / 6 for a in (z, other) for i, j in pairs if i != j)
    expected -= 2 * sum(k(z[i], other[j]) / 9 for i, j in pairs)
    assert mmd(z, other, kernel).item() == pytest.approx(expected, abs=1e-6)
    assert math.isfinite(mmd(z[:1], other[:1], kernel))


def test_info_with_alpha_0_and_lambda_1_is_the_elbo():
    vae, x = LinearGaussian().vae(0.3, 0.5), torch.rand(8, *SHAPE)
    terms, expected = evaluate(InfoVAE(0.0, 1.0, "rbf"), vae, x), evaluate(ELBO(1.0, 0, 0.0), vae, x)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value)
    terms = evaluate(InfoVAE(0.25, 3.0, "rbf"), vae, x)
    expected = terms["reconstruction"] + 0.75 * terms["kl"] + 2.25 * terms["mmd_estimate"]
    torch.testing.assert_close(terms["loss"], expected)


def autoencoder(prior) -> VAE:
    networks = MLPEncoder((1, 4, 4), 3, [16], "tanh"), MLPDecoder(3, (1, 4, 4), [16], "tanh")
    return VAE(*networks, Deterministic(), prior, LinearGaussian().vae().likelihood, (3,), (1, 4, 4))


def test_wae_without_weight_is_the_plain_autoencoder():
    vae, x = autoencoder(StandardNormal((3,))), torch.rand(8, 1, 4, 4)
    terms = evaluate(WassersteinMMD(0.0, "imq"), vae, x)
    assert list(terms) == ["loss", "reconstruction", "mmd_estimate"]  # a point has no KL
    vae.prior = None
    expected = evaluate(ELBO(1.0, 0, 0.0), vae, x)
    for key, value in expected.items():
        assert terms[key] == value
    gaussian = LinearGaussian().vae(0.3, 0.5)
    terms = evaluate(WassersteinMMD(2.0, "imq"), gaussian, torch.rand(8, *SHAPE))
    assert terms["elbo"] == -(terms["reconstruction"] + terms["kl"])
    torch.testing.assert_close(terms["loss"], terms["reconstruction"] + 2 * terms["mmd_estimate"])
