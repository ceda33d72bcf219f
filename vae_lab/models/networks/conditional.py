"""Networks that see labels, made of networks that do not. Shapes as in `vae_lab.models.networks`; F label columns."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def one_hot(y: Tensor, num_classes: Sequence[int]) -> Tensor:
    """Labels (B, F) as zeros and F ones, (B, sum of classes)."""
    columns = [F.one_hot(column, number) for column, number in zip(y.unbind(1), num_classes, strict=True)]
    return torch.cat(columns, 1).float()


class ConditionalEncoder(nn.Module):
    """Adds a plane to the image that says its labels: (B, C, H, W) and (B, F) -> what the network puts out.

    The plane is a learned linear map of the one-hot labels, so that any network takes it as one more channel.

    Source: Sohn et al. 2015, "Learning structured output representation using deep conditional generative models",
    with q(z given x, y), p(x given z, y) and a prior that does not depend on y.

    Args:
        network: an encoder of images (C + 1, H, W).
        num_classes: of each label column.
        size: (H, W).
    """

    takes_labels = True

    def __init__(self, network: nn.Module, num_classes: Sequence[int], size: Sequence[int]):
        super().__init__()
        self.network = network
        self.num_classes = tuple(num_classes)
        self.plane = nn.Sequential(nn.Linear(sum(self.num_classes), size[0] * size[1]), nn.Unflatten(1, (1, *size)))
        if hasattr(network, "grid"):
            self.grid = network.grid

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Encode images with their labels."""
        return self.network(torch.cat([x, self.plane(one_hot(y, self.num_classes))], 1))


class ConditionalDecoder(nn.Module):
    """Adds the one-hot labels to the latents, at each place of a grid: (B, D) and (B, F) -> (B, C, H, W).

    Args:
        network: a decoder of D + (sum of classes) latents.
        num_classes: of each label column.
    """

    takes_labels = True

    def __init__(self, network: nn.Module, num_classes: Sequence[int]):
        super().__init__()
        self.network = network
        self.num_classes = tuple(num_classes)
        if hasattr(network, "grid"):
            self.grid = network.grid

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Decode latents with their labels."""
        labels = one_hot(y, self.num_classes).to(z.dtype)
        labels = labels.view(*labels.shape, *[1] * (z.ndim - 2)).expand(-1, -1, *z.shape[2:])
        return self.network(torch.cat([z, labels], 1))
