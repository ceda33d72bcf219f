"""The linear VAE reaches the elbo that is known in closed form."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from vae_lab.models.likelihoods import Gaussian as GaussianPixels
from vae_lab.models.networks.linear import LinearDecoder, LinearEncoder
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE

D = 2


def best_elbo(eigenvalues: Tensor, variance: float) -> float:
    """Of the formula in the docstring of the decoder; eigenvalues descend."""
    c = torch.cat([eigenvalues[:D].clamp(min=variance), torch.full_like(eigenvalues[D:], variance)])
    return -0.5 * (math.log(2 * math.pi) + c.log() + eigenvalues / c).sum().item()


def test_the_exact_posterior_of_the_principal_components_has_the_best_elbo():
    """That training comes near it is a target of `vae-lab-reproduce`."""
    x = torch.from_numpy(load_digits().images / 16).float()[:, None]
    centred = (x.flatten(1) - x.flatten(1).mean(0)).double()
    eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    parts = LinearEncoder((1, 8, 8), 2 * D), LinearDecoder(D, (1, 8, 8)), Gaussian(), StandardNormal((D,))
    vae, variance = VAE(*parts, GaussianPixels(), (D,), (1, 8, 8)), 0.5
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
        q = vae.encode(x)
        elbo = (vae.likelihood.log_prob(x, vae.decode(q.rsample(64))) - q.kl(vae.prior).sum(1)).mean().item()
    # The error of a mean over 1,797 x 64 samples of z.
    assert elbo == pytest.approx(best_elbo(eigenvalues.flip(0), variance), abs=0.01)
