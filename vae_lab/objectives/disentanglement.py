"""Objectives that reward independent latents. What an objective is, is in `vae_lab.objectives`.

Each splits or adds to the KL of the ELBO, and reports the ELBO's own terms beside its loss.

Shapes: S samples of z, B batch, D latents; of a grid of latents, D are all of them.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import check_weight, infer, kl_per_latent, report


class Capacity(nn.Module):
    """The KL is pulled towards a capacity that rises from 0.

    loss = reconstruction + gamma |KL - C(step)|, C = capacity * min(1, step / capacity_steps)

    The KL is the mean over the batch, as in the published code, so the loss depends on the batch size where some
    batches lie above C and some below. Evaluation asks for the final capacity.

    Source: Burgess et al. 2018, "Understanding disentangling in beta-VAE", eq. 8.

    Args:
        gamma: weight of the distance, >= 0; 1 without capacity is the ELBO.
        capacity: the final C in nats per image, >= 0.
        capacity_steps: optimizer steps over which C rises, >= 0.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder", "prior", "density")

    def __init__(self, gamma: float, capacity: float, capacity_steps: int):
        super().__init__()
        for key, value in (("gamma", gamma), ("capacity", capacity), ("capacity_steps", capacity_steps)):
            check_weight(f"objective.{key}", value)
        self.gamma = gamma
        self.capacity = capacity
        self.capacity_steps = self.varies_until = capacity_steps

    def target(self, context: Context) -> float:
        """C: rising while it is trained with, the final one in evaluation."""
        if context.stage != "train" or context.step >= self.capacity_steps:
            return self.capacity
        return self.capacity * context.step / self.capacity_steps

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, with this loss."""
        q, z, reconstruction = infer(vae, batch)
        kl = kl_per_latent(q, z, vae.prior).sum()
        return report(reconstruction + self.gamma * (kl - self.target(context)).abs(), reconstruction, kl, q)


class BetaTC(nn.Module):
    """The KL of the aggregate posterior q(z) = 1/N sum_n q(z given x_n), term by term, each with a weight.

    loss = reconstruction + alpha E log q(z given x) / q(z)        mutual information of x and z
                          + beta  E log q(z) / prod_j q(z_j)       total correlation
                          + gamma E log prod_j q(z_j) / p(z)       KL of each latent

    q(z) at the sample of an image is estimated from the other images of the batch, so the three terms depend on the
    batch size, at evaluation too; their sum with equal weights does not. `weighted` is biased towards small densities:

        q(z) ~ 1/(N B) sum_b q(z given x_b)

    `stratified` is unbiased for q(z), if not for its log: the image itself counts 1/N, the M = B - 1 others 1/M each,
    but one of them (N - M) / (N M).

    Source: Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders": the terms, minibatch
    weighted and minibatch stratified sampling.

    Args:
        alpha: weight of the mutual information, >= 0.
        beta: weight of the total correlation, >= 0.
        gamma: weight of the KL of each latent, >= 0.
        estimator: `weighted` or `stratified`.

    Raises:
        ValueError: if a weight is out of its range.
    """

    needs = ("encoder", "prior", "diagonal")
    varies_until = 0

    def __init__(self, alpha: float, beta: float, gamma: float, estimator: Literal["weighted", "stratified"]):
        super().__init__()
        for key, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            check_weight(f"objective.{key}", value)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.estimator = estimator

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, the three terms, and as the loss their weighted sum."""
        q, z, reconstruction = infer(vae, batch)
        mean, scale, flat = q.mean.flatten(1), torch.exp(0.5 * q.log_var).flatten(1), z[0].flatten(1)
        normal = Normal(mean, scale, validate_args=False)  # a check of them would wait for the device
        log_q = normal.log_prob(flat[:, None])  # (B, B, D): of image i's sample, given image j
        log_weight = self.log_weights(len(flat), context.num_images, flat.device)
        log_aggregate = (log_q.sum(2) + log_weight).logsumexp(1)  # (B,)
        log_product = (log_q + log_weight[..., None]).logsumexp(1).sum(1)  # (B,)
        terms = {
            "information_estimate": (q.log_prob(z)[0] - log_aggregate).mean(),
            "correlation_estimate": (log_aggregate - log_product).mean(),
            "dimension_kl_estimate": (log_product - vae.prior.log_prob(z)[0]).mean(),
        }
        weights = (self.alpha, self.beta, self.gamma)
        loss = sum((w * term for w, term in zip(weights, terms.values(), strict=True)), reconstruction)
        return report(loss, reconstruction, kl_per_latent(q, z, vae.prior).sum(), q, **terms)

    def log_weights(self, batch_size: int, num_images: int, device: torch.device | None = None) -> Tensor:
        """Log of how much image j counts for the sample of image i, (B, B)."""
        num_images, others = max(num_images, batch_size), batch_size - 1
        if self.estimator == "weighted" or not others:
            return torch.full((batch_size, batch_size), -math.log(num_images * batch_size), device=device)
        weights = torch.full((batch_size, batch_size), 1 / others, device=device)
        weights.fill_diagonal_((num_images - others) / (num_images * others))
        return weights.roll(1, 1).fill_diagonal_(1 / num_images).log()


class DIP(nn.Module):
    """The ELBO, and a penalty on the distance of a covariance of the latents from the identity.

    loss = reconstruction + kld_weight KL + off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2

    C is Cov(E[z given x]) for type 1, and the covariance of the aggregate posterior, which adds E Var(z given x), for
    type 2. It is that of the batch, so the penalty is larger on small batches, at evaluation too.

    Source: Kumar et al. 2018, "Variational inference of disentangled latent concepts from unlabeled observations",
    eq. 6 (type 1) and eq. 7 (type 2).

    Args:
        kld_weight: weight of the KL, >= 0.
        off_diagonal: weight of the correlations, >= 0.
        diagonal: weight of the variances, >= 0.
        type: 1 or 2.

    Raises:
        ValueError: if a weight is out of its range.
    """

    varies_until = 0

    def __init__(self, kld_weight: float, off_diagonal: float, diagonal: float, type: Literal[1, 2]):
        super().__init__()
        weights = {
            "loss.KLD_weight": kld_weight,
            "objective.off_diagonal": off_diagonal,
            "objective.diagonal": diagonal,
        }
        for key, value in weights.items():
            check_weight(key, value)
        self.kld_weight = kld_weight
        self.off_diagonal = off_diagonal
        self.diagonal = diagonal
        self.is_of_samples = type == 2
        self.needs = ("encoder", "prior") if type == 1 else ("encoder", "prior", "diagonal")

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, and `covariance_penalty`."""
        q, z, reconstruction = infer(vae, batch)
        kl = kl_per_latent(q, z, vae.prior).sum()
        penalty = self.penalty(q)
        loss = reconstruction + self.kld_weight * kl + penalty
        return report(loss, reconstruction, kl, q, covariance_penalty=penalty)

    def penalty(self, q: Any) -> Tensor:
        """The weighted distance of the covariance from the identity, 0-dim."""
        code = q.mean.flatten(1)
        centred = code - code.mean(0)
        covariance = centred.T @ centred / max(1, len(code) - 1)  # (D, D)
        if self.is_of_samples:
            covariance = covariance + torch.diag(q.log_var.flatten(1).exp().mean(0))
        variances = covariance.diagonal()
        off_diagonal = covariance.square().sum() - variances.square().sum()
        return self.off_diagonal * off_diagonal + self.diagonal * (variances - 1).square().sum()
