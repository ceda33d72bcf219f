"""Pictures byte by byte: of kinds that Pillow reads but does not write, and with headers that promise too much."""

import struct
import zlib

import numpy as np

PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: grey, grey with alpha, RGB, RGBA


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
    content: bytes, size: tuple[int, int], bits: int, channels: int = 1, meaning: int = 1, sign: int = 1, extra: int = 0
) -> bytes:
    """A TIFF of one strip.

    Args:
        content: of the strip.
        size: width and height.
        bits: of a value.
        channels: of a pixel.
        meaning: 0 grey where zero is white, 1 grey, 2 RGB, 5 CMYK, 6 YCbCr, 8 CIELAB.
        sign: 1 unsigned, 2 signed, 3 floating point.
        extra: 1 if the last channel is an alpha that the others are multiplied with, 2 if they are not.
    """
    tags = [(256, [size[0]]), (257, [size[1]]), (258, [bits] * channels), (259, [1]), (262, [meaning])]
    tags += [(273, [1024]), (277, [channels]), (278, [size[1]]), (279, [len(content)])]
    tags += [(338, [extra])] * bool(extra) + [(339, [sign] * channels)] + [(530, [1, 1])] * (meaning == 6)
    tags.sort()
    entries, beyond = b"", b""
    for number, values in tags:
        kind = "I" if number in (256, 257, 278, 279) else "H"
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        if len(packed) > 4:
            beyond_at = 8 + 2 + 12 * len(tags) + 4 + len(beyond)
            beyond += packed
            packed = struct.pack("<I", beyond_at)
        entries += struct.pack("<HHI", number, 4 if kind == "I" else 3, len(values)) + packed.ljust(4, b"\0")
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + beyond
    return head.ljust(1024, b"\0") + content


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """One frame on a screen; their widths and heights."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\x00;"


def webp(width: int, height: int, animated: bool = False) -> bytes:
    """A header with nothing behind it."""
    frame = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(19)
    chunks = b"VP8L" + struct.pack("<I", len(frame)) + frame
    if animated:
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        head = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
        chunks = head + b"ANMF" + struct.pack("<I", 16 + len(chunks)) + bytes(6) + size + bytes(4) + chunks
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def bmp(width: int, height: int) -> bytes:
    """A header with nothing behind it."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 104, 0, 0, 54) + head + bytes(50)
