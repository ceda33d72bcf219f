"""Images that are one array already, in a file of NumPy or of torch; reading it executes nothing."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_lab.data.decoding import Images, check_fit, fit_pixels
from vae_lab.errors import DataError, one_line, printable

ENDINGS = (".npy", ".npz", ".pt")
IMAGES, LABELS = ("x", "images"), ("y", "labels")  # names in a file of several arrays
SPLITS = ("x_train", "x_test")  # of which each may have a y_train, y_test
CHUNK = 4096  # images


class Arrays:
    """Images (N, H, W), (N, C, H, W), (N, H, W, C) or (N, C * H * W) from a `.npy`, `.npz` or `.pt` file.

    Whole numbers are 0 to 255, booleans 0 and 255, other numbers lie in [0, 1] and are rounded to 256 levels. A file of
    several arrays names them `x` or `images`, `y` or `labels`; or `x_train`, `y_train`, `x_test` and `y_test`, which
    are the splits. A file of one array has its labels, (N,) or (N, F), beside it: `NAME_labels.npy` of `NAME.npy`.

    Args:
        root: The file.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.

    Raises:
        ValueError: If an argument is out of range, or the file of another kind.
    """

    def __init__(self, root: str | None, image_shape: tuple[int, int, int], fit: str):
        self.path = Path(str(root or "")).expanduser()
        if self.path.suffix not in ENDINGS:
            raise ValueError(f"dataset.root must be a file of images, {', '.join(ENDINGS)}, got {root!r}")
        self.image_shape = check_fit(image_shape, fit)
        self.fit = fit

    def read(self) -> Images:
        """Returns the images and their labels; a `DataError` says what is wrong with the file."""
        arrays = load(self.path)
        beside = self.path.with_stem(f"{self.path.stem}_labels")
        if list(arrays) == [""] and beside.is_file():
            arrays["y"] = next(iter(load(beside).values()))
        pairs = [(name, name.replace("x", "y")) for name in SPLITS if name in arrays]
        if not pairs:
            name = next((name for name in ("", *IMAGES) if name in arrays), None)
            if name is None:
                known = f"{' or '.join(IMAGES)} (or {' and '.join(SPLITS)})"
                raise DataError(f"{printable(self.path)} has no {known}, but {', '.join(map(str, arrays))}")
            pairs = [(name, next((name for name in LABELS if name in arrays), "y"))]
        parts = [(self._pixels(arrays[x]), arrays.get(y)) for x, y in pairs]
        labels = [self._labels(found, len(pixels)) for pixels, found in parts]
        if len({part.shape[1] for part in labels}) > 1:
            raise DataError(f"{printable(self.path)}: x_train and x_test must both have the same label columns")
        num_factors = labels[0].shape[1]
        factors = ("label",) if num_factors == 1 else tuple(f"label {number}" for number in range(num_factors))
        num_test = len(parts[1][0]) if len(parts) > 1 else 0
        return Images(torch.cat([pixels for pixels, _ in parts]), torch.cat(labels), factors, num_test)

    def _pixels(self, array: np.ndarray) -> torch.Tensor:
        """Bytes (N, C, size, size)."""
        shape = array.shape
        if array.ndim == 2 and shape[1] == math.prod(self.image_shape):
            array = array.reshape(len(array), *self.image_shape)
        elif array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
            wanted = "(N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3"
            raise DataError(f"{printable(self.path)}: images must have the shape {wanted}, got {shape}")
        is_whole = array.dtype.kind in "iu"
        if array.dtype.kind not in "iubf":
            raise DataError(f"{printable(self.path)}: images must be numbers, got {array.dtype}")
        low, high, largest = array.min(), array.max(), 255 if is_whole else 1
        if not (low >= 0 and high <= largest):
            kind = "whole numbers in [0, 255]" if is_whole else "numbers in [0, 1]"
            raise DataError(f"{printable(self.path)}: pixels must be {kind}, got {low:g} to {high:g}")
        pixels = torch.empty(len(array), *self.image_shape, dtype=torch.uint8)
        for start in range(0, len(array), CHUNK):
            chunk = array[start : start + CHUNK]
            levels = chunk if is_whole else np.round(chunk.astype(np.float32) * 255)
            bytes_ = torch.from_numpy(np.ascontiguousarray(levels.astype(np.uint8)))
            pixels[start : start + CHUNK] = fit_pixels(bytes_, self.image_shape, self.fit)
        return pixels

    def _labels(self, array: np.ndarray | None, num_images: int) -> torch.Tensor:
        """Int64 (N, F)."""
        if array is None:
            return torch.empty(num_images, 0, dtype=torch.long)
        if array.ndim not in (1, 2) or len(array) != num_images:
            wanted = f"({num_images},) or ({num_images}, F)"
            raise DataError(f"{printable(self.path)}: labels must have the shape {wanted}, got {array.shape}")
        if array.dtype.kind not in "iub" or (array.size and array.min() < 0):
            raise DataError(f"{printable(self.path)}: labels must be whole numbers >= 0, got {array.dtype}")
        return torch.from_numpy(array.astype(np.int64).reshape(num_images, -1))


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; that of a file with one is named "".

    Raises:
        DataError: If it cannot be read, or holds more than arrays.
    """
    try:
        if path.suffix == ".pt":
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = np.load(path, allow_pickle=False)
            content = dict(content) if path.suffix == ".npz" else content
        if isinstance(content, tuple | list) and len(content) == 2:
            content = dict(zip("xy", content, strict=True))
        named = content if isinstance(content, dict) else {"": content}
        if len(named) == 1:
            named = {"": next(iter(named.values()))}
        return {
            name: each.numpy() if isinstance(each, torch.Tensor) else np.asarray(each) for name, each in named.items()
        }
    except Exception as error:  # a file that is none of these raises whatever the libraries like
        reason = getattr(error, "strerror", None) or one_line(error)
        advice = "it must hold arrays of numbers only" if path.is_file() else "set dataset.root to a file of images"
        raise DataError(f"cannot read {printable(path)}: {reason.split('. ')[0]}; {advice}") from error
