"""What the latents hold: KL of each, and three distances of their aggregate, q(z) = mean over images of q(z given x).

Shapes: B batch, N images, D latents (a grid is one long row).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_lab.metrics.standard import Means
from vae_lab.models.posteriors import DiagonalGaussian
from vae_lab.models.vae import VAE

MAX_IMAGES = 2000  # the first of a split: time and memory grow with their square
ROWS = 100  # of a matrix of images by images, at a time
NUM_TERMS = 2**25  # log-densities of one latent under one posterior, at a time


def mean_over_processes(values: dict[str, Tensor], num: int, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The mean of what each process found on its images, weighted by how many these are."""
    count = total(torch.tensor(float(num)))
    return {key: total(value * num) / count for key, value in values.items()}


class KLPerLatent:
    """`kl_z0`, `kl_z1`, ...: KL(q(z_j given x), p(z_j)) of each latent, if it has a closed form; of a grid its sum."""

    needs = ("encoder",)

    def __init__(self) -> None:
        self.means = Means()
        self.reset = self.means.reset

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the KL of a batch."""
        kl = q.kl(vae.prior) if vae.prior is not None else None
        if kl is not None:
            self.means.add({"kl": kl.flatten(2).sum(2).mean(0) if kl.ndim > 2 else kl.mean(0)}, len(batch.x))

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Nats per image of each latent."""
        found = self.means.compute(total)
        return {f"kl_z{number}": value for number, value in enumerate(found["kl"])} if found else {}


class AggregatePosterior:
    """`mutual_information` and `total_correlation` of a diagonal Gaussian q, from one z for each image.

    I(x; z) = E log q(z given x) - E log q(z), at most log N

    TC(z) = E log q(z) - sum_j E log q(z_j)

    q(z) is the mixture over the first 2,000 images themselves, in nats. That the image of a sample is always among them
    biases both: where few posteriors overlap, I is near log N whatever the model, and TC is too large.

    Sources: Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders"; Hoffman and Johnson
    2016, "ELBO surgery".
    """

    needs = ("encoder",)

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.parts: list[tuple[Tensor, ...]] = []  # mean, log-variance and z
        self.count = 0

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add a batch, if q is such."""
        if self.count < MAX_IMAGES and isinstance(q, DiagonalGaussian):
            drawn = (q.mean, q.log_var, q.rsample(1)[0])
            self.parts.append(tuple(part.detach().flatten(1)[: MAX_IMAGES - self.count] for part in drawn))
            self.count += len(self.parts[-1][0])

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Both, in nats."""
        if not self.parts:
            return {}
        mean, log_var, z = (torch.cat(parts) for parts in zip(*self.parts, strict=True))

        def log_prob(z: Tensor) -> Tensor:  # (..., D) of each latent, broadcast against the images
            return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi))

        own, joint, marginal = log_prob(z).sum(), z.new_zeros(()), z.new_zeros(())
        for rows in z.split(max(1, min(ROWS, NUM_TERMS // z.numel()))):  # a grid has thousands of latents
            each = log_prob(rows[:, None])  # (rows, N, D)
            joint += each.sum(2).logsumexp(1).sum()
            marginal += each.logsumexp(1).sum()
        n, num_latents = len(z), z.shape[1]
        joint, marginal = joint / n - math.log(n), marginal / n - num_latents * math.log(n)
        found = {"mutual_information": own / n - joint, "total_correlation": joint - marginal}
        return mean_over_processes(found, n, total)


class MMD:
    """`mmd`: the squared distance between q(z) and p(z) in the feature space of exp(-|a - b|^2 / (2 D)).

    E k(z, z') + E k(u, u') - 2 E k(z, u), z from q(z) and u from p(z), without the pairs of a sample with itself

    Unbiased, so it can be below 0; from one z of the first 2,000 images and as many draws from the prior.

    Sources: Gretton et al. 2012, "A kernel two-sample test"; Zhao et al. 2019, "InfoVAE".
    """

    needs = ("encoder",)

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.parts: list[Tensor] = []
        self.count = 0
        self.prior: Any = None

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add a batch, of a model with a prior."""
        if self.count < MAX_IMAGES and vae.prior is not None:
            self.prior = vae.prior
            self.parts.append(q.rsample(1)[0].detach().flatten(1)[: MAX_IMAGES - self.count])
            self.count += len(self.parts[-1])

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The distance, without a unit."""
        if self.count < 2:
            return {}
        z = torch.cat(self.parts)
        u = self.prior.sample(len(z), torch.Generator().manual_seed(0)).detach().to(z).flatten(1)
        n, width = len(z), 2 * z.shape[1]

        def kernel(a: Tensor, b: Tensor) -> Tensor:  # its sum
            return torch.stack(
                [torch.exp(-torch.cdist(rows, b).square() / width).sum() for rows in a.split(ROWS)]
            ).sum()

        within = (kernel(z, z) + kernel(u, u) - 2 * n) / (n * (n - 1))
        return mean_over_processes({"mmd": within - 2 * kernel(z, u) / n**2}, n, total)
