"""Affine networks. Shapes as in `vae_lab.models.networks`."""

import math
from collections.abc import Sequence

from torch import nn


class LinearEncoder(nn.Sequential):
    """One affine map: (B, C, H, W) -> (B, out_features).

    Args:
        image_shape: (C, H, W).
        out_features: size of the output.
    """

    def __init__(self, image_shape: Sequence[int], out_features: int):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(image_shape), out_features))


class LinearDecoder(nn.Sequential):
    """One affine map: (B, D) -> (B, C, H, W).

    With a Gaussian likelihood of one sigma the model is that of probabilistic principal components. Where lambda_1 >=
    lambda_2 >= ... are the eigenvalues of the covariance of the images, the best elbo is the best mean of log p(x),

    -1/2 sum_i (log 2 pi + log c_i + lambda_i / c_i), c_i = max(lambda_i, sigma^2) for i <= D, else sigma^2

    Args:
        latent_dim: D.
        image_shape: (C, H, W) of the raw output.

    Sources: Tipping and Bishop 1999, "Probabilistic principal component analysis"; Lucas et al. 2019, "Don't blame the
    ELBO!", by which the best elbo of a linear VAE is that log p(x).
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int]):
        super().__init__(nn.Linear(latent_dim, math.prod(image_shape)), nn.Unflatten(1, tuple(image_shape)))
