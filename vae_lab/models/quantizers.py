"""Posteriors whose latents are codes: one of K at each place of the latent, or relaxed towards one.

The names that a posterior and its q must have are in `vae_lab.models`. Shapes: S samples of z, B batch, D latents, c
coordinates of one code; a latent (D, *grid) has n = D / c codes at each position of its grid, (n, *grid) places in all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F


def to_places(z: Tensor, code_dim: int) -> Tensor:
    """Latents (B, D, *grid) as one vector for each place, (B, n, *grid, c)."""
    return z.unflatten(1, (-1, code_dim)).movedim(2, -1)


def to_latents(vectors: Tensor) -> Tensor:
    """The inverse of `to_places`."""
    return vectors.movedim(-1, 2).flatten(1, 2)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of how often each code was used, (K,) -> 0-dim, from 1 (one code) to K (all alike)."""
    share = counts / counts.sum()
    return torch.exp(-torch.xlogy(share, share).sum())


class UniformCodes:
    """p(z): every place of the latent holds one of K codes, each with probability 1/K, independently.

    Args:
        num_codes: K.
        places: (n, *grid).
        lookup: indices of codes, int64 (N, n, *grid) -> latents (N, D, *grid).
    """

    def __init__(self, num_codes: int, places: Sequence[int], lookup: Callable[[Tensor], Tensor]):
        self.num_codes = num_codes
        self.places = tuple(places)
        self.lookup = lookup

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) of latents that are made of codes, in nats: (S, B, *latent_shape) -> (S, B)."""
        return torch.full(z.shape[:2], -math.prod(self.places) * math.log(self.num_codes), device=z.device)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents on the CPU, (n, *latent_shape)."""
        return self.lookup(torch.randint(self.num_codes, (n, *self.places), generator=generator))


@dataclass
class Codes:
    """All mass on one code at each place.

    Args:
        mean: the codes, (B, *latent_shape), float32, through which gradients pass to the encoder.
        indices: of the codes, int64 (B, n, *grid).
        num_codes: K.
        terms: further terms of the loss, by name.
    """

    mean: Tensor
    indices: Tensor
    num_codes: int
    terms: dict[str, Tensor] = field(default_factory=dict)

    def rsample(self, num_samples: int) -> Tensor:
        """Return the codes themselves, (S, B, *latent_shape)."""
        return self.mean.expand(num_samples, *self.mean.shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log of a probability: 0 at the codes, -inf elsewhere, (S, B, *latent_shape) -> (S, B)."""
        return torch.where((z == self.mean).flatten(2).all(2), 0.0, -math.inf)

    def kl(self, prior: Any) -> Tensor | None:
        """KL(q, uniform) = log K nats at each place, (B, n, *grid); None for another prior.

        Source: van den Oord et al. 2017, "Neural discrete representation learning", eq. 1.
        """
        if not isinstance(prior, UniformCodes):
            return None
        return torch.full(self.indices.shape, math.log(self.num_codes), device=self.mean.device)

    def diagnostics(self) -> dict[str, Tensor]:
        """The perplexity of the codes of this batch, in [1, K]."""
        places = self.indices.flatten()
        counts = self.mean.new_zeros(self.num_codes)  # bincount would wait for a GPU
        return {"perplexity": perplexity(counts.scatter_add_(0, places, torch.ones_like(places, dtype=counts.dtype)))}


class VectorQuantizer(nn.Module):
    """Each place of the encoder's output is replaced by the nearest code e of a book; gradients pass straight through.

    The book follows the running mean of the vectors that each code stands for,
    N_k <- decay N_k + (1 - decay) n_k,   e_k <- e_k + (1 - decay) (s_k - n_k e_k) / N_k,
    with n_k and s_k the number and the sum of those of a batch, which are summed over processes. A code that is used
    less than `revive_below` times the mean becomes a vector of the present batch; so do all of them at the start.

    Sources: van den Oord et al. 2017, eqs. 1 to 3 and appendix A.1 (there with running sums m_k = N_k e_k; smoothing
    of N_k is not needed where no N_k stays near 0); Dhariwal et al. 2020, "Jukebox" (random restarts).

    Args:
        num_codes: K, >= 2.
        code_dim: c, which must divide latent_dim; at most latent_dim.
        commitment: weight of the squared distance between encoder outputs and codes, summed over latents, >= 0.
        decay: of the running means, in [0, 1); None trains the book by gradient, from the squared distance too.
        revive_below: in [0, 1); 0 revives none. Without effect where the book is trained by gradient.

    Raises:
        ValueError: if a value is out of its range.
    """

    params_per_latent = 1
    has_density = True
    takes_grid = True
    book: Tensor
    use: Tensor

    def __init__(self, num_codes: int, code_dim: int, commitment: float, decay: float | None, revive_below: float):
        super().__init__()
        for key, value, least in (
            ("num_codes", num_codes, 2),
            ("code_dim", code_dim, 1),
            ("commitment", commitment, 0),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"posterior.{key} must be >= {least} and finite, got {value}")
        for key, share in (("decay", decay or 0), ("revive_below", revive_below)):
            if not 0 <= share < 1:
                raise ValueError(f"posterior.{key} must be in [0, 1), got {share}")
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.commitment = commitment
        self.decay = decay
        self.revive_below = revive_below
        book = torch.empty(num_codes, code_dim).uniform_(-1 / num_codes, 1 / num_codes)
        if decay is None:
            self.book = nn.Parameter(book)
        else:
            self.register_buffer("book", book)
            self.register_buffer("use", torch.zeros(num_codes))  # N_k

    def forward(self, params: Tensor) -> Codes:
        """Turn encoder outputs (B, D, *grid) into codes, in float32 under every precision; training moves the book."""
        vectors = to_places(params.float(), self.code_dim)
        flat = vectors.detach().flatten(0, -2)  # (N, c)
        moves = self.decay is not None and self.training and torch.is_grad_enabled()
        with torch.no_grad(), torch.autocast(flat.device.type, enabled=False):
            if moves:
                self._revive(flat)
            indices = self.nearest(flat)
            codes = F.embedding(indices, self.book)
            if moves:
                self._follow(flat, indices)
        codes = codes.view_as(vectors)
        indices = indices.view(vectors.shape[:-1])
        distance = (vectors - codes).square().flatten(1).sum(1).mean()
        terms = {"commitment": self.commitment * distance}
        if self.decay is None:
            learned = F.embedding(indices, self.book)
            terms["codebook"] = (vectors.detach() - learned).square().flatten(1).sum(1).mean()
        passed = codes + (vectors - vectors.detach())  # exactly the codes, with the gradient of the vectors
        return Codes(to_latents(passed), indices, self.num_codes, terms)

    def nearest(self, flat: Tensor) -> Tensor:
        """The index of the code nearest to each vector, (N, c) -> (N,)."""
        return (self.book.square().sum(1) - 2 * flat @ self.book.T).argmin(1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Latents (B, D, *grid) of indices (B, n, *grid), on the device of these."""
        return to_latents(F.embedding(indices, self.book.detach().to(indices.device)))

    def project(self, z: Tensor) -> Tensor:
        """The latents of codes that are nearest to any latents, (B, D, *grid)."""
        vectors = to_places(z, self.code_dim)
        return self.lookup(self.nearest(vectors.flatten(0, -2)).view(vectors.shape[:-1]))

    def prior(self, latent_shape: Sequence[int]) -> UniformCodes:
        """All codes are equally likely at every place.

        Raises:
            ValueError: if a latent does not hold whole codes.
        """
        if latent_shape[0] % self.code_dim:
            raise ValueError(f"posterior.code_dim must divide latent_dim={latent_shape[0]}, got {self.code_dim}")
        return UniformCodes(self.num_codes, (latent_shape[0] // self.code_dim, *latent_shape[1:]), self.lookup)

    def _revive(self, flat: Tensor) -> None:
        """Put vectors of this batch, the same on every process, in the place of codes that are not used."""
        least = self.revive_below * len(flat) * num_processes() / self.num_codes
        order = torch.randperm(len(flat), device=flat.device)
        drawn = flat[order[torch.arange(self.num_codes, device=flat.device) % len(flat)]]
        if num_processes() > 1:
            distributed.broadcast(drawn, 0)
        self.book.copy_(torch.where((self.use < least)[:, None], drawn, self.book))
        self.use.clamp_(min=least)  # one that is not used at once is dead again at the next batch

    def _follow(self, flat: Tensor, indices: Tensor) -> None:
        """Move the running means by this batch. One-hot, because a scattered sum is not repeatable on a GPU."""
        assert self.decay is not None
        # (N, K); not by F.one_hot, whose whole numbers take eight times as long to make and to convert.
        one_hot = flat.new_zeros(len(flat), self.num_codes).scatter_(1, indices[:, None], 1)
        count, total = one_hot.sum(0), one_hot.T @ flat
        if num_processes() > 1:
            distributed.all_reduce(count)
            distributed.all_reduce(total)
        self.use.mul_(self.decay).add_(count, alpha=1 - self.decay)
        step = (1 - self.decay) / self.use.clamp(min=torch.finfo(self.use.dtype).tiny)
        self.book.add_(step[:, None] * (total - count[:, None] * self.book))


def num_processes() -> int:
    """That train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class FiniteScalarQuantizer(nn.Module):
    """Each coordinate of a code is bounded and rounded to one of L levels; the codes are all combinations of levels.

    f(z) = half tanh(z + shift) - offset, rounded and divided by floor(L / 2), with half = (L - 1)(1 - 0.001) / 2 and,
    where L is even, offset = 1/2 and shift = tan(offset / half), else 0.

    Source: Mentzer et al. 2024, "Finite scalar quantization: VQ-VAE made simple", appendix A.1.

    Args:
        levels: L of each coordinate of a code, each >= 2; their number must divide latent_dim.

    Raises:
        ValueError: if there is none, or one is below 2.
    """

    params_per_latent = 1
    has_density = True
    takes_grid = True
    levels: Tensor
    basis: Tensor
    width: Tensor

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"posterior.levels must hold numbers >= 2, got {list(levels)}")
        self.num_codes = math.prod(levels)
        if self.num_codes >= 2**31:
            raise ValueError(f"posterior.levels must have a product below 2**31, got {list(levels)}")
        number = torch.tensor(levels)
        for name, value in (("levels", number), ("basis", number.cumprod(0) // number), ("width", number // 2)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, params: Tensor) -> Codes:
        """Turn encoder outputs (B, D, *grid) into codes, in float32 under every precision."""
        half = (self.levels - 1) * (1 - 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        vectors = to_places(params.float(), len(self.levels))
        bounded = half * torch.tanh(vectors + torch.tan(offset / half)) - offset
        rounded = bounded.detach().round()
        passed = rounded + (bounded - bounded.detach())
        return Codes(to_latents(passed / self.width), self._index(rounded), self.num_codes)

    def lookup(self, indices: Tensor) -> Tensor:
        """Latents (B, D, *grid) of indices (B, n, *grid), on the device of these."""
        basis, levels, width = (part.to(indices.device) for part in (self.basis, self.levels, self.width))
        return to_latents((indices[..., None] // basis % levels - width) / width)

    def project(self, z: Tensor) -> Tensor:
        """The latents of codes that are nearest to any latents, (B, D, *grid)."""
        steps = (to_places(z, len(self.levels)) * self.width).round()
        return self.lookup(self._index(torch.minimum(torch.maximum(steps, -self.width), self.levels - 1 - self.width)))

    def prior(self, latent_shape: Sequence[int]) -> UniformCodes:
        """All codes are equally likely at every place.

        Raises:
            ValueError: if a latent does not hold whole codes.
        """
        if latent_shape[0] % len(self.levels):
            raise ValueError(
                f"latent_dim must be a multiple of {len(self.levels)}, the number of posterior.levels, "
                f"got {latent_shape[0]}"
            )
        return UniformCodes(self.num_codes, (latent_shape[0] // len(self.levels), *latent_shape[1:]), self.lookup)

    def _index(self, steps: Tensor) -> Tensor:
        """Whole steps from 0 of each coordinate, (..., c), as the number of a code, (...)."""
        return ((steps.long() + self.width) * self.basis).sum(-1)


def concrete_log_prob(z: Tensor, log_probs: Tensor, temperature: float | None) -> Tensor:
    """Log density of a relaxed one-hot vector; without a temperature the log probability of a hard one.

    log (K - 1)! + (K - 1) log t + sum_k (log p_k - (t + 1) log z_k) - K log sum_k p_k z_k^-t

    Source: Maddison et al. 2017, "The concrete distribution".

    Args:
        z: (..., K), on the simplex.
        log_probs: log p, (..., K), normalised.
        temperature: t > 0, or None.

    Returns:
        Nats, (...).
    """
    if temperature is None:
        return (z * log_probs).sum(-1)
    num, log_z = z.shape[-1], z.clamp(min=torch.finfo(z.dtype).tiny).log()
    constant = math.lgamma(num) + (num - 1) * math.log(temperature)
    powers = (log_probs - (temperature + 1) * log_z).sum(-1)
    return constant + powers - num * torch.logsumexp(log_probs - temperature * log_z, -1)


@dataclass
class Categories:
    """Independent choices of one of K categories, as one-hot vectors; relaxed where there is a temperature.

    Args:
        log_probs: normalised, (B, n, *grid, K), float32.
        temperature: t > 0; None draws exact one-hot vectors, which pass no gradient.
        terms: further terms of the loss, by name.
    """

    log_probs: Tensor
    temperature: float | None
    terms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """The probabilities, E[z] of the exact choice, (B, *latent_shape)."""
        return to_latents(self.log_probs.exp())

    def rsample(self, num_samples: int) -> Tensor:
        """Draw softmax((log p + g) / t), g Gumbel noise, or the one-hot vector of the largest, (S, B, *latent_shape).

        Source: Jang et al. 2017, "Categorical reparameterization with Gumbel-softmax".
        """
        tiny = torch.finfo(self.log_probs.dtype).tiny
        noise = torch.empty_like(self.log_probs.expand(num_samples, *self.log_probs.shape)).exponential_()
        scores = self.log_probs - noise.clamp(min=tiny).log()
        if self.temperature is None:
            z = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)
        else:
            z = torch.softmax(scores / self.temperature, -1)
        return to_latents(z.flatten(0, 1)).unflatten(0, z.shape[:2])

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z given x) in nats, (S, B, *latent_shape) -> (S, B)."""
        places = to_places(z.flatten(0, 1), self.log_probs.shape[-1]).unflatten(0, z.shape[:2])
        return concrete_log_prob(places, self.log_probs, self.temperature).flatten(2).sum(2)

    def kl(self, prior: Any) -> Tensor | None:
        """KL of the exact choices from uniform ones, sum_k p_k log(K p_k), (B, n, *grid); None for another prior.

        With relaxed samples it is not the KL of what is drawn, and the objective no bound: that is what Jang et al.
        train with. Evaluation draws exact choices.
        """
        if not isinstance(prior, UniformCategories):
            return None
        return (self.log_probs.exp() * self.log_probs).sum(-1) + math.log(self.log_probs.shape[-1])

    def diagnostics(self) -> dict[str, Tensor]:
        """The temperature, where there is one."""
        if self.temperature is None:
            return {}
        return {"temperature": self.log_probs.new_full((), self.temperature)}


class UniformCategories:
    """p(z): at every place one of K categories, all equally likely; as relaxed as the posterior is.

    Args:
        posterior: of the same latents.
        places: (n, *grid).
    """

    def __init__(self, posterior: "GumbelSoftmax", places: Sequence[int]):
        self.posterior = posterior
        self.places = tuple(places)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, (S, B, *latent_shape) -> (S, B)."""
        num = self.posterior.num_categories
        places = to_places(z.flatten(0, 1), num).unflatten(0, z.shape[:2])
        even = torch.full((num,), -math.log(num), device=z.device)
        return concrete_log_prob(places, even, self.posterior.current_temperature()).flatten(2).sum(2)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n latents of one-hot vectors on the CPU, (n, *latent_shape)."""
        num = self.posterior.num_categories
        drawn = torch.randint(num, (n, *self.places), generator=generator)
        return to_latents(F.one_hot(drawn, num).float())


class GumbelSoftmax(nn.Module):
    """Each group of K latents is a choice of one of K categories: relaxed in training, exact in evaluation.

    The temperature falls from the first to the last over `anneal_steps` steps of the optimizer,
    t(step) = temperature (final_temperature / temperature)^min(1, step / anneal_steps).

    Sources: Jang et al. 2017, with the exponential schedule of its experiments; Maddison et al. 2017.

    Args:
        num_categories: K, >= 2, which must divide latent_dim.
        temperature: at the first step, > 0.
        final_temperature: > 0.
        anneal_steps: >= 0.

    Raises:
        ValueError: if a value is out of its range.
    """

    params_per_latent = 1
    has_density = True
    takes_grid = True

    def __init__(self, num_categories: int, temperature: float, final_temperature: float, anneal_steps: int):
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"posterior.num_categories must be >= 2, got {num_categories}")
        for key, value in (("temperature", temperature), ("final_temperature", final_temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"posterior.{key} must be > 0 and finite, got {value}")
        if anneal_steps < 0:
            raise ValueError(f"posterior.anneal_steps must be >= 0, got {anneal_steps}")
        self.num_categories = num_categories
        self.temperature = temperature
        self.final_temperature = final_temperature
        self.anneal_steps = anneal_steps
        self.varies_until = anneal_steps
        self.step = 0  # set by the training

    def current_temperature(self) -> float | None:
        """At this step of the training; None in evaluation, where choices are exact."""
        if not self.training:
            return None
        progress = min(1.0, self.step / self.anneal_steps) if self.anneal_steps else 1.0
        return self.temperature * (self.final_temperature / self.temperature) ** progress

    def forward(self, params: Tensor) -> Categories:
        """Turn logits (B, D, *grid) into choices, in float32 under every precision."""
        logits = to_places(params.float(), self.num_categories)
        return Categories(logits.log_softmax(-1), self.current_temperature())

    def project(self, z: Tensor) -> Tensor:
        """The one-hot vectors of the largest of each group, (B, D, *grid)."""
        places = to_places(z, self.num_categories)
        return to_latents(F.one_hot(places.argmax(-1), self.num_categories).to(z.dtype))

    def prior(self, latent_shape: Sequence[int]) -> UniformCategories:
        """All categories are equally likely at every place.

        Raises:
            ValueError: if a latent does not hold whole groups.
        """
        if latent_shape[0] % self.num_categories:
            raise ValueError(
                f"posterior.num_categories must divide latent_dim={latent_shape[0]}, got {self.num_categories}"
            )
        return UniformCategories(self, (latent_shape[0] // self.num_categories, *latent_shape[1:]))
