"""Approximate posteriors q(z given x): from encoder outputs to a distribution over latents.

A posterior is a small object with `params_per_latent` and `is_stochastic`; calling it with the encoder's output returns
a distribution with `mean`, `rsample()` and, where the posterior is stochastic, `kl()` and `clamped()`.

Shapes: B batch, D latent_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class DiagonalGaussian:
    """N(mean, diag(exp(log_var))).

    Args:
        mean: (B, D), float32.
        log_var: (B, D), float32, already clamped.
        max_log_var: the bound on |log_var| that was applied.
    """

    mean: Tensor
    log_var: Tensor
    max_log_var: float = float("inf")

    def rsample(self) -> Tensor:
        """Draw z = mean + sigma * eps with eps ~ N(0, I), differentiable in mean and log_var, (B, D).

        Source: Kingma and Welling 2014, section 2.4.
        """
        return self.mean + torch.exp(0.5 * self.log_var) * torch.randn_like(self.mean)

    def kl(self) -> Tensor:
        """KL(q, N(0, I)) of each latent in nats, >= 0, (B, D).

        Source: Kingma and Welling 2014, appendix B: 1/2 (mean^2 + sigma^2 - log sigma^2 - 1).
        """
        # expm1, because exp(log_var) - 1 rounds below log_var near 0 and the KL would become negative.
        return 0.5 * (self.mean.square() + torch.expm1(self.log_var) - self.log_var)

    def clamped(self) -> Tensor:
        """How many latents lie on the bound, where log_var gets no gradient, (B,), float32."""
        return (self.log_var.abs() >= self.max_log_var).sum(1, dtype=torch.float32)


@dataclass
class PointMass:
    """All mass on one latent: the code of a plain autoencoder.

    Args:
        mean: (B, D), float32.
    """

    mean: Tensor

    def rsample(self) -> Tensor:
        """Return the code itself, (B, D)."""
        return self.mean

    def kl(self) -> Tensor:
        """Zeros, (B, D): a point mass has no finite KL, so none enters the loss."""
        return torch.zeros_like(self.mean)


class Gaussian:
    """q(z given x) = N(mean(x), diag(sigma(x)^2)): the variational autoencoder.

    Args:
        max_log_var: bound on |log_var|, in (0, 80]. exp overflows float32 at 88.7; the bound is applied before both
            the sample and the KL, so that the two always speak of the same distribution.
    """

    params_per_latent = 2
    is_stochastic = True

    def __init__(self, max_log_var: float = 20.0):
        if not 0 < max_log_var <= 80:
            raise ValueError(f"posterior.max_log_var must be in (0, 80], got {max_log_var}")
        self.max_log_var = max_log_var

    def __call__(self, params: Tensor) -> DiagonalGaussian:
        """Turn encoder outputs (B, 2D) into a distribution over (B, D), in float32 under every precision."""
        mean, log_var = params.float().chunk(2, dim=1)
        return DiagonalGaussian(mean, log_var.clamp(-self.max_log_var, self.max_log_var), self.max_log_var)


class Deterministic:
    """q(z given x) is a point: the plain autoencoder."""

    params_per_latent = 1
    is_stochastic = False

    def __call__(self, params: Tensor) -> PointMass:
        """Turn encoder outputs (B, D) into a code (B, D), in float32 under every precision."""
        return PointMass(params.float())
