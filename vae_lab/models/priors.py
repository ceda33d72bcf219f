"""Priors p(z). The names that a prior must have are in `vae_lab.models`.

Shapes: S samples of z, B batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent_shape: of one z.
    """

    def __init__(self, latent_shape: Sequence[int]):
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, summed over latents: (S, B, *latent_shape) -> (S, B)."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(2).sum(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents on the CPU, (n, *latent_shape)."""
        return torch.randn(n, *self.latent_shape, generator=generator)
