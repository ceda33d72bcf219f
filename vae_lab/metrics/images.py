"""How near reconstructions are to their images, in the units that papers on images use.

Shapes: B batch, C channels, H height, W width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vae_lab.metrics.standard import Means
from vae_lab.models.vae import VAE


class PSNR:
    """`psnr`: 10 log10(1 / mse) of the reconstruction from the code, clamped to [0, 1], mean over images, in dB."""

    needs = ("encoder",)

    def __init__(self) -> None:
        self.means = Means()
        self.reset, self.compute = self.means.reset, self.means.compute

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add a batch; an image that is met exactly counts as 100 dB."""
        seen = vae.generate(q.mean, batch.y).clamp(0, 1)
        of_each = peak_signal_noise_ratio(seen, batch.x, data_range=1.0, reduction="none", dim=(1, 2, 3))
        self.means.add({"psnr": of_each.clamp(max=100).mean()}, len(batch.x))


class SSIM:
    """`ssim`: structural similarity of the reconstruction from the code, in [-1, 1], mean over images.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", with a
    Gaussian window of deviation 1.5.
    """

    needs = ("encoder",)

    def __init__(self) -> None:
        self.means = Means()
        self.reset, self.compute = self.means.reset, self.means.compute

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add a batch."""
        seen = vae.generate(q.mean, batch.y).clamp(0, 1)
        of_each = structural_similarity_index_measure(seen, batch.x, data_range=1.0, reduction="none")
        self.means.add({"ssim": torch.as_tensor(of_each).mean()}, len(batch.x))


class BitsPerDim:
    """`bits_per_dim`: -elbo / (C H W log 2), where the likelihood is of the 256 levels; an upper bound.

    Source: Theis et al. 2016, "A note on the evaluation of generative models".
    """

    def __init__(self) -> None:
        self.means = Means()
        self.reset, self.compute = self.means.reset, self.means.compute

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add a batch."""
        if "elbo" in terms and hasattr(vae.likelihood, "num_levels"):
            bits = -terms["elbo"] / (math.prod(vae.image_shape) * math.log(2))
            self.means.add({"bits_per_dim": bits}, len(batch.x))
