"""A table of made pictures: format x mode x bits x planes x byte order x alpha x orientation, and the right values."""

import itertools
import struct

import numpy as np
import pytest
from handmade import bmp, gif, png, png_chunk, save, tiff
from PIL import Image

from vae_lab.data.decoding import decode
from vae_lab.errors import DataError

pytestmark = pytest.mark.fault

SIZE = (4, 2)
BELOW = (10, 200, 30)
ALPHA = np.array([[0, 1, 0.2, 0.6], [1, 0.8, 0.4, 1]])
RED = np.array([[1, 0, 0.2, 0.4], [0.6, 0.8, 0.1, 0.3]])
COLOUR = np.stack([RED, RED[::-1] ** 2, 1 - RED], -1)


def read(content: bytes, tmp_path, channels: int = 3, size: int = 4) -> np.ndarray:
    """The decoded pixels of a picture of `SIZE`, or of a square, as int (H, W, C)."""
    (tmp_path / "a.bin").write_bytes(content)
    pixels = decode(tmp_path / "a.bin", (channels, size, size), "pad", BELOW).permute(1, 2, 0).numpy().astype(int)
    return pixels[1:3] if size == 4 else pixels


def over(colour: np.ndarray, alpha: np.ndarray | float = 1.0) -> np.ndarray:
    """Levels from 0 to 255 of a colour (H, W, 3) in [0, 1] over `BELOW`."""
    alpha = np.broadcast_to(alpha, colour.shape[:2])[..., None]
    return 255 * colour * alpha + np.array(BELOW) * (1 - alpha)


GREY = np.stack([RED] * 3, -1)
MODES = {  # the channels in [0, 1], the meaning and the extra tag of a TIFF, and what it looks like
    "grey": ([RED], 1, None, over(GREY)),
    "white is zero": ([1 - RED], 0, None, over(GREY)),
    "grey alpha": ([RED, ALPHA], 1, 2, over(GREY, ALPHA)),
    "grey premultiplied": ([RED * ALPHA, ALPHA], 1, 1, over(GREY, ALPHA)),
    "grey unknown": ([RED, ALPHA], 1, 0, over(GREY)),
    "rgb": ([*np.moveaxis(COLOUR, -1, 0)], 2, None, over(COLOUR)),
    "rgb alpha": ([*np.moveaxis(COLOUR, -1, 0), ALPHA], 2, 2, over(COLOUR, ALPHA)),
    "rgb premultiplied": ([*np.moveaxis(COLOUR, -1, 0) * ALPHA, ALPHA], 2, 1, over(COLOUR, ALPHA)),
    "rgb unknown": ([*np.moveaxis(COLOUR, -1, 0), ALPHA], 2, 0, over(COLOUR)),
    "cmyk": ([*np.moveaxis(1 - COLOUR, -1, 0), 0 * RED], 5, None, over(COLOUR)),
}
UNUSUAL = "no picture that can be read: a TIFF that is damaged or of an unusual layout; save the picture with 8 or 16"
REFUSED = {  # (mode, bits, byte order, planes); None is any
    ("white is zero", 16, ">", False): UNUSUAL,
    **{(mode, 16, None, None): UNUSUAL for mode in ("grey alpha", "grey premultiplied")},
    **{(mode, 8, None, True): "planes of another kind" for mode in ("grey alpha", "grey premultiplied")},
    ("grey unknown", 16, None, False): UNUSUAL,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [False, True])
def test_tiff(mode: str, bits: int, order: str, planes: bool, tmp_path):
    channels, meaning, extra, expected = MODES[mode]
    if planes and len(channels) == 1:
        return
    stored = np.round(np.stack(channels, 0 if planes else -1) * (2**bits - 1)).astype(f"{order}u{bits // 8}")
    content = [plane.tobytes() for plane in stored] if planes else stored.tobytes()
    picture = tiff(content, SIZE, bits, len(channels), meaning, extra=extra, order=order)
    refused = next((REFUSED[key] for key in itertools.product((mode,), (bits,), (order, None), (planes, None))
                    if key in REFUSED), None)  # fmt: skip
    if refused:
        with pytest.raises(DataError, match=refused):
            read(picture, tmp_path)
        return
    # Pillow keeps the high byte of 16 bits, of alpha too: each costs less than a level.
    assert np.abs(read(picture, tmp_path) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["grey", "grey alpha", "rgb", "rgb alpha"])
@pytest.mark.parametrize("bits", [8, 16])
def test_png(mode: str, bits: int, tmp_path):
    channels, *_, expected = MODES[mode]
    values = np.round(np.stack(channels, -1) * (2**bits - 1)).astype(f"u{bits // 8}")
    assert np.abs(read(png(values), tmp_path) - expected).max() <= 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("stored", [8, 16])
def test_tiff_palette(bits: int, stored: int, tmp_path):
    """Some programs store 8 bits where the standard has 16."""
    levels = np.random.default_rng(bits).integers(0, 256, (3, 2**bits))
    levels[:, -1] = 255  # of 8 bits are those with nothing above
    index = np.array([[0, 1, 0, 1], [1, 1, 0, 0]]) * (2**bits - 1)
    rows = [
        sum(int(value) << (4 - 1 - i) * bits for i, value in enumerate(row)) << max(0, 8 - 4 * bits) for row in index
    ]
    content = b"".join(row.to_bytes(max(1, bits // 2), "big") for row in rows)
    colours = {320: ("H", (levels * (1 if stored == 8 else 257)).flatten().tolist())}
    picture = tiff(content, SIZE, bits, meaning=3, more=colours)
    np.testing.assert_array_equal(read(picture, tmp_path), levels.T[index])


UPRIGHT = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
STORED = {  # what is stored with each orientation, so that the picture is UPRIGHT
    1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1],
    5: UPRIGHT.T, 6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].T, 8: np.rot90(UPRIGHT, -1),
}  # fmt: skip


def exif(kind: str, orientation: int) -> bytes:
    """The least EXIF block with an orientation of a type: B 8, H 16, I 32 bits."""
    value = struct.pack(f"<{kind}", orientation).ljust(4, b"\0")
    return struct.pack("<2sHIHHHI", b"II", 42, 8, 1, 274, {"B": 1, "H": 3, "I": 4}[kind], 1) + value + bytes(4)


@pytest.mark.parametrize("kind", ["B", "H", "I"])
@pytest.mark.parametrize("holder", ["tiff", "packed tiff", "png", "16-bit png", "webp", "jpeg"])
def test_orientation_of_any_whole_type(holder: str, kind: str, tmp_path):
    for orientation, stored in STORED.items():
        stored = np.ascontiguousarray(stored)
        if holder == "tiff":
            content = tiff(stored.tobytes(), (4, 4), 8, more={274: (kind, [orientation])})
        elif holder == "packed tiff":
            block = Image.Exif()
            block[274] = orientation
            content = save(Image.fromarray(stored), "TIFF", exif=block, compression="tiff_lzw")
        elif holder.endswith("png"):
            levels = stored if holder == "png" else stored.astype(np.uint16) * 257
            content = png(levels, png_chunk(b"eXIf", exif(kind, orientation)))
        else:
            large = stored.repeat(8, 0).repeat(8, 1)  # the blocks of a JPEG
            options = {"lossless": True} if holder == "webp" else {"quality": 100}
            block = b"Exif\0\0" + exif(kind, orientation)
            content = save(Image.fromarray(large).convert("RGB"), holder, exif=block, **options)
        size = 32 if holder in ("webp", "jpeg") else 4
        (tmp_path / "a.bin").write_bytes(content)
        pixels = decode(tmp_path / "a.bin", (1, size, size), "pad", BELOW)[0].numpy().astype(int)
        assert np.abs(pixels[:: size // 4, :: size // 4] - UPRIGHT).max() <= (0 if holder != "jpeg" else 4), orientation


def test_a_gif_with_a_smaller_first_frame_stands_on_the_background(tmp_path):
    pixels = read(gif(SIZE, (1, 1), at=(2, 1)), tmp_path)
    expected = np.tile(BELOW, (2, 4, 1))
    expected[1, 2] = 255
    np.testing.assert_array_equal(pixels, expected)


MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0x8000), 32: (0xFF0000, 0xFF00, 0xFF, 0xFF000000)}


@pytest.mark.parametrize("bits", MASKS)
@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize("has_alpha", [True, False])
def test_bmp_with_an_alpha_bit(bits: int, flip: int, has_alpha: bool, tmp_path):
    alpha = (ALPHA > 0.5).astype(int)
    values = sum(
        np.round(channel * (mask // (mask & -mask))).astype(np.int64) * (mask & -mask)
        for channel, mask in zip([*np.moveaxis(COLOUR, -1, 0), alpha], MASKS[bits], strict=True)
    )
    rows = values[::-1] if flip == 1 else values  # the last row is the first, unless the height is negative
    masks = MASKS[bits] if has_alpha else (*MASKS[bits][:3], 0)
    pixels = read(bmp(4, 2 * flip, rows.astype(f"<u{bits // 8}").tobytes(), bits, masks), tmp_path)
    assert np.abs(pixels - over(COLOUR, alpha if has_alpha else 1.0)).max() <= (5 if bits == 16 else 1)  # 5 bits


WHOLE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (2, 4, 3), np.uint8))
ANIMATION = save(WHOLE, "PNG", save_all=True, append_images=[WHOLE.rotate(180)])
HEADER = ANIMATION.index(b"acTL") - 4
RAMP = np.array([[0, 1, 128, 257], [32768, 65278, 65406, 65535]], np.uint16)
SAID = {
    "float": (tiff(RAMP.astype("<f4").tobytes(), SIZE, 32, sign=3), "floating-point pixels have no known range"),
    "pfm": (b"Pf\n4 2\n-1.0\n" + RAMP.astype("<f4").tobytes(), "floating-point pixels have no known range"),
    "half": (tiff((RAMP >> 8).astype("<f2").tobytes(), SIZE, 16, sign=3), "no picture that can be read"),
    "int32": (tiff(RAMP.astype("<i4").tobytes(), SIZE, 32, sign=2), "signed pixels have no known range"),
    "uint32": (tiff(RAMP.astype("<u4").tobytes(), SIZE, 32), "32-bit pixels have no known range"),
    "int16": (tiff(RAMP.tobytes(), SIZE, 16, sign=2), "signed pixels have no known range"),
    "grey key": (png(RAMP, png_chunk(b"tRNS", RAMP[0, 3].tobytes())), "a transparent colour of 16 bits"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 2\n%%EndComments\n", "no picture that can be read"),
    "icon": (save(Image.new("RGB", (16, 16)), "ICO"), "no picture that can be read"),
    "animation of no frames": (
        ANIMATION[:HEADER] + png_chunk(b"acTL", bytes(8)) + ANIMATION[HEADER + 20 :],
        "damaged, or of a kind that is not read",
    ),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC, AVIF or a video"),
    "lab in planes": (tiff([bytes(8)] * 3, SIZE, 8, 3, meaning=8), "planes of another kind than grey, RGB and CMYK"),
    "other inks": (tiff(bytes(32), SIZE, 8, 4, meaning=5, more={332: ("H", [2])}), "inks of unknown colours"),
    "short palette": (tiff(bytes(8), SIZE, 8, meaning=3, more={320: ("H", [9] * 30)}), "a palette of 10 colours"),
    "bmp of unusual masks": (bmp(4, 2, bytes(16), 16, (0xF00, 0xF0, 0xF, 0xF000)), "Unsupported BMP bitfields"),
}


@pytest.mark.parametrize("kind", SAID)
def test_what_is_wrong_is_said_in_plain_words_and_once(kind: str, tmp_path, capfd):
    content, words = SAID[kind]
    with pytest.raises(DataError, match=rf"a\.bin: .*{words}") as refused:
        read(content, tmp_path)
    said = str(refused.value).partition("a.bin: ")[2]
    assert not any(jargon in said for jargon in ("index", "decoder", "raw mode", "-2", "NoneType"))
    assert capfd.readouterr() == ("", "")  # libtiff would write there
