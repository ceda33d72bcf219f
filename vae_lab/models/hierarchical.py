"""Two layers of latents, of which the upper one decides on the lower one: posterior and prior.

z is one vector, the top layer first: z = (top, bottom), T + (D - T) = D latents. Networks are any, and the decoder sees
both layers. Shapes: S samples of z, B batch, D latents, T of the top layer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vae_lab.models.networks.layers import mlp

LOG_2PI = math.log(2 * math.pi)


class Below(nn.Sequential):
    """From the top layer to the Gaussian below it: (..., T) -> (..., 2 (D - T)), shift and log-variance.

    It begins at zero, so that the two layers begin as one.

    Args:
        latent_dim: D.
        top_dim: T; None is half of D.
        hidden_dim: width of the hidden layer, >= 1.
        key: of the part, for messages.

    Raises:
        ValueError: if a layer would be empty.
    """

    def __init__(self, latent_dim: int, top_dim: int | None, hidden_dim: int, key: str):
        self.top_dim = latent_dim // 2 if top_dim is None else top_dim
        if not 1 <= self.top_dim < latent_dim:
            raise ValueError(
                f"{key}.top_dim must be in [1, latent_dim), got {self.top_dim} of latent_dim={latent_dim} latents"
            )
        if hidden_dim < 1:
            raise ValueError(f"{key}.hidden_dim must be >= 1, got {hidden_dim}")
        last = nn.Linear(hidden_dim, 2 * (latent_dim - self.top_dim))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(*mlp([self.top_dim, hidden_dim], "silu"), last)

    def forward(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-variance of the bottom layer, each (..., D - T), float32 under every precision."""
        with torch.autocast(top.device.type, enabled=False):
            shift, log_var = super().forward(top.float()).chunk(2, -1)
        return shift, log_var


@dataclass
class TopDownGaussian:
    """q(z given x) = N(top; m_t, s_t^2) N(bottom; m_b + shift(top), s_b^2 exp(change(top))).

    Args:
        base_mean: m_t and m_b, (B, D), float32.
        base_log_var: log s_t^2 and log s_b^2, (B, D), float32.
        below: from top to shift and change.
        max_log_var: bound on |log_var| of both layers.
        terms: further terms of the loss, by name.
    """

    base_mean: Tensor
    base_log_var: Tensor
    below: Below
    max_log_var: float
    terms: dict[str, Tensor] = field(default_factory=dict)

    def moments(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of both layers, given the top one: (..., B, T) -> (..., B, D) each."""
        shift, change = (nn.functional.pad(each, (self.below.top_dim, 0)) for each in self.below(top))
        log_var = (self.base_log_var + change).clamp(-self.max_log_var, self.max_log_var)
        return self.base_mean + shift, log_var

    @property
    def mean(self) -> Tensor:
        """The mean of the top layer and, given that, of the bottom layer, (B, D)."""
        return self.moments(self.base_mean[:, : self.below.top_dim])[0]

    def rsample(self, num_samples: int) -> Tensor:
        """Draw the top layer, then the bottom one, differentiable, (S, B, D)."""
        eps = torch.randn(num_samples, *self.base_mean.shape, device=self.base_mean.device)
        scale = torch.exp(0.5 * self.base_log_var.clamp(-self.max_log_var, self.max_log_var))
        mean, log_var = self.moments((self.base_mean + scale * eps)[..., : self.below.top_dim])
        return mean + torch.exp(0.5 * log_var) * eps

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z given x) in nats, the sum over both layers: (S, B, D) -> (S, B)."""
        mean, log_var = self.moments(z[..., : self.below.top_dim])
        return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + LOG_2PI).sum(-1)

    def kl(self, prior: nn.Module) -> Tensor | None:
        """None: that of the bottom layer is an expectation over the top one, estimated at the samples."""
        return None

    def diagnostics(self) -> dict[str, Tensor]:
        """KL(q(top given x), N(0, I)) in nats per image, which tells whether the top layer is used, and `clamped`."""
        mean, log_var = self.base_mean[:, : self.below.top_dim], self.base_log_var[:, : self.below.top_dim]
        log_var = log_var.clamp(-self.max_log_var, self.max_log_var)
        kl_top = 0.5 * (mean.square() + torch.expm1(log_var) - log_var).sum(1).mean()
        _, both = self.moments(mean)
        clamped = (both.abs() >= self.max_log_var).sum(1, dtype=torch.float32).mean()
        return {"kl_top": kl_top, "clamped": clamped}


class HierarchicalGaussian(nn.Module):
    """Two stochastic layers, inferred from the top down: q(z given x) = q(top given x) q(bottom given x, top).

    The encoder puts out what it can say of both layers; the sample of the top layer then shifts and scales the bottom
    one. With `prior=hierarchical` the KL is the sum over the layers, KL(q(top), p(top)) + E KL(q(bottom), p(bottom)).

    Args:
        latent_dim: D, of both layers.
        top_dim: T, in [1, D); None is half of D.
        hidden_dim: width of the network from top to bottom, >= 1.
        max_log_var: bound on |log_var|, in (0, 80], as of `posterior=gaussian`.

    Raises:
        ValueError: if a number is out of its range.

    Source: Soenderby et al. 2016, "Ladder variational autoencoders": the order of inference is theirs; they weigh
    what comes from below and above by its precision, here the one shifts and scales the other.
    """

    params_per_latent = 2
    has_density = True

    def __init__(self, latent_dim: int, top_dim: int | None, hidden_dim: int, max_log_var: float = 20.0):
        super().__init__()
        if not 0 < max_log_var <= 80:
            raise ValueError(f"posterior.max_log_var must be in (0, 80], got {max_log_var}")
        self.below = Below(latent_dim, top_dim, hidden_dim, "posterior")
        self.max_log_var = max_log_var

    def forward(self, params: Tensor) -> TopDownGaussian:
        """Turn encoder outputs (B, 2D) into a distribution over (B, D), in float32 under every precision."""
        mean, log_var = params.float().chunk(2, dim=1)
        return TopDownGaussian(mean, log_var, self.below, self.max_log_var)


class HierarchicalPrior(nn.Module):
    """p(z) = N(top; 0, I) N(bottom; shift(top), exp(log_var(top))): the generative half of the two layers.

    Args:
        latent_shape: of one z, (D,).
        top_dim: T, in [1, D); None is half of D.
        hidden_dim: width of the network from top to bottom, >= 1.

    Raises:
        ValueError: if a number is out of its range, or latents keep a grid.

    Sources: Burda et al. 2016, "Importance weighted autoencoders", with L = 2; Soenderby et al. 2016.
    """

    def __init__(self, latent_shape: Sequence[int], top_dim: int | None, hidden_dim: int):
        super().__init__()
        if len(latent_shape) != 1:
            raise ValueError("prior=hierarchical needs one vector of latents, not a grid; set model.spatial=false")
        self.below = Below(latent_shape[0], top_dim, hidden_dim, "prior")
        self.latent_dim = latent_shape[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, the sum over both layers: (S, B, D) -> (S, B)."""
        mean, log_var = (
            nn.functional.pad(each, (self.below.top_dim, 0)) for each in self.below(z[..., : self.top_dim])
        )
        return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + LOG_2PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents, (n, D), on the device of the parameters."""
        top = torch.randn(n, self.top_dim, generator=generator)
        return self.sample_below(top, generator)

    def sample_below(self, top: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw the bottom layer given the top one: (n, T) -> z, (n, D)."""
        eps = torch.randn(len(top), self.latent_dim - self.top_dim, generator=generator)
        top = top.to(next(self.parameters()))
        shift, log_var = self.below(top)
        return torch.cat([top, shift + torch.exp(0.5 * log_var) * eps.to(top)], 1)

    @property
    def top_dim(self) -> int:
        """T."""
        return self.below.top_dim
