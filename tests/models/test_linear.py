"""The linear VAE reaches the elbo that is known in closed form."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from vae_lab.data.batches import Batch
from vae_lab.models.likelihoods import Gaussian as GaussianPixels
from vae_lab.models.likelihoods import LearnedGaussian
from vae_lab.models.networks.linear import LinearDecoder, LinearEncoder
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO

D = 2


def linear_vae(likelihood) -> VAE:
    parts = LinearEncoder((1, 8, 8), 2 * D), LinearDecoder(D, (1, 8, 8)), Gaussian(), StandardNormal((D,))
    return VAE(*parts, likelihood, (D,), (1, 8, 8))


def best_elbo(eigenvalues: Tensor, variance: float) -> float:
    """Of the formula in the docstring of the decoder; eigenvalues descend."""
    c = torch.cat([eigenvalues[:D].clamp(min=variance), torch.full_like(eigenvalues[D:], variance)])
    return -0.5 * (math.log(2 * math.pi) + c.log() + eigenvalues / c).sum().item()


@pytest.fixture(scope="module")
def digits():
    x = torch.from_numpy(load_digits().images / 16).float()[:, None]
    centred = (x.flatten(1) - x.flatten(1).mean(0)).double()
    return x, *torch.linalg.eigh(centred.T @ centred / len(x))


def elbo(vae: VAE, x: Tensor, num_samples: int = 64) -> float:
    """Of all images, with the mean of some samples of z."""
    with torch.no_grad():
        q = vae.encode(x)
        return (vae.likelihood.log_prob(x, vae.decode(q.rsample(num_samples))) - q.kl(vae.prior).sum(1)).mean().item()


def test_the_exact_posterior_of_the_principal_components_has_the_best_elbo(digits):
    x, eigenvalues, vectors = digits
    vae, variance = linear_vae(GaussianPixels()), 0.5
    spread = (eigenvalues[-D:] - variance).clamp(min=0)
    weight = vectors[:, -D:] * spread.sqrt()  # (64, D), orthogonal columns, so the exact posterior is diagonal
    posterior_variance = variance / (spread + variance)
    back = weight.T / variance * posterior_variance[:, None]
    mean = x.flatten(1).mean(0).double()
    with torch.no_grad():
        vae.decoder[0].weight.copy_(weight)
        vae.decoder[0].bias.copy_(mean)
        vae.encoder[1].weight.copy_(torch.cat([back, torch.zeros_like(back)]))
        vae.encoder[1].bias.copy_(torch.cat([-back @ mean, posterior_variance.log()]))
    # The error of a mean over 1,797 x 64 samples of z.
    assert elbo(vae, x) == pytest.approx(best_elbo(eigenvalues.flip(0), variance), abs=0.01)


@pytest.mark.parametrize(
    ("likelihood", "left"), [(GaussianPixels(), 0.03), (LearnedGaussian(False, 1e-3), 0.4)], ids=["mse", "gaussian"]
)
def test_training_comes_near_the_best_elbo(digits, likelihood, left):
    """Up to the nats that 300 steps leave, and never above it by more than the error of the samples."""
    x, eigenvalues, _ = digits
    vae, objective = linear_vae(likelihood), ELBO(1.0, 0, 0.0)
    optimizer, steps = torch.optim.Adam(vae.parameters(), lr=0.05), 300
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = Batch(x[torch.randint(len(x), (300,))])
        optimizer.zero_grad()
        objective(vae, batch, Context(step, len(x), "train"))["loss"].backward()
        optimizer.step()
        schedule.step()
    variance = 0.5
    if isinstance(likelihood, LearnedGaussian):
        variance = eigenvalues[:-D].mean().item()  # the best is the mean of those left out (Tipping and Bishop)
        with torch.no_grad():
            _, log_sigma = likelihood.mean_and_log_sigma(torch.zeros(1, 1, 1))
        assert log_sigma.exp().square().item() == pytest.approx(variance, rel=0.01)
    best = best_elbo(eigenvalues.flip(0), variance)
    assert best - left < elbo(vae, x) < best + 0.01
