"""Residual networks. Shapes as in `vae_lab.models.networks`."""

from collections.abc import Sequence

from torch import Tensor, nn

from vae_lab.models.networks.layers import activation_layer, check_positive, dropout_layer, norm_layer, reduced_size


class ResidualBlock(nn.Module):
    """x + f(x) with f of two normalised, activated 3x3 convolutions: (B, C, H, W) -> (B, C, H, W).

    Source: He et al. 2016, "Identity mappings in deep residual networks", full pre-activation.
    """

    def __init__(self, channels: int, norm: str | None, activation: str, dropout: float):
        super().__init__()
        layers = []
        for _ in range(2):
            layers += [*norm_layer(norm, channels), activation_layer(activation), *dropout_layer(dropout)]
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.residual = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual."""
        return x + self.residual(x)


def check_stages(channels: Sequence[int], num_blocks: int) -> None:
    """Refuse an empty network.

    Raises:
        ValueError: if there is no stage, a width is below 1 or num_blocks is negative.
    """
    if not channels:
        raise ValueError("model.channels must have one entry for each stage, got none")
    check_positive("channels", channels)
    if num_blocks < 0:
        raise ValueError(f"model.num_blocks must be >= 0, got {num_blocks}")


class ResNetEncoder(nn.Sequential):
    """Stages that halve the side and then refine: (B, C, H, W) -> (B, out_features).

    Args:
        image_shape: (C, H, W); H = W, a multiple of 2 ** len(channels).
        out_features: size of the output.
        channels: width of each stage, each >= 1.
        num_blocks: residual blocks in each stage, >= 0.
        norm: `batch`, `group` or null.
        activation: see `activation_layer`.
        dropout: probability in [0, 1), inside the blocks.
        spatial: keep the grid of the last stage, (B, out_features, h, w).

    Raises:
        ValueError: if a value is out of range or the image cannot be halved that often.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        out_features: int,
        channels: Sequence[int],
        num_blocks: int,
        norm: str | None,
        activation: str,
        dropout: float,
        spatial: bool = False,
    ):
        check_stages(channels, num_blocks)
        side = reduced_size(image_shape, [2] * len(channels))
        layers: list[nn.Module] = []
        n_in = image_shape[0]
        for n_out in channels:
            layers.append(nn.Conv2d(n_in, n_out, 4, stride=2, padding=1))
            layers += [ResidualBlock(n_out, norm, activation, dropout) for _ in range(num_blocks)]
            n_in = n_out
        head = [*norm_layer(norm, n_in), activation_layer(activation)]
        if spatial:
            super().__init__(*layers, *head, nn.Conv2d(n_in, out_features, 1))
            self.grid = (side, side)
        else:
            super().__init__(*layers, *head, nn.Flatten(), nn.Linear(n_in * side * side, out_features))


class ResNetDecoder(nn.Sequential):
    """The mirror of `ResNetEncoder`: (B, D) -> (B, C, H, W); the last layer is a bare convolution.

    Args:
        latent_dim: D.
        image_shape: (C, H, W) of the raw output; H = W, a multiple of 2 ** len(channels).
        channels: the encoder's widths; used in reverse order.
        num_blocks: residual blocks in each stage, >= 0.
        norm: `batch`, `group` or null.
        activation: see `activation_layer`.
        dropout: probability in [0, 1), inside the blocks.
        spatial: take a grid of latents, (B, D, h, w).

    Raises:
        ValueError: if a value is out of range or the image cannot be halved that often.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: Sequence[int],
        channels: Sequence[int],
        num_blocks: int,
        norm: str | None,
        activation: str,
        dropout: float,
        spatial: bool = False,
    ):
        check_stages(channels, num_blocks)
        side = reduced_size(image_shape, [2] * len(channels))
        widths = [*reversed(channels), channels[0]]
        if spatial:
            layers: list[nn.Module] = [nn.Conv2d(latent_dim, widths[0], 3, padding=1)]
        else:
            layers = [nn.Linear(latent_dim, widths[0] * side * side), nn.Unflatten(1, (widths[0], side, side))]
        for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [ResidualBlock(n_in, norm, activation, dropout) for _ in range(num_blocks)]
            layers.append(nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1))
        head = [*norm_layer(norm, channels[0]), activation_layer(activation)]
        super().__init__(*layers, *head, nn.Conv2d(channels[0], image_shape[0], 3, padding=1))
        if spatial:
            self.grid = (side, side)
