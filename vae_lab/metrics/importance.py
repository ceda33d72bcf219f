"""log p(x) by importance sampling, of every image.

Shapes: S samples of z, B batch, N images, D latents.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_lab.metrics.standard import Means
from vae_lab.models.vae import VAE

NUM_PIXELS = 2**22  # decoded at a time: of S' samples of B' images


class NLL:
    """`nll_isS`: the negative log-likelihood in nats per image, estimated with S samples of q; its mean over images.

    -log p(x) is about -log 1/S sum_s p(x, z_s) / q(z_s given x)

    On average it is too large, and the less the more samples: it is the negative of the bound `bound_isS`. The sum is
    kept as a logarithm while samples come in chunks, so memory does not grow with S.

    Source: Burda et al. 2016, eq. 8 and section 5, where S = 5000.

    Args:
        samples: S, >= 1.

    Raises:
        ValueError: if it is out of its range.
    """

    needs = ("encoder", "prior", "density")

    def __init__(self, samples: int):
        if samples < 1:
            raise ValueError(f"metrics.nll.samples must be >= 1, got {samples}")
        self.samples, self.name = samples, f"nll_is{samples}"
        self.advance: Callable[[float], Any] = lambda images: None  # told how many images' worth of work is done
        self.means = Means()
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.means.reset()
        self.parts: list[Tensor] = []

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add a batch."""
        num_pixels = math.prod(vae.image_shape)
        for part in torch.arange(len(batch.x), device=batch.x.device).split(max(1, NUM_PIXELS // num_pixels)):
            x, y = batch.x[part], None if batch.y is None else batch.y[part]
            q = vae.encode(x, y)
            total = x.new_full((len(x),), -math.inf)  # log sum_s w
            for num in sizes(self.samples, max(1, NUM_PIXELS // (len(x) * num_pixels))):
                z = q.rsample(num)
                log_w = vae.likelihood.log_prob(x, vae.decode(z, y)) + vae.prior.log_prob(z) - q.log_prob(z)  # (S', B)
                total = torch.logaddexp(total, log_w.logsumexp(0))
                self.advance(len(x) * num / self.samples)
            nll = math.log(self.samples) - total
            self.means.add({self.name: nll.mean()}, len(x))
            self.parts.append(nll.detach().cpu())

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The mean over all images."""
        return self.means.compute(total)

    def per_image(self) -> dict[str, Tensor]:
        """The value of each image in the order of the split, (N,), nats; of this process."""
        return {self.name: torch.cat(self.parts)} if self.parts else {}


def sizes(total: int, most: int) -> list[int]:
    """The sizes of chunks of at most `most` that make a total."""
    return [min(most, total - start) for start in range(0, total, most)]
