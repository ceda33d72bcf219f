"""White shapes on black, drawn from labelled factors, for measuring disentanglement.

Source: the idea of dSprites (Matthey et al. 2017). Here the angles of a shape cover exactly one period of its
symmetry, so that no two labels share an image.
"""

import math

import torch
from torch import Tensor

from vae_lab.data.decoding import Images, check_fit

SMALLEST, LARGEST = 0.2, 0.4  # radius of the circle around a shape; the frame reaches from -1 to 1
MAX_BYTES = 16_000_000_000
MIN_SIZE = 16  # below it, the smallest shapes look the same in neighbouring orientations


class Sprites:
    """The full grid of factors shape (0 square, 1 ellipse, 2 heart), scale, orientation, x and y.

    Each factor is an evenly spaced index. `orientation` k of K turns a shape clockwise by k / K of its
    period: 90 degrees for the square, 180 for the ellipse, 360 for the heart. x grows to the right, y
    downwards.

    Args:
        image_shape: (C, size, size) with C 1 or 3 and size >= 16.
        scales: Number of sizes, >= 1.
        orientations: Number of angles, >= 1.
        positions: Number of places along x and along y, >= 1; a single one is the centre.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, image_shape: tuple[int, int, int], scales: int, orientations: int, positions: int):
        self.image_shape = check_fit(image_shape, "resize")
        if self.image_shape[1] < MIN_SIZE:
            raise ValueError(f"image_size must be >= {MIN_SIZE} for sprites, got {self.image_shape[1]}")
        for name, count in {"scales": scales, "orientations": orientations, "positions": positions}.items():
            if count < 1:
                raise ValueError(f"dataset.source.{name} must be an integer >= 1, got {count}")
        size = len(SHAPES) * scales * orientations * positions**2 * math.prod(self.image_shape)
        if size > MAX_BYTES:
            raise ValueError(
                f"dataset.source.scales={scales}, orientations={orientations} and positions={positions} make "
                f"{size / 1e9:.3g} GB of images, at most {MAX_BYTES / 1e9:.3g} GB are allowed"
            )
        self.scales, self.orientations, self.positions = scales, orientations, positions

    def read(self) -> Images:
        """Draws 3 * scales * orientations * positions**2 images in the order of their labels."""
        channels, size, _ = self.image_shape
        radii = torch.linspace(SMALLEST, LARGEST, self.scales)
        reach = 1 - LARGEST - 2 / size  # one black pixel stays around the largest shape
        places = torch.linspace(-reach, reach, self.positions) if self.positions > 1 else torch.zeros(1)
        counts = (len(SHAPES), self.scales, self.orientations, self.positions, self.positions)
        labels = torch.cartesian_prod(*(torch.arange(count) for count in counts))
        pixels = torch.empty(*counts, channels, size, size, dtype=torch.uint8)
        for shape, (distance, period) in enumerate(SHAPES):
            for scale, radius in enumerate(radii):
                for orientation in range(self.orientations):
                    angle = period * orientation / self.orientations
                    drawn = _draw(distance, float(radius), angle, places, size)
                    pixels[shape, scale, orientation] = drawn[:, :, None]
        factors = ("shape", "scale", "orientation", "x", "y")
        return Images(pixels.flatten(0, 4), labels, factors, num_test=0, class_names=("square", "ellipse", "heart"))


def _draw(distance, radius: float, angle: float, places: Tensor, size: int) -> Tensor:
    """Draws one shape at every place: uint8 (x places, y places, size, size), antialiased over one pixel."""
    pixel = 2 / size
    centres = (torch.arange(size) + 0.5) * pixel - 1
    across = (centres - places[:, None])[:, None, None, :] / radius  # (P, 1, 1, W)
    down = (centres - places[:, None])[None, :, :, None] / radius  # (1, P, H, 1)
    cos, sin = math.cos(angle), math.sin(angle)
    signed = distance(cos * across + sin * down, cos * down - sin * across) * radius  # (P, P, H, W)
    return ((0.5 - signed / pixel).clamp(0, 1) * 255).round().to(torch.uint8)


# Signed distances, negative inside, to shapes that the unit circle encloses tightly; v points down.


def _square(u: Tensor, v: Tensor) -> Tensor:
    across, down = u.abs() - math.sqrt(0.5), v.abs() - math.sqrt(0.5)
    outside = torch.hypot(across.clamp_min(0), down.clamp_min(0))
    return outside + torch.maximum(across, down).clamp_max(0)


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    """Distance to first order, implicit function over gradient, for the half axes 1 and 1/2."""
    value = torch.hypot(u, 2 * v)
    slope = torch.hypot(u, 4 * v) / value.clamp_min(1e-6)
    return (value - 1) / slope.clamp_min(1)  # the slope is 1 to 2 everywhere, but 0 / 0 at the centre


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """A square on its tip with half a disc on each upper side. Source: Quilez, 2D distance functions."""
    radius = 0.5 / (1.5 - math.sqrt(0.5))  # of the enclosing circle, in units of the square's diagonal
    x, y = u.abs() * radius, radius - v * radius  # the tip is the origin, y points up
    to_disc = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(0.125)
    along = 0.5 * (x + y).clamp_min(0)
    to_sides = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - along, y - along)) * torch.sign(x - y)
    return torch.where(x + y > 1, to_disc, to_sides) / radius


SHAPES = ((_square, math.pi / 2), (_ellipse, math.pi), (_heart, 2 * math.pi))
