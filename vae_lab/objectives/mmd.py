"""Objectives that compare the codes of a batch with samples of the prior by their maximum mean discrepancy.

What an objective is, is in `vae_lab.objectives`. Shapes: S samples of z, B batch, D latents; of a grid, all of them.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import check_weight, infer, kl_per_latent, report

Kernel = Literal["imq", "rbf"]


class InfoVAE(nn.Module):
    """The ELBO with less of the KL of each image, and instead more of the distance of all of them from the prior.

    loss = reconstruction + (1 - alpha) KL + (alpha + lambda - 1) MMD(q(z), p(z))

    The expectation of the MMD does not depend on the batch size, but for a batch of one image; see `mmd`.

    Source: Zhao et al. 2019, "InfoVAE: balancing learning and inference in variational autoencoders", the objective
    L_InfoVAE, with the MMD as its divergence.

    Args:
        alpha: what is taken from the weight of the KL, <= 1.
        lam: lambda, >= 1 - alpha; 1 with alpha = 0 is the ELBO.
        kernel: `rbf` or `imq`, see `mmd`.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder", "prior")

    def __init__(self, alpha: float, lam: float, kernel: Kernel):
        super().__init__()
        if not -float("inf") < alpha <= 1:
            raise ValueError(f"objective.alpha must be <= 1 and finite, got {alpha}")
        if not 1 - alpha <= lam < float("inf"):
            raise ValueError(f"objective.lam must be >= 1 - objective.alpha = {1 - alpha:g} and finite, got {lam}")
        self.alpha = alpha
        self.lam = lam
        self.kernel: Kernel = kernel

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, and `mmd_estimate`."""
        q, z, reconstruction = infer(vae, batch)
        kl = kl_per_latent(q, z, vae.prior).sum()
        distance = mmd(z[0], vae.prior.sample(len(batch.x)).to(z), self.kernel)
        loss = reconstruction + (1 - self.alpha) * kl + (self.alpha + self.lam - 1) * distance
        return report(loss, reconstruction, kl, q, mmd_estimate=distance)


class WassersteinMMD(nn.Module):
    """An autoencoder, stochastic or not, whose codes as a whole follow the prior.

    loss = reconstruction + lambda MMD(q(z), p(z))

    The expectation of the MMD does not depend on the batch size, but for a batch of one image; see `mmd`.

    Source: Tolstikhin et al. 2018, "Wasserstein auto-encoders", WAE-MMD, with the kernel and the scale of its
    experiments.

    Args:
        lam: lambda, the weight of the MMD, >= 0; 0 is the plain autoencoder.
        kernel: `imq` or `rbf`, see `mmd`.

    Raises:
        ValueError: if lambda is out of its range.
    """

    needs = ("encoder", "prior")
    matches_prior = True

    def __init__(self, lam: float, kernel: Kernel):
        super().__init__()
        check_weight("objective.lam", lam)
        self.lam = lam
        self.kernel: Kernel = kernel

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """`loss`, `reconstruction` and `mmd_estimate`; of a posterior with a density also `kl` and `elbo`."""
        q, z, reconstruction = infer(vae, batch)
        kl = kl_per_latent(q, z, vae.prior).sum() if hasattr(q, "log_prob") else None
        distance = mmd(z[0], vae.prior.sample(len(batch.x)).to(z), self.kernel)
        return report(reconstruction + self.lam * distance, reconstruction, kl, q, mmd_estimate=distance)


def mmd(z: Tensor, other: Tensor, kernel: Kernel) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy of two laws, 0-dim; it may be negative.

    mean_{i != j} k(z_i, z_j) + mean_{i != j} k(z'_i, z'_j) - 2 mean_{i, j} k(z_i, z'_j)

    With c = 2 D, the mean squared distance of two samples of a standard normal, `imq` is c / (c + |z - z'|^2) and `rbf`
    is exp(-|z - z'|^2 / c). A single sample has no other to be compared with: the first two means are 0.

    Source: Gretton et al. 2012, "A kernel two-sample test", the unbiased estimate.

    Args:
        z: samples of the one, (B, ...).
        other: samples of the other, (B, ...).
        kernel: `imq` or `rbf`.
    """
    z, other = z.flatten(1), other.flatten(1)
    scale = 2.0 * z.shape[1]

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b).square().sum(2)  # (B, B); not `cdist`, whose root has no gradient at 0
        return scale / (scale + squares) if kernel == "imq" else torch.exp(-squares / scale)

    pairs = max(1, len(z) * (len(z) - 1))
    within = [(k.sum() - k.diagonal().sum()) / pairs for k in (similarity(z, z), similarity(other, other))]
    return sum(within) - 2 * similarity(z, other).mean()
