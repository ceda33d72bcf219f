"""The networks of a small GAN: convolutions without padding, max-pooling. Shapes as in `vae_lab.models.networks`."""

import math
from collections.abc import Sequence

from torch import nn

from vae_lab.models.networks.layers import activation_layer, check_positive, dropout_layer, reduced_size


class UnpaddedEncoder(nn.Sequential):
    """Convolutions of kernel 5, each max-pooled by 2, then one hidden layer: (B, C, H, W) -> (B, out_features).

    Args:
        image_shape: (C, H, W); at least one pixel must be left after the last pooling.
        out_features: size of the output.
        channels: output channels of each convolution, each >= 1.
        hidden_dim: width of the hidden layer, >= 1.
        activation: see `activation_layer`.
        dropout: probability in [0, 1), of whole maps after the last convolution and of hidden units.

    Raises:
        ValueError: if a value is out of range or the image is too small.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int],
        hidden_dim: int,
        activation: str,
        dropout: float,
    ):
        check_positive("encoder.channels", channels)
        check_positive("encoder.hidden_dim", [hidden_dim])
        n_in, *sides = image_shape
        layers: list[nn.Module] = []
        for i, n_out in enumerate(channels, 1):
            sides = [(side - 4) // 2 for side in sides]
            drop = [nn.Dropout2d(dropout)] if dropout_layer(dropout) and i == len(channels) else []
            layers += [nn.Conv2d(n_in, n_out, 5), *drop, nn.MaxPool2d(2), activation_layer(activation)]
            n_in = n_out
        if min(sides) < 1:
            least = 5 * 2 ** len(channels) - 4
            raise ValueError(
                f"dataset.image_size must be >= {least} for {len(channels)} unpadded convolutions, got {image_shape[1]}"
            )
        hidden = [nn.Linear(n_in * math.prod(sides), hidden_dim), activation_layer(activation), *dropout_layer(dropout)]
        super().__init__(*layers, nn.Flatten(), *hidden, nn.Linear(hidden_dim, out_features))


class UnpaddedDecoder(nn.Sequential):
    """A linear layer to a grid, transposed convolutions of kernel 4 and stride 2, and one kernel that trims the border.

    A side s grows to 2 s + 2 in each, and n of them make 2^n s + 2 (2^n - 1): the last kernel has side 2^(n+1) - 1.

    Args:
        latent_dim: D.
        image_shape: (C, H, W) of the raw output; H = W, a multiple of 2^n.
        channels: of the grid, and of each of the n transposed convolutions.
        activation: see `activation_layer`.

    Raises:
        ValueError: if a value is out of range or the image does not fit.
    """

    def __init__(self, latent_dim: int, image_shape: Sequence[int], channels: Sequence[int], activation: str):
        check_positive("decoder.channels", channels)
        num = len(channels) - 1
        side = reduced_size(image_shape, [2] * num)
        layers = [nn.Linear(latent_dim, channels[0] * side * side), activation_layer(activation)]
        layers.append(nn.Unflatten(1, (channels[0], side, side)))
        for n_in, n_out in zip(channels[:-1], channels[1:], strict=True):
            layers += [nn.ConvTranspose2d(n_in, n_out, 4, stride=2), activation_layer(activation)]
        super().__init__(*layers, nn.Conv2d(channels[-1], image_shape[0], 2 ** (num + 1) - 1))
