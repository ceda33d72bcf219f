"""Convolutional networks. Shapes as in `vae_lab.models.networks`."""

import math
from collections.abc import Sequence

from torch import nn

from vae_lab.models.networks.layers import (
    activation_layer,
    check_positive,
    dropout_layer,
    mlp,
    norm_layer,
    pointwise,
    reduced_size,
)


def padding(kernel_size: int, stride: int) -> int:
    """The padding with which a convolution divides the side by its stride exactly.

    Raises:
        ValueError: if there is none.
    """
    if kernel_size < stride or (stride == 1 and kernel_size % 2 == 0):
        raise ValueError(
            f"model.kernel_sizes: {kernel_size} does not go with stride {stride}; "
            "take an odd kernel for stride 1 and a kernel of at least the stride otherwise"
        )
    return math.ceil((kernel_size - stride) / 2)


def check_lengths(channels: Sequence[int], kernel_sizes: Sequence[int], strides: Sequence[int]) -> None:
    """Refuse lists that do not describe the same layers.

    Raises:
        ValueError: if the lists are empty, differ in length or hold a number below 1.
    """
    if not len(channels) == len(kernel_sizes) == len(strides) > 0:
        raise ValueError(
            "model.channels, model.kernel_sizes and model.strides must have one entry for each layer, "
            f"got {len(channels)}, {len(kernel_sizes)} and {len(strides)}"
        )
    for key, values in (("channels", channels), ("kernel_sizes", kernel_sizes), ("strides", strides)):
        check_positive(key, values)


class ConvEncoder(nn.Sequential):
    """Strided convolutions, optional fully connected layers, then a linear output: (B, C, H, W) -> (B, out_features).

    Args:
        image_shape: (C, H, W); H = W, a multiple of the product of the strides.
        out_features: size of the output.
        channels: output channels of each convolution, each >= 1.
        kernel_sizes: of each convolution.
        strides: of each convolution.
        hidden_dims: widths of fully connected layers after the convolutions; may be empty.
        norm: `batch`, `group` or null, after each convolution.
        activation: see `activation_layer`.
        dropout: probability in [0, 1), after each activation of a convolution.
        spatial: keep the grid of the last convolution, (B, out_features, h, w); `hidden_dims` and the output are then
            the same fully connected layers at each of its positions.

    Raises:
        ValueError: if a value is out of range or the image does not fit the strides.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        hidden_dims: Sequence[int],
        norm: str | None,
        activation: str,
        dropout: float,
        spatial: bool = False,
    ):
        check_lengths(channels, kernel_sizes, strides)
        check_positive("hidden_dims", hidden_dims)
        side = reduced_size(image_shape, strides)
        layers, n_in = [], image_shape[0]
        for n_out, kernel, stride in zip(channels, kernel_sizes, strides, strict=True):
            # A bias before a normalisation would be subtracted again.
            conv = nn.Conv2d(n_in, n_out, kernel, stride, padding(kernel, stride), bias=norm is None)
            layers += [conv, *norm_layer(norm, n_out), activation_layer(activation), *dropout_layer(dropout)]
            n_in = n_out
        if spatial:
            sizes = [n_in, *hidden_dims]
            super().__init__(*layers, *pointwise(sizes, activation), nn.Conv2d(sizes[-1], out_features, 1))
            self.grid = (side, side)
            return
        sizes = [n_in * side * side, *hidden_dims]
        super().__init__(*layers, nn.Flatten(), *mlp(sizes, activation), nn.Linear(sizes[-1], out_features))


def upsampling(kind: str, n_in: int, n_out: int, kernel: int, stride: int, bias: bool) -> list[nn.Module]:
    """Layers that multiply the side of (B, n_in, H, W) by `stride`.

    Raises:
        ValueError: if the kind is neither `transposed` nor `nearest`.
    """
    if kind == "transposed":
        pad = padding(kernel, stride)
        return [nn.ConvTranspose2d(n_in, n_out, kernel, stride, pad, stride - kernel + 2 * pad, bias=bias)]
    if kind == "nearest":
        before, after = (kernel - 1) // 2, kernel // 2
        conv = [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(n_in, n_out, kernel, bias=bias)]
        return [nn.Upsample(scale_factor=stride), *conv] if stride > 1 else conv
    raise ValueError(f"model.upsample must be transposed or nearest, got {kind!r}")


class ConvDecoder(nn.Sequential):
    """The mirror of `ConvEncoder`: (B, D) -> (B, C, H, W); the last layer is a bare convolution.

    Args:
        latent_dim: D.
        image_shape: (C, H, W) of the raw output; H = W, a multiple of the product of the strides.
        channels: the encoder's channels; used in reverse order, as are the next three.
        kernel_sizes: of each convolution.
        strides: of each convolution.
        hidden_dims: widths of fully connected layers before the convolutions; may be empty.
        norm: `batch`, `group` or null, after each convolution but the last.
        activation: see `activation_layer`.
        dropout: probability in [0, 1), after each activation of a convolution.
        upsample: `transposed` convolutions, or `nearest` neighbours followed by a convolution.
        spatial: take a grid of latents, (B, D, h, w); `hidden_dims` and the layer after them are then the same fully
            connected layers at each of its positions.

    Raises:
        ValueError: if a value is out of range or the image does not fit the strides.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        hidden_dims: Sequence[int],
        norm: str | None,
        activation: str,
        dropout: float,
        upsample: str,
        spatial: bool = False,
    ):
        check_lengths(channels, kernel_sizes, strides)
        check_positive("hidden_dims", hidden_dims)
        side = reduced_size(image_shape, strides)
        if spatial:
            layers = pointwise([latent_dim, *reversed(hidden_dims), channels[-1]], activation)
        else:
            sizes = [latent_dim, *reversed(hidden_dims), channels[-1] * side * side]
            layers = [*mlp(sizes, activation), nn.Unflatten(1, (channels[-1], side, side))]
        widths = [*reversed(channels), image_shape[0]]
        *hidden, last = zip(widths[:-1], widths[1:], reversed(kernel_sizes), reversed(strides), strict=True)
        for n_in, n_out, kernel, stride in hidden:
            layers += upsampling(upsample, n_in, n_out, kernel, stride, bias=norm is None)
            layers += [*norm_layer(norm, n_out), activation_layer(activation), *dropout_layer(dropout)]
        super().__init__(*layers, *upsampling(upsample, *last, bias=True))
        if spatial:
            self.grid = (side, side)
