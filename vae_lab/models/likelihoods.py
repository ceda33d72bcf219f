"""Likelihoods p(x given z): from raw decoder outputs to a distribution over images.

The names that a likelihood must have are in `vae_lab.models`. Shapes: B batch, C channels, H height, W width; `...`
stands for any leading axes, such as S samples of z. Images `x` are floats in [0, 1]; `params` are raw decoder outputs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Bernoulli:
    """Each pixel is an independent coin whose log-odds the decoder emits.

    On pixels between 0 and 1 log_prob is the negative cross-entropy, which is not a density of x: such values can be
    compared with each other, but not with those of binarized images.

    Source: Kingma and Welling 2014, appendix C.1.
    """

    params_per_channel = 1

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        nll = F.binary_cross_entropy_with_logits(params.float(), x.expand_as(params), reduction="none")
        return -nll.flatten(-3).sum(-1)

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z] in [0, 1], (..., C, H, W)."""
        return params.float().sigmoid()

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, zeros and ones, (..., C, H, W)."""
        return self.mean(params).bernoulli()

    def check(self, x: Tensor) -> None:
        """Refuse pixels for which the cross-entropy would be unbounded below, silently.

        Raises:
            ValueError: if a pixel lies outside [0, 1].
        """
        low, high = x.min().item(), x.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"loss=bce needs pixels in [0, 1], got {low:g} to {high:g}")


class Gaussian:
    """Each pixel is N(mean, 1/2), so that -log p(x given z) is the sum of squared errors plus (C H W / 2) log pi."""

    params_per_channel = 1

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Log p(x given z) in nats per image, float32: x (B, C, H, W), params (..., B, C, H, W) -> (..., B)."""
        squared_error = F.mse_loss(params.float(), x.expand_as(params), reduction="none").flatten(-3).sum(-1)
        return -squared_error - 0.5 * math.log(math.pi) * x[0].numel()

    def mean(self, params: Tensor) -> Tensor:
        """E[x given z], unbounded, (..., C, H, W)."""
        return params.float()

    def sample(self, params: Tensor) -> Tensor:
        """Draw x given z, unbounded, (..., C, H, W)."""
        return params.float() + math.sqrt(0.5) * torch.randn_like(params, dtype=torch.float32)

    def check(self, x: Tensor) -> None:
        """Accept every finite image.

        Raises:
            ValueError: if a pixel is NaN or infinite.
        """
        if not x.isfinite().all():
            raise ValueError("loss=mse needs finite pixels, got NaN or infinity")
