"""Folders of small pictures, good and damaged."""

from pathlib import Path

import numpy as np
from PIL import Image

from vae_lab.data.decoding import Images
from vae_lab.data.image_folder import ImageFolder


def draw(path: Path, value: int = 100, size: tuple[int, int] = (8, 8), **options) -> Path:
    """A picture of noise, whose first pixel has the value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (*size, 3), np.uint8)
    noise[0, 0] = value
    Image.fromarray(noise).save(path, **options)
    return path


def draw_many(root: Path, number: int = 40) -> Path:
    """000.png, 001.png, ..., with their number as the first pixel."""
    for value in range(number):
        draw(root / f"{value:03}.png", value)
    return root


def read(tmp_path: Path, on_bad: str = "error", size: int = 8, fit: str = "resize") -> Images:
    """Read the folder `in` by way of the cache folder `cache`."""
    return ImageFolder(str(tmp_path / "in"), (3, size, size), fit, str(tmp_path / "cache"), on_bad=on_bad).read()


def values(images: Images) -> list[int]:
    """The first pixel of every picture."""
    return images.pixels[:, 0, 0, 0].tolist()


def flipped(content: bytes, at: int) -> bytes:
    """The bytes with one bit changed."""
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
