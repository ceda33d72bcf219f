"""Importance-weighted bounds. What an objective is, is in `vae_lab.objectives`.

With k samples of z for each image and log w = log p(x, z) - log q(z given x), the bound is log 1/k sum_k w: the ELBO
for k = 1, never falling with k, and log p(x) in the limit (Burda et al. 2016, theorem 1). None depends on the batch
size. `elbo`, `reconstruction` and `kl` are means over the samples.

Shapes: S samples of z, B batch, D latents, M groups of k samples.
"""

import math
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import check_count, report


class IWAE(nn.Module):
    """The importance-weighted bound.

    loss = -mean_B log 1/k sum_k w

    The doubly reparameterized gradient has the same value and, for the encoder, the same mean and less variance: it
    weighs the path through each sample by the square of its normalised weight, instead of the score of q by the weight.

    Sources: Burda et al. 2016, eq. 8; Tucker et al. 2019, "Doubly reparameterized gradient estimators for Monte Carlo
    objectives", the estimator IWAE-DReG.

    Args:
        samples: k, >= 1.
        gradient: `standard` or `doubly_reparameterized`.

    Raises:
        ValueError: if k is out of its range.
    """

    varies_until = 0

    def __init__(self, samples: int, gradient: Literal["standard", "doubly_reparameterized"] = "standard"):
        super().__init__()
        check_count("objective.samples", samples)
        self.samples = samples
        self.is_doubly_reparameterized = gradient == "doubly_reparameterized"
        self.needs = ("encoder", "prior", "diagonal" if self.is_doubly_reparameterized else "density")

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, `bound_isK`, and its negative as the loss."""
        q = vae.encode(batch.x, batch.y)
        z = q.rsample(self.samples)
        fixed = q
        if self.is_doubly_reparameterized:
            fixed = replace(q, mean=q.mean.detach(), log_var=q.log_var.detach())
        log_likelihood, log_ratio = log_weights(vae, batch, fixed, z)
        log_w = log_likelihood + log_ratio  # (k, B)
        bound = log_mean_exp(log_w).mean()
        loss = -bound
        if self.is_doubly_reparameterized:
            weight = log_w.detach().softmax(0)
            if z.requires_grad:  # the path through z has the weight once from the next line
                z.register_hook(lambda gradient: gradient * weight.reshape(*weight.shape, *[1] * (z.ndim - 2)))
            loss = -(weight * log_w).sum(0).mean()
            loss = loss + (-bound - loss).detach()
        return weighted(vae, q, loss, log_likelihood, log_ratio, {self.samples: bound})


class MIWAE(nn.Module):
    """The mean of the importance-weighted bounds of M groups of k samples; or that for the encoder only.

    loss = -mean_B 1/M sum_m log 1/k sum_k w

    With `partial`, which is PIWAE, the loss is the negative bound of all M k samples, from which decoder and prior
    learn; the encoder still learns from the mean of those of the groups. The samples are then decoded twice, because
    the two gradients differ.

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", MIWAE and PIWAE.

    Args:
        groups: M, >= 1; one is IWAE.
        samples: k, >= 1; one is the ELBO with M samples.
        partial: whether the groups are for the encoder only.

    Raises:
        ValueError: if a number is out of its range.
    """

    needs = ("encoder", "prior", "density")
    varies_until = 0

    def __init__(self, groups: int, samples: int, partial: bool = False):
        super().__init__()
        check_count("objective.groups", groups)
        check_count("objective.samples", samples)
        self.groups = groups
        self.samples = samples
        self.partial = partial

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, `bound_isK` for k and, if partial, M k, and the negative of the last as the loss."""
        q = vae.encode(batch.x, batch.y)
        z = q.rsample(self.groups * self.samples)
        log_likelihood, log_ratio = log_weights(vae, batch, q, z)
        log_w = log_likelihood + log_ratio  # (M k, B)
        in_groups = log_w.unflatten(0, (self.groups, self.samples))
        bounds = {self.samples: log_mean_exp(in_groups, dim=1).mean()}
        loss = -bounds[self.samples]
        if self.partial:
            # The gradient of the first bound for all parameters, and the difference to that of the second for p(x, z).
            difference = log_w.detach().softmax(0) - in_groups.detach().softmax(1).flatten(0, 1) / self.groups
            at_fixed = z.detach()
            log_joint = vae.likelihood.log_prob(batch.x, vae.decode(at_fixed, batch.y)) + vae.prior.log_prob(at_fixed)
            loss = loss - (difference * log_joint).sum(0).mean()
            of_all = log_mean_exp(log_w).mean()
            loss = loss + (-of_all - loss).detach()
            bounds[self.groups * self.samples] = of_all
        return weighted(vae, q, loss, log_likelihood, log_ratio, bounds)


class CIWAE(nn.Module):
    """A mix of the ELBO and the importance-weighted bound of the same samples.

    loss = -mean_B (beta 1/k sum_k log w + (1 - beta) log 1/k sum_k w)

    Source: Rainforth et al. 2018, "Tighter variational bounds are not necessarily better", CIWAE.

    Args:
        samples: k, >= 1.
        beta: part of the ELBO, in [0, 1]; 1 is the ELBO, 0 is IWAE.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder", "prior", "density")
    varies_until = 0

    def __init__(self, samples: int, beta: float):
        super().__init__()
        check_count("objective.samples", samples)
        if not 0 <= beta <= 1:
            raise ValueError(f"objective.beta must be in [0, 1], got {beta}")
        self.samples = samples
        self.beta = beta

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, `bound_isK`, and as the loss the negative mix."""
        q = vae.encode(batch.x, batch.y)
        z = q.rsample(self.samples)
        log_likelihood, log_ratio = log_weights(vae, batch, q, z)
        log_w = log_likelihood + log_ratio  # (k, B)
        bound = log_mean_exp(log_w).mean()
        loss = -(self.beta * log_w.mean() + (1 - self.beta) * bound)
        return weighted(vae, q, loss, log_likelihood, log_ratio, {self.samples: bound})


def log_weights(vae: VAE, batch: Any, q: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x given z) and log p(z) - log q(z given x), nats per image: z (S, B, D) -> (S, B) each."""
    return vae.likelihood.log_prob(batch.x, vae.decode(z, batch.y)), vae.prior.log_prob(z) - q.log_prob(z)


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log 1/k sum_k w over a dimension of length k."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])


def weighted(
    vae: VAE, q: Any, loss: Tensor, log_likelihood: Tensor, log_ratio: Tensor, bounds: dict[int, Tensor]
) -> dict[str, Tensor]:
    """`report`, with the bounds by their number of samples; where the KL has no closed form, it is -E of the ratio."""
    exact = q.kl(vae.prior)
    kl = -log_ratio.mean() if exact is None else exact.mean(0).sum()
    named = {f"bound_is{k}": bound for k, bound in bounds.items()}
    return report(loss, -log_likelihood.mean(), kl, q, **named)
