"""The posterior and the prior on the unit sphere. Shapes: S samples of z, B batch, D latents, z of length 1.

The names that a posterior and its q must have are in `vae_lab.models`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_CONCENTRATION = 1e-3  # next to uniform: a KL of 5e-7 / D nats
NUM_PROPOSALS = 48  # of a sample; about two of three are accepted, so that none is accepted once in 1e20 times
NUM_NODES = 64  # of a quadrature
LARGE_ORDER = 30  # from which on the expansion of a Bessel function has an error below 1e-8


def log_bessel(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """log I_v(x) of the modified Bessel function, and I_{v+1}(x) / I_v(x), differentiable in x.

    The uniform expansion for large orders, then the recurrence I_{v-1} = I_{v+1} + (2 v / x) I_v downwards, in which
    errors shrink.

    Source: NIST Digital Library of Mathematical Functions, 10.41.3 and 10.29.1.

    Args:
        order: v >= 0.
        x: > 0, float64.
    """
    num_steps = max(0, math.ceil(LARGE_ORDER - order))
    top = order + num_steps

    def expansion(v: float) -> Tensor:
        root = (1 + (x / v).square()).sqrt()
        p = 1 / root
        u1 = (3 * p - 5 * p**3) / 24
        u2 = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
        u3 = (30375 * p**3 - 369603 * p**5 + 765765 * p**7 - 425425 * p**9) / 414720
        exponent = v * (root + torch.log(x / v) - torch.log1p(root))
        series = torch.log1p(u1 / v + u2 / v**2 + u3 / v**3)
        return exponent - 0.5 * (math.log(2 * math.pi * v) + root.log()) + series

    log_i = expansion(top)
    ratio = torch.exp(expansion(top + 1) - log_i)
    for step in range(num_steps):
        below = ratio + 2 * (top - step) / x  # I_{v-1} / I_v
        log_i, ratio = log_i + below.log(), 1 / below
    return log_i, ratio


def log_area(dim: int) -> float:
    """Log of the area of the unit sphere in `dim` dimensions."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


@cache
def gauss_legendre(num: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes in (-1, 1) and weights of the quadrature, (num,) each, from the eigenvectors of a symmetric matrix.

    Source: Golub and Welsch 1969, "Calculation of Gauss quadrature rules".
    """
    k = torch.arange(1, num, dtype=torch.double)
    beside = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes.to(device), 2 * vectors[0].square().to(device)


class UniformSphere:
    """p(z): every point of the unit sphere is equally likely.

    Args:
        dim: D, >= 2.
    """

    def __init__(self, dim: int):
        self.dim = dim

    def log_prob(self, z: Tensor) -> Tensor:
        """Minus the log of the sphere's area, in nats: (S, B, D) -> (S, B)."""
        return torch.full(z.shape[:2], -log_area(self.dim), device=z.device)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points on the CPU, (n, D)."""
        return F.normalize(torch.randn(n, self.dim, generator=generator), dim=-1)


@dataclass
class VonMisesFisherLaw:
    """q(z) = C exp(kappa mu.z) on the unit sphere.

    Args:
        mean: mu, the mean direction, (B, D), of length 1, float32: a code on the sphere, while E[z] lies inside it.
        concentration: kappa, (B, 1), > 0, float64.
        terms: further terms of the loss, by name.
    """

    mean: Tensor
    concentration: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)

    def rsample(self, num_samples: int) -> Tensor:
        """Draw z = w mu + sqrt(1 - w^2) v, v uniform across mu and w by rejection, differentiable, (S, B, D).

        The gradient of w is that of the inverse of its distribution function, so that it is exact; the paper's
        derivative of an accepted proposal leaves a term out.

        Sources: Davidson et al. 2018, "Hyperspherical variational auto-encoders" (after Ulrich 1984 and Wood 1994);
        Figurnov et al. 2018, "Implicit reparameterization gradients".
        """
        w = self._cosines(num_samples).float()
        noise = torch.randn(num_samples, *self.mean.shape, device=self.mean.device)
        across = F.normalize(noise - (noise * self.mean).sum(-1, keepdim=True) * self.mean, dim=-1)
        return F.normalize(w * self.mean + (1 - w.square()).clamp(min=1e-12).sqrt() * across, dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z given x) in nats, (S, B, D) -> (S, B)."""
        return (self._log_constant() + self.concentration * (z * self.mean).sum(-1, keepdim=True)).squeeze(-1).float()

    def kl(self, prior: Any) -> Tensor | None:
        """KL(q, uniform) in nats, (B, 1); None for another prior.

        kappa I_{D/2}(kappa) / I_{D/2 - 1}(kappa) + log C + log(area of the sphere)

        Source: Davidson et al. 2018.
        """
        if not isinstance(prior, UniformSphere):
            return None
        _, ratio = log_bessel(self.mean.shape[1] / 2 - 1, self.concentration)
        found = self.concentration * ratio + self._log_constant() + log_area(self.mean.shape[1])
        return found.clamp(min=0).float()  # below 0 only by rounding

    def diagnostics(self) -> dict[str, Tensor]:
        """The mean concentration."""
        return {"concentration": self.concentration.mean().float()}

    def _log_constant(self) -> Tensor:
        """log C, (B, 1)."""
        order = self.mean.shape[1] / 2 - 1
        log_i, _ = log_bessel(order, self.concentration)
        return order * self.concentration.log() - (order + 1) * math.log(2 * math.pi) - log_i

    def _cosines(self, num_samples: int) -> Tensor:
        """w = mu.z, (S, B, 1), float64, whose gradient goes to the concentration."""
        with torch.no_grad():
            kappa, num = self.concentration.detach(), self.mean.shape[1] - 1
            b = num / (2 * kappa + (4 * kappa.square() + num**2).sqrt())
            x = (1 - b) / (1 + b)
            half = torch.full((num_samples, len(kappa), NUM_PROPOSALS), num / 2, device=kappa.device).double()
            e = torch.distributions.Beta(half, half, validate_args=False).sample()
            proposals = (1 - (1 + b) * e) / (1 - (1 - b) * e)
            score = kappa * (proposals - x) + num * (torch.log1p(-x * proposals) - torch.log1p(-x.square()))
            is_refused = score < torch.rand_like(score).log()
            first = is_refused.cumprod(-1).sum(-1, keepdim=True).clamp(max=NUM_PROPOSALS - 1)
            w = proposals.gather(-1, first)
            slope = cosine_slope(w, kappa, num + 1)
        return w + slope * (self.concentration - kappa)


def cosine_slope(w: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """dw / dkappa = -1/f(w) int_{-1}^w (t - E t) f(t) dt at a fixed value of the distribution function.

    f(t) ~ exp(kappa t) (1 - t^2)^((D - 3) / 2) is the density of w. With t = cos(angle) it is smooth at its ends.

    Args:
        w: (S, B, 1), in (-1, 1), float64.
        kappa: (B, 1).
        dim: D, >= 2.
    """
    _, mean = log_bessel(dim / 2 - 1, kappa)
    deviation = (1 - mean.square() - (dim - 1) * mean / kappa).clamp(min=1e-12).sqrt()
    start = w.clamp(-1 + 1e-12, 1 - 1e-12).acos()
    end = (w - 30 * deviation).clamp(min=-1).acos()  # nothing is left behind it
    nodes, weights = gauss_legendre(NUM_NODES, w.device)
    angle = start + (end - start) * (nodes + 1) / 2  # (S, B, nodes)
    ratio = kappa * (angle.cos() - w) + (dim - 2) * angle.sin().clamp(min=1e-300).log() - (dim - 3) * start.sin().log()
    return -((angle.cos() - mean) * ratio.exp() * weights).sum(-1, keepdim=True) * (end - start) / 2


class VonMisesFisher:
    """q(z given x) is a von Mises-Fisher law on the unit sphere; the encoder puts out its direction and concentration.

    kappa = D softplus(its last number), bounded to [0.001, max_concentration].

    Source: Davidson et al. 2018, "Hyperspherical variational auto-encoders". There it is softplus + 1, which begins
    next to uniform where D is large, so that z says nothing and the KL drives kappa down before the decoder has learned
    anything.

    Args:
        max_concentration: in (1, 1e6].

    Raises:
        ValueError: if the bound is out of its range.
    """

    params_per_latent = 1
    params_per_image = 1
    has_density = True

    def __init__(self, max_concentration: float):
        if not 1 < max_concentration <= 1e6:
            raise ValueError(f"posterior.max_concentration must be in (1, 1e6], got {max_concentration}")
        self.max_concentration = max_concentration

    def __call__(self, params: Tensor) -> VonMisesFisherLaw:
        """Turn encoder outputs (B, D + 1) into a law on the sphere, in float32 or better under every precision."""
        direction, raw = params.float().tensor_split([-1], 1)
        concentration = (direction.shape[1] * F.softplus(raw.double())).clamp(MIN_CONCENTRATION, self.max_concentration)
        return VonMisesFisherLaw(self.project(direction), concentration)

    def project(self, z: Tensor) -> Tensor:
        """The nearest points of the sphere, (B, D); of 0, which has none, some point."""
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        pole = F.one_hot(torch.zeros_like(length[:, 0], dtype=torch.long), z.shape[1]).to(z.dtype)
        return torch.where(length > 0, z / length.clamp(min=1e-30), pole)

    def prior(self, latent_shape: Sequence[int]) -> UniformSphere:
        """The uniform law.

        Raises:
            ValueError: if there is no sphere.
        """
        if latent_shape[0] < 2:
            raise ValueError(f"latent_dim must be >= 2 for a sphere (posterior=vmf), got {latent_shape[0]}")
        return UniformSphere(latent_shape[0])
