"""The layers that networks are made of, chosen by name and range-checked."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


def activation_layer(name: str) -> nn.Module:
    """Build an activation by name.

    Raises:
        ValueError: if the name is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"model.activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes a batch of one value per channel, which has no variance, as in evaluation.

    It occurs where a 1x1 map meets a batch of one image, such as the last of an epoch, and torch would refuse it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def norm_layer(name: str | None, channels: int) -> list[nn.Module]:
    """Build a normalisation over (B, channels, H, W) as a list of at most one layer.

    Raises:
        ValueError: if the name is not `batch`, `group` or null.
    """
    if name is None:
        return []
    if name == "batch":
        return [BatchNorm(channels)]
    if name == "group":
        # Groups of at least four channels: one that holds a single channel would remove that channel's mean.
        return [nn.GroupNorm(math.gcd(8, channels, max(1, channels // 4)), channels)]
    raise ValueError(f"model.norm must be batch, group or null, got {name!r}")


def dropout_layer(p: float) -> list[nn.Module]:
    """Build dropout as a list of at most one layer.

    Raises:
        ValueError: if p is not in [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"model.dropout must be in [0, 1), got {p}")
    return [nn.Dropout(p)] if p else []


def check_positive(key: str, values: Sequence[int]) -> None:
    """Refuse widths, kernel sizes and strides below 1.

    Raises:
        ValueError: naming the key and the value.
    """
    if any(value < 1 for value in values):
        raise ValueError(f"model.{key} must all be >= 1, got {list(values)}")


def reduced_size(image_shape: Sequence[int], strides: Sequence[int]) -> int:
    """The side of a feature map after the given strides.

    Raises:
        ValueError: if the image is not square or its side is not a multiple of the strides' product; the message
            names sizes that would fit.
    """
    _, height, width = image_shape
    factor = math.prod(strides)
    if height != width:
        raise ValueError(f"dataset.image_shape must be square, got {height}x{width}")
    if height % factor:
        below, above = height // factor * factor, (height // factor + 1) * factor
        fits = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"dataset.image_size={height} does not fit strides {list(strides)}: it must be a multiple of {factor}; "
            f"nearest: {fits} (dataset.fit=pad adds a border instead of resizing)"
        )
    return height // factor


def mlp(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    """Linear layers through `sizes`, each followed by the activation."""
    layers = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), activation_layer(activation)]
    return layers


def pointwise(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    """The layers of `mlp` at each position of a grid: convolutions of kernel 1."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Conv2d(n_in, n_out, 1), activation_layer(activation)]
    return layers
