"""A distance between images in the features of a fixed network; `objective=perceptual` adds it to the ELBO.

Features are an `nn.Module` from images (B, C, H, W) in [0, 1] to a list of maps (B, C', H', W'). One of your own needs
nothing else. Shapes: B batch, C channels, H height, W width.
"""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from vae_lab.models.networks.classifier import convolutions
from vae_lab.objectives.elbo import check_weight

WEIGHTS = Path(__file__).with_name("mnist_classifier.safetensors")


class FeatureDistance(nn.Module):
    """weight * sum_l 1/2 mean_{C', H', W'} (f_l(x) - f_l(x'))^2, the mean over the batch.

    Source: Hou et al. 2017, "Deep feature consistent variational autoencoder".

    Args:
        weight: nats per image for each unit of distance, >= 0; 0 is the ELBO.
        features: images (B, C, H, W) in [0, 1] -> a list of maps.

    Raises:
        ValueError: if the weight is out of its range.
    """

    def __init__(self, weight: float, features: nn.Module):
        super().__init__()
        check_weight("objective.perceptual.weight", weight)
        self.weight = weight
        # In a list, because they are neither trained nor a part of checkpoints.
        self.features = [features.eval().requires_grad_(False)]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Images (B, C, H, W) and (B, C, H, W) -> the weighted distance, 0-dim."""
        features = self.features[0].to(x.device)
        pairs = zip(features(x), features(other), strict=True)
        return self.weight * sum((0.5 * (a.float() - b.float()).square().mean() for a, b in pairs), x.new_zeros(()))


class MNISTClassifier(nn.Module):
    """Three convolutions of a small classifier of MNIST, trained by this project on the 60,000 training images.

    With a linear layer on top it was right on 98.7 % of the test images, after 3 epochs of Adam with 1e-3. It is for
    digits and for trying things out without a network; for photographs take `VGG`. Colours are averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = convolutions(1)
        self.layers.load_state_dict(safetensors.torch.load_file(WEIGHTS))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images -> the maps after each activation."""
        return maps_after_relu(self.layers, x.mean(1, keepdim=True))


class VGG(nn.Module):
    """The maps relu1_1, relu2_1 and relu3_1 of torchvision's VGG-19, trained on ImageNet.

    Source: Hou et al. 2017, the model called VAE-123; Simonyan and Zisserman 2015 for the network.

    Args:
        weights: vgg19-dcbb9e9d.pth, as torchvision downloads it; nothing is downloaded here.

    Raises:
        ValueError: if there is no such file.
    """

    def __init__(self, weights: str):
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers  # which takes a second

        path = Path(weights).expanduser()
        if not path.is_file():
            source = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
            raise ValueError(
                f"objective.perceptual.features.weights must be a file, got {weights}; get it from {source}"
            )
        self.layers = make_layers(cfgs["E"][:7])  # two blocks of two, and the first convolution of the third
        stored = torch.load(path, map_location="cpu", weights_only=True)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])
        own = self.layers.state_dict()
        self.layers.load_state_dict({name: stored[f"features.{name}"] for name in own})

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images, grey or in colour -> the maps after each activation."""
        return maps_after_relu(self.layers, (x.expand(-1, 3, -1, -1) - self.mean) / self.std)[::2]


def maps_after_relu(layers: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each ReLU of a chain puts out."""
    maps = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            maps.append(x)
    return maps
