"""B5 and B7: pictures of every kind come out with the right values, or are refused by name."""

import contextlib
import itertools
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import bmp, gif, png, png_chunk, save, tiff, webp
from PIL import Image, ImageCms

from vae_lab.data.decoding import MAX_PIXELS, decode
from vae_lab.errors import DataError

pytestmark = pytest.mark.fault

WHITE = (255, 255, 255)
RAMP = np.array([[0, 1, 128, 257], [32768, 65278, 65406, 65535]], np.uint16)
HIGH = (RAMP >> 8).astype(np.uint8)
SIZE = (4, 2)


def stack(*channels: np.ndarray) -> np.ndarray:
    return np.stack(channels, -1)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Fails if the memory in use grows by 100 MB, even for a moment."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak()
    yield
    assert peak() - before < 100_000


def peak() -> int:
    """Of the memory of this process, in kB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def read(content: bytes, tmp_path: Path, channels: int = 3, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """Decode a picture of 4 x 2 pixels, without a change of its size; int (H, W, C)."""
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    pixels = decode(path, (channels, 4, 4), "pad", background)
    return pixels[:, 1:3].permute(1, 2, 0).numpy().astype(int)


def over(colour: np.ndarray, alpha: np.ndarray, below: int = 255) -> np.ndarray:
    return colour / 65535 * (alpha / 65535) * 255 + below * (1 - alpha / 65535)


ALPHA = np.array([[0, 65535, 32896, 257], [0, 65535, 32896, 257]], np.uint16)


def test_b5_12_bits_and_other_maxima_are_scaled(tmp_path):
    for content in (
        b"P5 4 2 65535\n" + RAMP.astype(">u2").tobytes(),
        b"P6 4 2 65535\n" + stack(RAMP, RAMP, RAMP).astype(">u2").tobytes(),
    ):
        assert np.abs(read(content, tmp_path) - RAMP[..., None] / 65535 * 255).max() <= 0.5
    pixels = read(tiff(bytes([0xFF, 0xF0, 0x00, 0x80, 0x07, 0xFF] * 2), SIZE, 12), tmp_path, channels=1)
    np.testing.assert_array_equal(pixels[0, :, 0], [255, 0, 128, 127])
    values = np.array([[0, 1023, 512, 1]] * 2, ">u2")
    np.testing.assert_array_equal(read(b"P5 4 2 1023\n" + values.tobytes(), tmp_path)[0, :, 0], [0, 255, 128, 0])
    np.testing.assert_array_equal(read(b"P2 4 2 7\n" + b"0 7 3 1 " * 2, tmp_path)[0, :, 0], [0, 255, 109, 36])


def test_b5_transparency_is_over_the_background(tmp_path):
    alpha = (ALPHA >> 8).astype(np.uint8)
    webp_alpha = save(Image.fromarray(stack(HIGH, HIGH, HIGH, alpha)), "WEBP", lossless=True, exact=True)
    for content in (webp_alpha, png(stack(HIGH, alpha)), png(stack(RAMP, RAMP, RAMP, ALPHA))):
        for channels, below in itertools.product([1, 3], [0, 100, 255]):
            pixels = read(content, tmp_path, channels, (below,) * 3)
            assert np.abs(pixels - over(RAMP, ALPHA, below)[..., None]).max() <= 2
            assert np.abs(pixels[:, 0] - below).max() == 0  # what an alpha of 0 hides does not appear


def test_b5_transparent_palette_entries_and_colours(tmp_path):
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    greens = {"one": 1, "none": 0, "half": bytes([255, 128])}
    expected = {"one": (9, 8, 7), "none": (0, 255, 0), "half": (4, 132, 3)}
    for name, transparency in greens.items():
        pixels = read(save(palette, "PNG", transparency=transparency), tmp_path, background=(9, 8, 7))
        assert np.abs(pixels - expected[name]).max() <= 1, name
    assert (read(save(palette, "GIF", transparency=1), tmp_path, background=(9, 8, 7)) == (9, 8, 7)).all()
    key = png(HIGH, png_chunk(b"tRNS", b"\0\xff"))
    assert read(key, tmp_path, 1, (7, 7, 7))[1, 3, 0] == 7
    assert read(key, tmp_path, 1, (7, 7, 7))[1, 0, 0] == 128
    colours = png(stack(HIGH, HIGH, HIGH), png_chunk(b"tRNS", b"\0\xff" * 3))
    assert read(colours, tmp_path, 3, (9, 8, 7))[1, 3].tolist() == [9, 8, 7]


COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]]] * 2, np.uint8)
LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
SOFT = np.array([[[200, 100, 100], [100, 180, 100], [90, 90, 160], [128, 128, 128]]] * 2, np.uint8)


def test_b5_other_colour_spaces_are_converted(tmp_path):
    inks = stack(*np.moveaxis(255 - COLOURS, -1, 0), np.zeros((2, 4), np.uint8))
    for content in (
        tiff(inks.tobytes(), SIZE, 8, 4, meaning=5),
        tiff((inks.astype(np.uint16) * 257).tobytes(), SIZE, 16, 4, meaning=5),
        save(Image.fromarray(COLOURS).quantize(4), "PNG"),
        save(Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4), "GIF"),
    ):
        assert np.abs(read(content, tmp_path) - COLOURS).max() <= 1
    ycc = np.asarray(Image.fromarray(SOFT).convert("YCbCr"))
    assert np.abs(read(tiff(ycc.tobytes(), SIZE, 8, 3, meaning=6), tmp_path) - SOFT).max() <= 2
    lab = ImageCms.applyTransform(Image.fromarray(SOFT), LAB)
    content = save(lab, "TIFF")
    assert np.abs(read(content, tmp_path) - SOFT).max() <= 3
    grey = np.asarray(Image.fromarray(SOFT).convert("L"))
    assert np.abs(read(content, tmp_path, channels=1)[..., 0] - grey).max() <= 3


@pytest.mark.parametrize("progressive", [False, True])
def test_b5_a_cmyk_jpeg_of_adobe_is_not_inverted(progressive: bool, tmp_path):
    inks = Image.new("CMYK", (16, 16), (0, 200, 200, 0))
    content = save(inks, "JPEG", quality=95, progressive=progressive)
    assert b"Adobe" in content
    (tmp_path / "a.jpg").write_bytes(content)
    pixel = decode(tmp_path / "a.jpg", (3, 16, 16), "resize", WHITE)[:, 8, 8]
    assert (pixel.int() - torch.tensor([255, 55, 55])).abs().max() <= 6


def test_b5_few_bits_are_spread_over_the_range(tmp_path):
    nibbles = tiff(bytes([0x0F, 0x35] * 2), SIZE, 4)
    np.testing.assert_array_equal(read(nibbles, tmp_path)[0, :, 0], [0, 255, 51, 85])
    bits = np.array([[True, False, True, False]] * 2)
    np.testing.assert_array_equal(read(save(Image.fromarray(bits), "PNG"), tmp_path)[..., 0], bits * 255)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_b5_a_transparent_grey_of_few_bits_is_found(bits: int, tmp_path):
    levels = 2**bits
    header = struct.pack(">IIBBBBB", levels, 1, bits, 0, 0, 0, 0)
    row = np.packbits([level >> bit & 1 for level in range(levels) for bit in reversed(range(bits))]).tobytes()
    for clear in range(levels):
        content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"tRNS", struct.pack(">H", clear))
        content += png_chunk(b"IDAT", zlib.compress(b"\0" + row)) + png_chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(content)
        pixels = decode(tmp_path / "a.png", (3, levels, levels), "pad", (200, 0, 7))[:, (levels - 1) // 2].T.tolist()
        grey = [[level * 255 // (levels - 1)] * 3 for level in range(levels)]
        assert pixels == [*grey[:clear], [200, 0, 7], *grey[clear + 1 :]]


SMALL = np.zeros((2, 4, 3), np.uint8)
TOO_LARGE = {
    "png 400 M": png(SMALL, size=(20_000, 20_000)),
    "png 51 M": png(SMALL, size=(7142, 7142)),
    "png 2^62": png(SMALL, size=(2**31 - 1, 2**31 - 1)),
    "gif": gif((20_000, 20_000), (1, 1)),
    "gif frame": gif((1, 1), (65_535, 65_535)),
    "webp": webp(16_383, 16_383),
    "webp animation": webp(16_383, 16_383, animated=True),
    "tiff": tiff(bytes(100), (20_000, 20_000), 8),
    "bmp": bmp(20_000, 20_000),
    "bmp upside down": bmp(20_000, -20_000),
    "ppm": b"P6 20000 20000 255\n" + bytes(100),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
def test_b7_large_headers_are_refused_before_decoding(kind: str, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(TOO_LARGE[kind])
    for action in ("ignore", "error"):
        refused = pytest.raises(DataError, match=f"a.bin: .*more than {MAX_PIXELS:,} pixels")
        with warnings.catch_warnings(action=action), little_memory(), refused:
            decode(path, (3, 8, 8), "crop", WHITE)


def test_b7_a_small_picture_with_a_large_packed_comment_is_refused(tmp_path):
    packed = zlib.compress(bytes(200_000_000), 1)
    for name in (b"zTXt", b"iCCP"):
        content = png(SMALL, png_chunk(name, b"key\0\0" + packed))
        with little_memory(), pytest.raises(DataError, match="too large"):
            read(content, tmp_path)
