"""Pictures as uint8 tensors: the one place where they are decoded, converted and fitted to a size.

Shapes: N images, C channels (1 grey or 3 RGB), H height, W width, F label columns.
"""

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile
from torch import Tensor

from vae_lab.errors import DataError, one_line

FITS = ("resize", "crop", "pad")
KINDS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")  # Pillow's others run programs or guess
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
        num_skipped: Pictures that could not be used and are left out.
    """

    pixels: Tensor
    labels: Tensor
    factors: tuple[str, ...]
    num_test: int
    num_val: int = 0
    num_skipped: int = 0


def check_fit(image_shape: tuple[int, int, int], fit: str, source_size: int = 0) -> tuple[int, int, int]:
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
    if height < 1:
        raise ValueError(f"image_size must be an integer >= 1, got {height}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit}")
    if fit == "pad" and source_size > height:
        raise ValueError(f"image_size must be >= {source_size} with fit=pad, got {height}")
    return channels, height, width


def fit_pixels(pixels: Tensor, image_shape: tuple[int, int, int], fit: str) -> Tensor:
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
    if tuple(pixels.shape[1:]) == tuple(image_shape):
        return pixels
    if fit == "pad":
        check_fit(image_shape, fit, max(pixels.shape[2:]))
    if fit == "crop":
        side = min(pixels.shape[2:])
        top, left = ((length - side) // 2 for length in pixels.shape[2:])
        pixels = pixels[..., top : top + side, left : left + side]
    height, width = pixels.shape[2:]
    top, left = (size - height) // 2, (size - width) // 2
    fitted = torch.zeros(len(pixels), channels, size, size, dtype=torch.uint8)
    step = max(1, CHUNK_PIXELS // (height * width))
    for chunk, part in zip(pixels.split(step), fitted.split(step), strict=True):
        if channels < chunk.shape[1]:
            # The luma in the 16-bit fixed point of Pillow's mode "L", so that both agree bit for bit.
            red, green, blue = chunk.int().unbind(1)
            chunk = ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)[:, None]
        if fit == "pad":
            part[..., top : top + height, left : left + width] = chunk  # one channel broadcasts to three
        else:
            part[:] = F.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
    return fitted


def decode(path: Path, image_shape: tuple[int, int, int], fit: str, background: tuple[int, ...]) -> Tensor:
    """Decodes one picture file: upright by its EXIF tag, 16 bits scaled to 8, transparency over a background.

    Args:
        path: A picture of one of `KINDS`, whatever its ending; of an animation, the first frame is taken.
        image_shape: (C, size, size).
        fit: See `fit_pixels`.
        background: Red, green and blue, 0 to 255.

    Returns:
        uint8 (C, size, size).

    Raises:
        DataError: If the picture is damaged, too large, or of a kind whose range of values is unknown.
    """
    channels, size, _ = image_shape
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a file")  # opening a pipe would wait for ever
        with open(path, "rb") as file:
            image = _open(file)
            if fit != "pad":
                # Large JPEGs decode much faster at a reduced scale. Below four times the size it would show.
                image.draft(None, (4 * size, 4 * size))
            ImageOps.exif_transpose(image, in_place=True)
            pixels = torch.from_numpy(_to_uint8(image, channels, background))
        return fit_pixels(pixels.permute(2, 0, 1)[None], image_shape, fit)[0].contiguous()
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly every type there is
        reason = getattr(error, "strerror", None) or one_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "no picture that can be read"
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            reason = f"more than {MAX_PIXELS:,} pixels"
        raise DataError(f"{printable(path)}: {reason}") from error


def printable(path: str | Path) -> str:
    """A path for a message, escaped where it holds line breaks, control characters or bytes that are no text."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _open(file: BinaryIO) -> Image.Image:
    """Opens a picture, unless Pillow would pass over its damage or does not know the range of its values."""
    image = Image.open(file, formats=KINDS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
    if image.format == "PNG":
        image.verify()  # the checksums; it ends the use of this object
        image = Image.open(file, formats=KINDS)
    if image.format == "JPEG" and b"\xff\xd9" not in file.read():  # Pillow has read up to the first scan
        raise ValueError("the end of the picture is missing")
    advice = "save the picture with 8 or 16 bits a channel"
    if image.mode == "F":
        raise ValueError(f"floating-point pixels have no known range: {advice}")
    if isinstance(image, TiffImageFile) and set(image.tag_v2.get(SAMPLEFORMAT, (1,))) - {1, 4}:
        raise ValueError(f"signed pixels have no known range: {advice}")
    if _bits(image) > 16:
        raise ValueError(f"32-bit pixels have no known range: {advice}")
    if "transparency" in image.info and ";16" in str(image.tile):
        raise ValueError("a transparent colour of 16 bits: save the picture with an alpha channel")
    if "transparency" in image.info and image.format == "PNG" and image.mode == "L":
        levels = {"L;2": 4, "L;4": 16}.get(str(image.tile[0][3]), 256)  # Pillow spreads the pixels only over 0 ... 255
        image.info["transparency"] = image.info["transparency"] * 255 // (levels - 1)
    return image


def _bits(image: Image.Image) -> int:
    """Of a channel; Pillow has brought those that are not TIFF to at most 16."""
    if not image.mode.startswith("I"):
        return 8
    return image.tag_v2[BITSPERSAMPLE][0] if isinstance(image, TiffImageFile) else 16


def _to_uint8(image: Image.Image, channels: int, background: tuple[int, ...]) -> np.ndarray:
    """Returns the pixels as uint8 (H, W, C)."""
    if image.mode.startswith("I"):
        largest = 2 ** _bits(image) - 1
        values = np.asarray(image).astype(np.uint32)
        if isinstance(image, TiffImageFile) and image.tag_v2[PHOTOMETRIC_INTERPRETATION] == 0:
            values = largest - values  # zero is white, which Pillow heeds up to 8 bits only
        image = Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # LAB has no direct way to grey
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(image.height, image.width, channels)
