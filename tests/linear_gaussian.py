"""A model whose log p(x) and posterior are known exactly: linear and Gaussian."""

import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from vae_lab.data.batches import Batch
from vae_lab.models.likelihoods import Gaussian as GaussianPixels
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context

SHAPE = (1, 2, 2)
D = 2
EVALUATION = Context(0, 100, "val")


def evaluate(objective: nn.Module, vae: VAE, x: torch.Tensor, context: Context = EVALUATION) -> dict[str, torch.Tensor]:
    """The terms of a batch, with the same noise at each call."""
    torch.manual_seed(1)
    return objective(vae, Batch(x), context)


class Sampled(nn.Module):
    """N(0, I) without a closed form of the KL, so that the ELBO is estimated at the samples as the other bounds are."""

    def log_prob(self, z):
        return Normal(0.0, 1.0).log_prob(z).sum(2)


class LinearGaussian:
    """z ~ N(0, I), x given z ~ N(W z + b, I / 2), so x ~ N(b, W W^T + I / 2) (Tipping and Bishop 1999, eq. 4).

    The columns of W are orthogonal, so that the exact posterior N(M^-1 W^T (x - b), M^-1 / 2) with M = W^T W + I / 2
    is diagonal and a linear encoder can be it.
    """

    def __init__(self):
        basis = torch.linalg.qr(torch.randn(4, D, dtype=torch.float64)).Q
        self.W = basis * torch.tensor([1.5, 0.6], dtype=torch.float64)
        self.b = torch.rand(4, dtype=torch.float64)
        self.variance = 0.5 / ((self.W**2).sum(0) + 0.5)  # (D,)

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        covariance = self.W @ self.W.T + 0.5 * torch.eye(4, dtype=torch.float64)
        return MultivariateNormal(self.b, covariance).log_prob(x.double().flatten(1))

    def posterior(self, x: torch.Tensor) -> Normal:
        mean = 2 * self.variance * ((x.double().flatten(1) - self.b) @ self.W)
        return Normal(mean, self.variance.sqrt())

    def vae(self, shift: float = 0.0, log_var_shift: float = 0.0) -> VAE:
        """The model with the exact posterior as its encoder, or one that is off by the shifts."""
        decoder, encoder = nn.Linear(D, 4), nn.Linear(4, 2 * D)
        to_mean = 2 * self.variance[:, None] * self.W.T
        with torch.no_grad():
            decoder.weight.copy_(self.W)
            decoder.bias.copy_(self.b)
            encoder.weight.zero_()[:D].copy_(to_mean)
            encoder.bias[:D] = shift - to_mean @ self.b
            encoder.bias[D:] = self.variance.log() + log_var_shift
        networks = nn.Sequential(nn.Flatten(), encoder), nn.Sequential(decoder, nn.Unflatten(1, SHAPE))
        return VAE(*networks, Gaussian(), StandardNormal((D,)), GaussianPixels(), (D,), SHAPE)
