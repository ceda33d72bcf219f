"""Pictures as uint8 tensors: the one place where they are decoded, converted and fitted to a size.

Shapes: N images, C channels (1 grey or 3 RGB), H height, W width, F label columns.
"""

import ctypes
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base
from torch import Tensor

from vae_lab.errors import DataError, one_line, printable

FITS = ("resize", "crop", "pad")
KINDS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")  # Pillow's others run programs or guess
ADVICE = "save the picture with 8 or 16 bits a channel, as grey or RGB"
INK_SET = 332  # a tag of TIFF: 1 is CMYK
MAX_PIXELS = 50_000_000
CHUNK_PIXELS = 2**22

TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader takes planes of 16 bits for planes of 8
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is wrong with a picture is said once, by `decode`
for kind in ("Error", "Warning"):
    with suppress(AttributeError):  # where libtiff is a hidden part of Pillow, it can write to stderr
        getattr(ctypes.CDLL(Image.core.__file__), f"TIFFSet{kind}Handler")(None)


class Images(NamedTuple):
    """What every source returns.

    Attributes:
        pixels: uint8 (N, C, H, W), 0 to 255.
        labels: int64 (N, F): one class, several factors, or F = 0 columns when there are no labels.
        factors: The F column names.
        num_test: The last `num_test` images are the source's own test split; 0 when it has none.
        num_val: The `num_val` images before those are its own validation split; 0 when it has none.
        num_skipped: Pictures that could not be used and are left out.
        class_names: Of the values 0, 1, ... of the first factor; empty where they are numbers.
        release: Gives back the memory that pixels of a mapped file took, and forgets what was written to them; None
            where they are in memory.
    """

    pixels: Tensor
    labels: Tensor
    factors: tuple[str, ...]
    num_test: int
    num_val: int = 0
    num_skipped: int = 0
    class_names: tuple[str, ...] = ()
    release: Callable[[], None] | None = None


def check_fit(image_shape: tuple[int, int, int], fit: str, source_size: int = 0) -> tuple[int, int, int]:
    """Checks how a user wants images fitted, before any file is touched, and returns their shape as a tuple.

    Args:
        image_shape: (C, size, size) with C 1 or 3 and size >= 1.
        fit: One of `FITS`; images that are larger than the size cannot be padded.
        source_size: Height and width of the source's images in pixels, 0 when unknown.
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
        DataError: If the picture is damaged, too large, or of a kind whose values are not known for sure.
    """
    channels, size, _ = image_shape
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a file")  # opening a pipe would wait for ever
        with open(path, "rb") as file:
            image = _open(file)
            if fit != "pad":
                # Large JPEGs decode much faster at a reduced scale. Below four times the size it would show.
                image.draft(None, (4 * size, 4 * size))
            turned = image.getexif().get(Base.Orientation)
            if isinstance(turned, bytes | tuple) and turned:  # not of the standard's type, which alone Pillow heeds
                image.getexif()[Base.Orientation] = turned[0]
            ImageOps.exif_transpose(image, in_place=True)
            pixels = torch.from_numpy(_to_uint8(image, channels, background)).permute(2, 0, 1)[None]
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly every type there is
        raise DataError(f"{printable(path)}: {_reason(error, path)}") from error
    try:
        return fit_pixels(pixels, image_shape, fit)[0].contiguous()
    except ValueError as error:
        raise DataError(f"{printable(path)}: {error}") from error


def _reason(error: Exception, path: Path) -> str:
    """What is wrong with a picture, in plain words."""
    if isinstance(error, UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(12)
        what = "" if start else ": the file is empty"
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            what = f": a TIFF that is damaged or of an unusual layout; {ADVICE}"
        if start[4:8] == b"ftyp":
            what = " (HEIC, AVIF or a video): save the picture as PNG or JPEG"
        return f"no picture that can be read{what}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS:,} pixels"
    words = one_line(error)
    if isinstance(error, DataError):
        return words
    if reason := getattr(error, "strerror", None):
        return reason
    is_plain = re.search("truncated|broken|unsupported|too large", words, re.IGNORECASE)
    return f"damaged, or of a kind that is not read{f' ({words})' if is_plain else ''}"


def _open(file: BinaryIO) -> Image.Image:
    """Opens a picture, unless Pillow would pass over its damage or get its values wrong; mends what can be mended."""
    image: Image.Image = Image.open(file, formats=KINDS)
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
    if image.format == "PNG":
        image.verify()  # the checksums; it ends the use of this object
        image = Image.open(file, formats=KINDS)
    if image.format in ("JPEG", "MPO") and b"\xff\xd9" not in file.read():  # Pillow has read up to the first scan
        raise DataError("the end of the picture is missing")
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if image.mode == "F":
        raise DataError(f"floating-point pixels have no known range: {ADVICE}")
    if set(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))) - {1, 4}:
        raise DataError(f"signed pixels have no known range: {ADVICE}")
    if image.mode.startswith("I") and tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] > 16:
        raise DataError(f"32-bit pixels have no known range: {ADVICE}")
    if image.mode in ("LA", "La", "PA", "LAB") and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2:
        raise DataError(f"planes of another kind than grey, RGB and CMYK: {ADVICE}")
    if image.mode == "CMYK" and tags.get(INK_SET, 1) != 1:
        raise DataError(f"inks of unknown colours: {ADVICE}")
    if image.mode in ("P", "PA") and (colours := tags.get(TiffImagePlugin.COLORMAP)):
        if len(colours) != 3 * 2 ** tags[TiffImagePlugin.BITSPERSAMPLE][0]:
            raise DataError(f"a palette of {len(colours) // 3} colours, too few or too many: {ADVICE}")
        if max(colours) < 256:  # they have 8 bits instead of 16
            image.putpalette(bytes(colours), "RGB;L")
    layout: Any = getattr(image, "tile", None)
    if "transparency" in image.info and ";16" in str(layout):
        raise DataError("a transparent colour of 16 bits: save the picture with an alpha channel")
    if "transparency" in image.info and image.format == "PNG" and image.mode == "L":
        levels = {"L;2": 4, "L;4": 16}.get(str(layout[0].args), 256)  # Pillow spreads the pixels only over 0 ... 255
        image.info["transparency"] = image.info["transparency"] * 255 // (levels - 1)
    if image.format == "GIF" and (box := layout[0].extents) != (0, 0, *image.size):
        frame = image.convert("RGBA").crop(box)
        image = Image.new("RGBA", image.size)  # what a smaller first frame leaves free is transparent
        image.paste(frame, box[:2])
    if image.format == "BMP" and layout[0].args[0] == "BGR;15":
        file.seek(14)
        header = file.read(60)
        if int.from_bytes(header[:4], "little") >= 56 and header[52:56] == b"\0\x80\0\0":  # its mask of alpha
            file.seek(layout[0].offset)
            image = Image.frombytes("RGBA", image.size, file.read(), "raw", "BGRA;15", *layout[0].args[1:])
    return image


def _to_uint8(image: Image.Image, channels: int, background: tuple[int, ...]) -> np.ndarray:
    """Returns the pixels as uint8 (H, W, C)."""
    if image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        largest = 2 ** tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1  # Pillow has brought others to 16 bits
        values = np.asarray(image).astype(np.uint32)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            values = largest - values  # zero is white, which Pillow heeds up to 8 bits only
        image = Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")  # it has no direct way to others
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # LAB has no direct way to grey
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(image.height, image.width, channels)
