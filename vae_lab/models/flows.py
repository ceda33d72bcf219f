"""Posteriors that are flows: a diagonal Gaussian, pushed through K invertible maps whose parameters the encoder emits.

The names that a posterior and its q must have are in `vae_lab.models`. Shapes: S samples of z, B batch, D latents. A
map takes z (S, B, D) to f(z) and log |det df/dz|, (S, B); its `inverse` takes f(z) to z.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lab.models.posteriors import DiagonalGaussian, Gaussian

TINY = 1e-12  # below what float32 tells from 0 beside 1


@dataclass
class Flow:
    """The law of z_K = f_K(... f_1(z_0)) where z_0 is from a diagonal Gaussian.

    log q(z_K given x) = log q(z_0 given x) - sum_k log |det df_k / dz_{k-1}|

    Source: Rezende and Mohamed 2015, "Variational inference with normalizing flows".

    Args:
        base: the Gaussian.
        maps: f_1 to f_K.
        terms: further terms of the loss, by name.
    """

    base: DiagonalGaussian
    maps: Sequence[Any]
    terms: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drawn: tuple[Tensor, Tensor] | None = None  # the last samples, and their log q

    @cached_property
    def mean(self) -> Tensor:
        """The maps of the Gaussian's mean, (B, D): a code, not the mean of q, which has no closed form."""
        return self.push(self.base.mean[None])[0][0]

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z_0 -> z_K, (S, B, D), and the sum of the log-determinants, (S, B)."""
        total = torch.zeros((), device=z.device)
        for one in self.maps:
            z, log_det = one(z)
            total = total + log_det
        return z, total

    def rsample(self, num_samples: int) -> Tensor:
        """Draw z_K, differentiable in all parameters, (S, B, D)."""
        start = self.base.rsample(num_samples)
        z, log_det = self.push(start)
        self.drawn = z, self.base.log_prob(start) - log_det
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z given x) in nats, (S, B, D) -> (S, B), kept of the last samples; others are mapped back."""
        if self.drawn is not None and z is self.drawn[0]:
            return self.drawn[1]
        start = z
        for one in reversed(self.maps):
            start = one.inverse(start)
        return self.base.log_prob(start) - self.push(start)[1]

    def kl(self, prior: nn.Module) -> None:
        """None: there is no closed form."""

    def diagnostics(self) -> dict[str, Tensor]:
        """Those of the Gaussian."""
        return self.base.diagnostics()


def check_maps(num_maps: int) -> None:
    """Refuse a flow without maps."""
    if num_maps < 1:
        raise ValueError(f"posterior.num_maps must be >= 1, got {num_maps}")


class PlanarMap:
    """f(z) = z + u' tanh(w.z + b), with u' = u + (m(w.u) - w.u) w / |w|^2 so that w.u' > -1 and f is invertible.

    m(a) = -1 + softplus(a + log(e - 1)), where the paper has -1 + softplus(a): with it u = 0 is the identity.

    Source: Rezende and Mohamed 2015, planar flows and the appendix on their invertibility.

    Args:
        u: (B, D).
        w: (B, D).
        b: (B, 1).
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor):
        dot = (w * u).sum(-1, keepdim=True)
        self.dot = F.softplus(dot + math.log(math.e - 1)) - 1  # w.u'
        self.u = u + (self.dot - dot) * w / w.square().sum(-1, keepdim=True).clamp(min=TINY)
        self.w = w
        self.b = b

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) and the log-determinant."""
        bent = torch.tanh((self.w * z).sum(-1, keepdim=True) + self.b)
        slope = (self.dot * (1 - bent.square())).clamp(min=1e-6 - 1)  # -1 only by rounding
        return z + self.u * bent, torch.log1p(slope).squeeze(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """z of f(z): a = w.z solves a + w.u' tanh(a + b) = w.f(z), whose left side rises."""
        target = (self.w * z).sum(-1, keepdim=True)
        with torch.no_grad():
            low, high = target - self.dot.abs(), target + self.dot.abs()
            for _ in range(40):  # halvings of an interval
                middle = (low + high) / 2
                is_below = middle + self.dot * torch.tanh(middle + self.b) < target
                low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
            a = (low + high) / 2
            slope = 1 + self.dot * (1 - torch.tanh(a + self.b).square())
        a = a - (a + self.dot * torch.tanh(a + self.b) - target) / slope  # a step of Newton's, with the gradient
        return z - self.u * torch.tanh(a + self.b)


class RadialMap:
    """f(z) = z + beta h (z - c), h = 1 / (alpha + r), r = |z - c|, with alpha > 0 and beta > -alpha.

    alpha = softplus(a) and beta = -alpha + softplus(a + b): b = 0 is the identity. The paper's softplus(b) in its place
    is another parameter for the same beta.

    Source: Rezende and Mohamed 2015, radial flows and the appendix on their invertibility.

    Args:
        centre: c, (B, D).
        a: (B, 1).
        b: (B, 1).
    """

    def __init__(self, centre: Tensor, a: Tensor, b: Tensor):
        self.centre = centre
        self.alpha = F.softplus(a) + TINY
        self.beta = F.softplus(a + b) - F.softplus(a)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) and the log-determinant."""
        offset = z - self.centre
        r = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        stretch = self.beta / (self.alpha + r)  # beta h
        along = self.beta * self.alpha / (self.alpha + r).square()  # beta h + beta h' r
        across = (z.shape[-1] - 1) * torch.log1p(stretch.clamp(min=1e-6 - 1))
        return z + stretch * offset, (across + torch.log1p(along.clamp(min=1e-6 - 1))).squeeze(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """z of f(z), whose distance from the centre solves a quadratic equation."""
        offset = z - self.centre
        rest = torch.linalg.vector_norm(offset, dim=-1, keepdim=True) - self.alpha - self.beta
        root = (rest.square() + 4 * self.alpha * (rest + self.alpha + self.beta)).sqrt()
        # Of the two forms of the root, the one without a difference of two like numbers.
        r = torch.where(rest > 0, (rest + root) / 2, 2 * self.alpha * (rest + self.alpha + self.beta) / (root - rest))
        return self.centre + offset / (1 + self.beta / (self.alpha + r))


class Planar:
    """A Gaussian bent along K planes; the encoder puts out u, w and b of each beside the Gaussian's parameters.

    Source: see `PlanarMap`.

    Args:
        num_maps: K, >= 1.
        max_log_var: bound on the Gaussian's |log_var|, in (0, 80].

    Raises:
        ValueError: if one is out of its range.
    """

    has_density = True

    def __init__(self, num_maps: int, max_log_var: float):
        check_maps(num_maps)
        self.gaussian = Gaussian(max_log_var)
        self.params_per_latent, self.params_per_image = 2 + 2 * num_maps, num_maps

    def __call__(self, params: Tensor) -> Flow:
        """Turn encoder outputs (B, 2D + 2DK + K) into a distribution over (B, D), in float32 under every precision."""
        vectors, b = params.float().tensor_split([-self.params_per_image], 1)
        mean_and_log_var, *planes = vectors.split(2 * vectors.shape[1] // self.params_per_latent, 1)
        halves = (plane.chunk(2, 1) for plane in planes)
        maps = [PlanarMap(u, w, b[:, k, None]) for k, (u, w) in enumerate(halves)]
        return Flow(self.gaussian(mean_and_log_var), maps)


class Radial:
    """A Gaussian drawn to K centres or away from them; the encoder puts out c, a and b of each.

    Source: see `RadialMap`.

    Args:
        num_maps: K, >= 1.
        max_log_var: bound on the Gaussian's |log_var|, in (0, 80].

    Raises:
        ValueError: if one is out of its range.
    """

    has_density = True

    def __init__(self, num_maps: int, max_log_var: float):
        check_maps(num_maps)
        self.gaussian = Gaussian(max_log_var)
        self.params_per_latent, self.params_per_image = 2 + num_maps, 2 * num_maps

    def __call__(self, params: Tensor) -> Flow:
        """Turn encoder outputs (B, 2D + DK + 2K) into a distribution over (B, D), in float32 under every precision."""
        vectors, shapes = params.float().tensor_split([-self.params_per_image], 1)
        dim = vectors.shape[1] // self.params_per_latent
        centres = vectors[:, 2 * dim :].split(dim, 1)
        maps = [RadialMap(c, *ab.chunk(2, 1)) for c, ab in zip(centres, shapes.split(2, 1), strict=True)]
        return Flow(self.gaussian(vectors[:, : 2 * dim]), maps)


class MaskedLinear(nn.Linear):
    """A linear layer of which some weights are 0."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight * self.mask, self.bias)


class AutoregressiveNetwork(nn.Module):
    """m_i and s_i of each latent from the latents before it, and from the context: (S, B, D), (B, D) -> 2 (S, B, D).

    Source: Germain et al. 2015, "MADE: masked autoencoder for distribution estimation", eqs. 12 and 13.

    Args:
        latent_dim: D.
        hidden_dim: width of its two hidden layers, >= 1.
    """

    def __init__(self, latent_dim: int, hidden_dim: int):
        super().__init__()
        place, hidden = torch.arange(latent_dim), torch.arange(hidden_dim) % latent_dim
        # A hidden unit of degree d sees the latents before place d; latent i is made of units of degree <= i.
        self.first = MaskedLinear(hidden[:, None] > place)
        self.context = nn.Linear(latent_dim, hidden_dim, bias=False)
        self.second = MaskedLinear(hidden[:, None] >= hidden)
        self.last = MaskedLinear((place[:, None] >= hidden).repeat(2, 1))
        nn.init.zeros_(self.last.weight)  # so that the map begins as the identity
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """m and s."""
        with torch.autocast(z.device.type, enabled=False):
            hidden = F.elu(self.first(z) + self.context(context))
            m, s = self.last(F.elu(self.second(hidden))).chunk(2, -1)
        return m, 3 * torch.tanh(s / 3)  # bounded, because exp(s) would let a single step diverge


class AutoregressiveMap:
    """f(z)_i = m_i + exp(s_i) z_i, with m_i and s_i of the latents before i, or behind it where the order is turned.

    Source: Kingma et al. 2016, "Improving variational inference with inverse autoregressive flow", eqs. 10 and 11,
    with sigma = exp(s) in place of the gate of eqs. 13 and 14, so that it can begin as the identity.

    Args:
        network: (z, context) -> m, s.
        context: what the encoder puts out for it, (B, D).
        turned: whether the order of the latents is turned.
    """

    def __init__(self, network: nn.Module, context: Tensor, turned: bool):
        self.network = network
        self.context = context
        self.turned = turned

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f(z) and the log-determinant."""
        m, s = self._coefficients(z)
        return m + s.exp() * z, s.sum(-1)

    def inverse(self, z: Tensor) -> Tensor:
        """z of f(z), one latent after the other."""
        start = torch.zeros_like(z)
        for _ in range(z.shape[-1]):
            m, s = self._coefficients(start)
            start = (z - m) * torch.exp(-s)
        return start

    def _coefficients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.turned:
            return self.network(z, self.context)
        m, s = self.network(z.flip(-1), self.context)
        return m.flip(-1), s.flip(-1)


class InverseAutoregressive(nn.Module):
    """A Gaussian under K autoregressive maps, every second in the turned order; the encoder puts out a context too.

    Source: see `AutoregressiveMap`.

    Args:
        latent_dim: D.
        num_maps: K, >= 1.
        hidden_dim: width of the two hidden layers of each map's network, >= 1.
        max_log_var: bound on the Gaussian's |log_var|, in (0, 80].

    Raises:
        ValueError: if one is out of its range.
    """

    params_per_latent = 3
    has_density = True

    def __init__(self, latent_dim: int, num_maps: int, hidden_dim: int, max_log_var: float):
        super().__init__()
        check_maps(num_maps)
        if hidden_dim < 1:
            raise ValueError(f"posterior.hidden_dim must be >= 1, got {hidden_dim}")
        self.gaussian = Gaussian(max_log_var)
        self.networks = nn.ModuleList(AutoregressiveNetwork(latent_dim, hidden_dim) for _ in range(num_maps))

    def forward(self, params: Tensor) -> Flow:
        """Turn encoder outputs (B, 3D) into a distribution over (B, D), in float32 under every precision."""
        mean, log_var, context = params.float().chunk(3, 1)
        maps = [AutoregressiveMap(network, context, k % 2 == 1) for k, network in enumerate(self.networks)]
        return Flow(self.gaussian(torch.cat([mean, log_var], 1)), maps)
