"""Priors p(z). The names that a prior must have are in `vae_lab.models`.

Shapes: S samples of z, B batch, K components, D latents; of a grid of latents, D are all of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae_lab.models.networks.layers import mlp


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


class Mixture(nn.Module):
    """A learned mixture of diagonal Gaussians: p(z) = sum_k w_k N(z; m_k, diag(s_k^2)).

    It begins with equal weights, unit variances and means drawn from N(0, I).

    Source: Tomczak and Welling 2018, "VAE with a VampPrior", the prior called MoG.

    Args:
        latent_shape: of one z.
        components: K, >= 1; one that is N(0, I) is the standard normal.

    Raises:
        ValueError: if K is out of its range.
    """

    def __init__(self, latent_shape: Sequence[int], components: int):
        super().__init__()
        check_components(components)
        self.latent_shape = tuple(latent_shape)
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, math.prod(self.latent_shape)))
        self.log_vars = nn.Parameter(torch.zeros_like(self.means))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, (S, B, *latent_shape) -> (S, B)."""
        distances = z.float().flatten(2).unsqueeze(2) - self.means  # (S, B, K, D)
        squares = distances.square() * torch.exp(-self.log_vars)
        of_each = -0.5 * (squares + self.log_vars + math.log(2 * math.pi)).sum(3)
        return (of_each + self.logits.log_softmax(0)).logsumexp(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents, (n, *latent_shape)."""
        chosen = self.logits.detach().softmax(0).cpu().multinomial(n, replacement=True, generator=generator)
        eps = torch.randn(n, self.means.shape[1], generator=generator).to(self.means)
        z = self.means[chosen] + torch.exp(0.5 * self.log_vars[chosen]) * eps
        return z.unflatten(1, self.latent_shape)


class Vamp(nn.Module):
    """The aggregate posterior of K learned images: p(z) = 1/K sum_k q(z given u_k).

    The u_k begin as uniform noise, and what the encoder sees of them is clamped to [0, 1]. With batch normalisation,
    its running statistics are theirs, too.

    Source: Tomczak and Welling 2018, "VAE with a VampPrior".

    Args:
        latent_shape: of one z.
        components: K, >= 1; with all training images for the u_k it is their aggregate posterior.

    Raises:
        ValueError: if K is out of its range.
    """

    def __init__(self, latent_shape: Sequence[int], components: int):
        super().__init__()
        check_components(components)
        self.components = components

    def bind(self, vae: Any) -> None:
        """Take the encoder and the posterior of a model, which stay the model's own.

        Raises:
            ValueError: if they are not of the right kind.
        """
        if not getattr(vae.posterior, "diagonal", False):
            kind = type(vae.posterior).__name__
            raise ValueError(f"prior=vamp needs a posterior that is a diagonal Gaussian, such as gaussian, got {kind}")
        if getattr(vae.encoder, "takes_labels", False):
            raise ValueError("prior=vamp needs an encoder without labels, because its images have none")
        self.encode = vae.encode
        self.pseudo_inputs = nn.Parameter(torch.rand(self.components, *vae.image_shape))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, (S, B, *latent_shape) -> (S, B)."""
        q = self.encode(self.pseudo_inputs.clamp(0, 1))
        each = z.flatten(0, 1).unsqueeze(1).expand(-1, self.components, *z.shape[2:])  # (S B, K, *latent_shape)
        return (q.log_prob(each).logsumexp(1) - math.log(self.components)).unflatten(0, z.shape[:2])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents, (n, *latent_shape)."""
        chosen = torch.randint(self.components, (n,), generator=generator)
        q = self.encode(self.pseudo_inputs[chosen].clamp(0, 1))
        eps = torch.randn(q.mean.shape, generator=generator).to(q.mean)
        return q.mean + torch.exp(0.5 * q.log_var) * eps


class Flow(nn.Module):
    """A learned invertible map f to a standard normal: log p(z) = log N(f(z); 0, I) + log |det df/dz|.

    f is a chain of affine couplings, each of which keeps one half a of the latents and maps the other,
    b -> b exp(s(a)) + t(a), with s in (-1, 1); between them the order of the latents is reversed. It begins as N(0, I).

    Source: Dinh et al. 2017, "Density estimation using Real NVP", eqs. 4 and 5 (the coupling).

    Args:
        latent_shape: of one z; at least two latents.
        couplings: number of them, >= 1.
        hidden_dim: width of the one hidden layer that makes s and t, >= 1.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, latent_shape: Sequence[int], couplings: int, hidden_dim: int):
        super().__init__()
        for key, value in (("couplings", couplings), ("hidden_dim", hidden_dim)):
            if value < 1:
                raise ValueError(f"prior.{key} must be >= 1, got {value}")
        self.latent_shape = tuple(latent_shape)
        size = math.prod(self.latent_shape)
        if size < 2:
            raise ValueError(
                f"latent_dim must be >= 2 with prior=flow, whose maps take one half from the other, got {size}"
            )
        kept = size // 2
        self.sizes = [kept, size - kept]
        self.couplings = nn.ModuleList()
        for _ in range(couplings):
            last = nn.Linear(hidden_dim, 2 * (size - kept))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.couplings.append(nn.Sequential(*mlp([kept, hidden_dim], "tanh"), last))

    def to_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) and log |det df/dz|: (..., D) -> (..., D) and (...)."""
        log_det = z.new_zeros(z.shape[:-1])
        for coupling in self.couplings:
            a, b = z.split(self.sizes, -1)
            log_scale, shift = coupling(a).chunk(2, -1)
            log_scale = log_scale.tanh()
            z = torch.cat([a, b * torch.exp(log_scale) + shift], -1).flip(-1)
            log_det = log_det + log_scale.sum(-1)
        return z, log_det

    def from_normal(self, u: Tensor) -> Tensor:
        """The inverse of f, (..., D) -> (..., D)."""
        for coupling in reversed(self.couplings):
            a, b = u.flip(-1).split(self.sizes, -1)
            log_scale, shift = coupling(a).chunk(2, -1)
            u = torch.cat([a, (b - shift) * torch.exp(-log_scale.tanh())], -1)
        return u

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, (S, B, *latent_shape) -> (S, B)."""
        with torch.autocast(z.device.type, enabled=False):  # a density is float32 under every precision
            u, log_det = self.to_normal(z.float().flatten(2))
        return log_det - 0.5 * (u.square() + math.log(2 * math.pi)).sum(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents, (n, *latent_shape)."""
        u = torch.randn(n, sum(self.sizes), generator=generator).to(next(self.parameters()))
        with torch.autocast(u.device.type, enabled=False):
            return self.from_normal(u).unflatten(1, self.latent_shape)


def check_components(components: int) -> None:
    """Refuse a mixture of nothing."""
    if components < 1:
        raise ValueError(f"prior.components must be >= 1, got {components}")
