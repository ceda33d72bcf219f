"""Fully connected networks. Shapes as in `vae_lab.models.networks`."""

import math
from collections.abc import Sequence

from torch import nn

from vae_lab.models.networks.layers import check_positive, mlp


class MLPEncoder(nn.Sequential):
    """Fully connected: (B, C, H, W) -> (B, out_features); the last layer is linear.

    Args:
        image_shape: (C, H, W).
        out_features: size of the output.
        hidden_dims: widths from image to output, each >= 1.
        activation: see `activation_layer`.

    Raises:
        ValueError: if a width or the activation is not valid.
    """

    def __init__(self, image_shape: Sequence[int], out_features: int, hidden_dims: Sequence[int], activation: str):
        check_positive("hidden_dims", hidden_dims)
        sizes = [math.prod(image_shape), *hidden_dims]
        super().__init__(nn.Flatten(), *mlp(sizes, activation), nn.Linear(sizes[-1], out_features))


class MLPDecoder(nn.Sequential):
    """Fully connected: (B, D) -> (B, C, H, W); the mirror of `MLPEncoder`, the last layer is linear.

    Args:
        latent_dim: D.
        image_shape: (C, H, W) of the raw output.
        hidden_dims: the encoder's widths; used in reverse order.
        activation: see `activation_layer`.

    Raises:
        ValueError: if a width or the activation is not valid.
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int], hidden_dims: Sequence[int], activation: str):
        check_positive("hidden_dims", hidden_dims)
        sizes = [latent_dim, *reversed(hidden_dims)]
        super().__init__(
            *mlp(sizes, activation),
            nn.Linear(sizes[-1], math.prod(image_shape)),
            nn.Unflatten(1, tuple(image_shape)),
        )
