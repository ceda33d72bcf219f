"""Pictures byte by byte: of kinds that Pillow reads but does not write, and with headers that promise too much."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: grey, grey with alpha, RGB, RGBA


def save(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(values: np.ndarray, more: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """Values (H, W) or (H, W, C), uint8 or uint16; `size` is a (width, height) to promise instead."""
    height, width = values.shape[:2]
    bits, channels = 8 * values.itemsize, values.size // (height * width)
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, PNG_COLOURS[channels], 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = png_chunk(b"IHDR", header) + more + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(
    content: bytes | list[bytes],
    size: tuple[int, int],
    bits: int,
    channels: int = 1,
    meaning: int = 1,
    sign: int = 1,
    extra: int | None = None,
    order: str = "<",
    more: dict[int, tuple[str, list[int]]] | None = None,
) -> bytes:
    """A TIFF without compression.

    Args:
        content: of its strip; or of several, one for each channel.
        size: width and height.
        bits: of a value.
        channels: of a pixel.
        meaning: 0 grey where zero is white, 1 grey, 2 RGB, 3 a palette, 5 CMYK, 6 YCbCr, 8 CIELAB.
        sign: 1 unsigned, 2 signed, 3 floating point.
        extra: 1 if the last channel is an alpha that the others are multiplied with, 2 if they are not, 0 if unknown.
        order: of bytes.
        more: further tags, number -> (B 8, H 16 or I 32 bits, values).
    """
    strips = [content] if isinstance(content, bytes) else content
    starts = [1024 * 8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    tags = {256: ("I", [size[0]]), 257: ("I", [size[1]]), 258: ("H", [bits] * channels), 259: ("H", [1])}
    tags |= {262: ("H", [meaning]), 273: ("I", starts), 277: ("H", [channels]), 278: ("I", [size[1]])}
    tags |= {279: ("I", [len(strip) for strip in strips]), 339: ("H", [sign] * channels)}
    tags |= {284: ("H", [2])} if len(strips) > 1 else {}
    tags |= {338: ("H", [extra])} if extra is not None else {}
    tags |= {530: ("H", [1, 1])} if meaning == 6 else {}
    entries, beyond = b"", b""
    tags |= more or {}
    for number, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            beyond_at = 8 + 2 + 12 * len(tags) + 4 + len(beyond)
            beyond += packed
            packed = struct.pack(f"{order}I", beyond_at)
        entries += struct.pack(f"{order}HHI", number, {"B": 1, "H": 3, "I": 4}[kind], len(values)) + packed.ljust(
            4, b"\0"
        )
    head = (
        (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags)) + entries + bytes(4) + beyond
    )
    return head.ljust(1024 * 8, b"\0") + b"".join(strips)


def gif(screen: tuple[int, int], frame: tuple[int, int], at: tuple[int, int] = (0, 0)) -> bytes:
    """One frame on a screen, black and white; their widths and heights. A frame of one pixel is white."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", *at, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def webp(width: int, height: int, animated: bool = False) -> bytes:
    """A header with nothing behind it."""
    frame = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(19)
    chunks = b"VP8L" + struct.pack("<I", len(frame)) + frame
    if animated:
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        head = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
        chunks = head + b"ANMF" + struct.pack("<I", 16 + len(chunks)) + bytes(6) + size + bytes(4) + chunks
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def bmp(width: int, height: int, content: bytes = bytes(50), bits: int = 24, masks: Sequence[int] = ()) -> bytes:
    """A BMP; with masks of red, green, blue and alpha it has the long header that says them."""
    length, packing = (124, 3) if masks else (40, 0)
    head = struct.pack("<IiiHHIIiiII", length, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(length, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + length + len(content), 0, 0, 14 + length) + head + content
