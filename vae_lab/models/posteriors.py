"""Approximate posteriors q(z given x): from encoder outputs to a distribution over latents.

The names that a posterior and its q must have are in `vae_lab.models`. Shapes: S samples of z, B batch, D latents;
where an encoder keeps a grid, (D, h, w) stands for D.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lab.models.priors import StandardNormal


@dataclass
class DiagonalGaussian:
    """N(mean, diag(exp(log_var))).

    Args:
        mean: (B, D), float32.
        log_var: (B, D), float32, already clamped.
        max_log_var: the bound on |log_var| that was applied.
        terms: further terms of the loss, by name.
    """

    mean: Tensor
    log_var: Tensor
    max_log_var: float = float("inf")
    terms: dict[str, Tensor] = field(default_factory=dict)

    def rsample(self, num_samples: int) -> Tensor:
        """Draw z = mean + sigma * eps with eps ~ N(0, I), differentiable in mean and log_var, (S, B, D).

        Source: Kingma and Welling 2014, section 2.4.
        """
        eps = torch.randn(num_samples, *self.mean.shape, device=self.mean.device, dtype=self.mean.dtype)
        # Without an axis of S = 1, over which the backward pass would sum; squeeze leaves S > 1 as it is.
        return (self.mean + torch.exp(0.5 * self.log_var) * eps.squeeze(0)).view_as(eps)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z given x) in nats, summed over latents: (S, B, D) -> (S, B)."""
        squares = (z - self.mean).square() * torch.exp(-self.log_var)
        return -0.5 * (squares + self.log_var + math.log(2 * math.pi)).flatten(2).sum(2)

    def kl(self, prior: nn.Module) -> Tensor | None:
        """KL(q, N(0, I)) of each latent in nats, >= 0, (B, D); None for another prior.

        Source: Kingma and Welling 2014, appendix B: 1/2 (mean^2 + sigma^2 - log sigma^2 - 1).
        """
        if not isinstance(prior, StandardNormal):
            return None
        # expm1, because exp(log_var) - 1 rounds below log_var near 0 and the KL would become negative.
        return 0.5 * (self.mean.square() + torch.expm1(self.log_var) - self.log_var)

    def diagnostics(self) -> dict[str, Tensor]:
        """How many latents per image lie on the bound, where log_var gets no gradient."""
        return {"clamped": (self.log_var.abs() >= self.max_log_var).sum() / len(self.log_var)}


@dataclass
class PointMass:
    """All mass on one latent: the code of a plain autoencoder. It has no density, and no finite KL.

    Args:
        mean: (B, D), float32.
        terms: further terms of the loss, by name.
    """

    mean: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)

    def rsample(self, num_samples: int) -> Tensor:
        """Return the code itself, (S, B, D)."""
        return self.mean.expand(num_samples, *self.mean.shape)

    def kl(self, prior: nn.Module) -> None:
        """None: it is infinite."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}


class Gaussian:
    """q(z given x) = N(mean(x), diag(sigma(x)^2)): the variational autoencoder.

    Args:
        max_log_var: bound on |log_var|, in (0, 80]. exp overflows float32 at 88.7; the bound is applied before both
            the sample and the KL, so that the two always speak of the same distribution.

    Raises:
        ValueError: if the bound is out of its range.
    """

    params_per_latent = 2
    has_density = True
    diagonal = True
    takes_grid = True

    def __init__(self, max_log_var: float = 20.0):
        if not 0 < max_log_var <= 80:
            raise ValueError(f"posterior.max_log_var must be in (0, 80], got {max_log_var}")
        self.max_log_var = max_log_var

    def __call__(self, params: Tensor) -> DiagonalGaussian:
        """Turn encoder outputs (B, 2D) into a distribution over (B, D), in float32 under every precision."""
        mean, log_var = params.float().chunk(2, dim=1)
        # hardtanh is clamp with one kernel in the backward pass in place of five.
        return DiagonalGaussian(mean, F.hardtanh(log_var, -self.max_log_var, self.max_log_var), self.max_log_var)


class Deterministic:
    """q(z given x) is a point: the plain autoencoder."""

    params_per_latent = 1
    has_density = False
    takes_grid = True

    def __call__(self, params: Tensor) -> PointMass:
        """Turn encoder outputs (B, D) into a code (B, D), in float32 under every precision."""
        return PointMass(params.float())


class NoPosterior:
    """No encoder, and so no q(z given x): a pure generator, whose latents come from the prior."""

    params_per_latent = 0
    has_density = True  # so that there is a prior
    takes_grid = True
