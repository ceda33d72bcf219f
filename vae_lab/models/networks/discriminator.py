"""A discriminator of patches. Any encoder with one output is a discriminator too. Shapes as in `networks`."""

from collections.abc import Sequence

from torch import nn

from vae_lab.models.networks.layers import check_positive, norm_layer, reduced_size


class PatchDiscriminator(nn.Sequential):
    """Strided convolutions to a map of judgements, one for each patch: (B, C, H, W) -> (B, out_features, h, w).

    Source: Isola et al. 2017, section 3.2.2 and appendix 6.1.2, at other widths and, by default, with another
    normalisation: one over the batch would judge an image by its neighbours.

    Args:
        image_shape: (C, H, W); H = W, a multiple of 2^n.
        out_features: judgements of each patch.
        channels: output channels of each of the n convolutions, which halve the side, each >= 1.
        norm: `batch`, `group` or null, after each convolution but the first.

    Raises:
        ValueError: if a value is out of range or the image does not fit.
    """

    def __init__(self, image_shape: Sequence[int], out_features: int, channels: Sequence[int], norm: str | None):
        check_positive("channels", channels)
        reduced_size(image_shape, [2] * len(channels))
        layers: list[nn.Module] = []
        n_in = image_shape[0]
        for i, n_out in enumerate(channels):
            layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), *(norm_layer(norm, n_out) if i else [])]
            layers.append(nn.LeakyReLU(0.2))
            n_in = n_out
        super().__init__(*layers, nn.Conv2d(n_in, out_features, 3, padding=1))
