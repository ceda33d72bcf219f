"""Pictures as uint8 tensors: the one place where they are decoded, converted, fitted to a size and checked.

Shapes: N images, C channels (1 grey or 3 RGB), H height, W width, F label columns.
"""

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from vae_lab.errors import DataError

FITS = ("resize", "crop", "pad")
MAX_PIXELS = 50_000_000
CHUNK_PIXELS = 2**22


class Images(NamedTuple):
    """What every source returns.

    Attributes:
        pixels: uint8 (N, C, H, W), 0 to 255.
        labels: int64 (N, F): one class, several factors, or F = 0 columns when there are no labels.
        factors: The F column names.
        num_test: The last `num_test` images are the source's own test split; 0 when it has none.
        num_val: The `num_val` images before those are its own validation split; 0 when it has none.
    """

    pixels: Tensor
    labels: Tensor
    factors: tuple[str, ...]
    num_test: int
    num_val: int = 0


def check_fit(image_shape: Sequence[int], fit: str, source_size: int = 0) -> tuple[int, int, int]:
    """Checks how a user wants images fitted, before any file is touched.

    Args:
        image_shape: (C, size, size) with C 1 or 3 and size >= 1.
        fit: One of `FITS`.
        source_size: Height and width of the source's images in pixels, 0 when unknown.

    Returns:
        The image shape as a tuple.

    Raises:
        ValueError: If a value is out of range, or `fit` is "pad" and the images are larger than the size.
    """
    channels, height, width = image_shape
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if height != width:
        raise ValueError(f"image_shape must be square, got {list(image_shape)}")
    if type(height) is not int or height < 1:
        raise ValueError(f"image_size must be an integer >= 1, got {height}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit}")
    if fit == "pad" and source_size > height:
        raise ValueError(f"image_size must be >= {source_size} with fit=pad, got {height}")
    return channels, height, width


def fit_pixels(pixels: Tensor, image_shape: Sequence[int], fit: str) -> Tensor:
    """Converts the channels of images and brings them to one size.

    Args:
        pixels: uint8 (N, C, H, W), C 1 or 3.
        image_shape: (C', size, size). Grey is repeated to RGB; RGB becomes ITU-R 601 luma.
        fit: "resize" (antialiased bilinear), "crop" (centre square, then resize) or "pad" (centred zeros).

    Returns:
        uint8 (N, C', size, size); `pixels` itself when nothing changes.

    Raises:
        ValueError: If `fit` is "pad" and the images are larger than the size.
    """
    channels, size, _ = image_shape
    num_images, _, height, width = pixels.shape
    if tuple(pixels.shape[1:]) == tuple(image_shape):
        return pixels
    if fit == "pad":
        check_fit(image_shape, fit, max(height, width))
    fitted = torch.empty(num_images, channels, size, size, dtype=torch.uint8)
    step = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, num_images, step):
        chunk = pixels[start : start + step]
        grey = _luma(chunk) if channels == 1 and chunk.shape[1] == 3 else chunk
        fitted[start : start + step] = _to_size(grey, size, fit)  # one channel broadcasts to three
    return fitted


def _luma(rgb: Tensor) -> Tensor:
    """ITU-R 601 luma in the 16-bit fixed point of Pillow's mode "L", so that both agree bit for bit."""
    red, green, blue = rgb.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8).unsqueeze(1)


def _to_size(pixels: Tensor, size: int, fit: str) -> Tensor:
    height, width = pixels.shape[-2:]
    if fit == "pad":
        left, top = (size - width) // 2, (size - height) // 2
        return F.pad(pixels, (left, size - width - left, top, size - height - top))
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)


def decode(path: str | PathLike[str], image_shape: Sequence[int], fit: str) -> Tensor:
    """Decodes one picture file: upright by its EXIF tag, 16 bits scaled to 8, transparency over black.

    Args:
        path: A file that Pillow can read; of an animation, the first frame is taken.
        image_shape: (C, size, size).
        fit: See `fit_pixels`.

    Returns:
        uint8 (C, size, size).

    Raises:
        DataError: If the picture is damaged, too large, or of a kind whose range of values is unknown.
    """
    channels, size, _ = image_shape
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
            if fit != "pad":
                # Large JPEGs decode much faster at a reduced scale. Below four times the size it would show.
                image.draft(None, (4 * size, 4 * size))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = torch.from_numpy(_to_uint8(image, channels))
        return fit_pixels(pixels.permute(2, 0, 1)[None], image_shape, fit)[0].contiguous()
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly every type there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: {reason}") from error


def _to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    """Returns the pixels as uint8 (H, W, C)."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: save the picture with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels must be 8 or 16 bit, got {values.min()} to {values.max()}")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # rounds 255 / 65535 * values
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(image.height, image.width, channels)
