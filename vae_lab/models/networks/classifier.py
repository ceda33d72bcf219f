"""A small classifier of images: its features measure how near reconstructions and samples are.

Shapes: B batch, C channels, H height, W width, F label columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

NUM_FEATURES = 64


def convolutions(channels: int) -> nn.Sequential:
    """Three convolutions and two poolings: (B, C, H, W) -> (B, 32, H / 4, W / 4), rounded down."""
    layers = [nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1)]
    layers += [nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """Labels of images, a softmax for each column.

    Args:
        image_shape: (C, H, W), H and W >= 4.
        num_classes: of each label column.

    Raises:
        ValueError: if the images are too small.
    """

    def __init__(self, image_shape: Sequence[int], num_classes: Sequence[int]):
        super().__init__()
        channels, height, width = image_shape
        if min(height, width) < 4:
            raise ValueError(f"dataset.image_size must be >= 4 for the classifier, got {height}x{width}")
        self.num_classes = tuple(num_classes)
        self.layers = convolutions(channels)
        self.hidden = nn.Linear(32 * (height // 4) * (width // 4), NUM_FEATURES)
        self.head = nn.Linear(NUM_FEATURES, sum(num_classes))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))  # of the last layer's inputs: the program makes features unit
        self.name = ""  # in keys of metrics
        self.accuracy = 0.0  # on images it was not trained on

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> (B, 64), what the last layer sees, scaled."""
        return self.hidden(self.layers(x).flatten(1)).relu() / self.scale

    def classify(self, features: Tensor) -> tuple[Tensor, ...]:
        """Features (B, 64) -> the logits of each column, F times (B, classes)."""
        return self.head(features * self.scale).split(self.num_classes, 1)
