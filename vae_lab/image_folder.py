"""A folder of pictures, decoded once in parallel into a memory-mapped cache file."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vae_lab.errors import DataError
from vae_lab.images import Images, check_fit, decode

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
CACHE_VERSION = 1  # raise it when a decoded pixel can come out different
CHUNK = 256
MAX_NAMED = 20

ACCEPTED = f"pictures ({' '.join(ENDINGS)})"

log = logging.getLogger(__name__)


class File(NamedTuple):
    """A picture file: its path below the root with forward slashes, and what tells that it changed."""

    path: str
    size: int
    mtime_ns: int


class ImageFolder:
    """Any tree of pictures.

    The first-level sub-folders are the classes; a flat folder has no labels. Where there are `train/` and
    `test/` or `val/`, these are the official splits, the classes are inside them, and everything else is left
    out. Hidden files are skipped.

    Args:
        root: The folder.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.images.fit_pixels`.
        cache_dir: Where the decoded pictures are kept.

    Raises:
        ValueError: If `image_shape` or `fit` is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str, cache_dir: str):
        self.root = Path(root).expanduser()
        self.image_shape = check_fit(image_shape, fit)
        self.fit = fit
        self.cache_dir = cache_dir

    def read(self) -> Images:
        """Reads the cache, or decodes the pictures and fills it.

        Raises:
            DataError: If there are no pictures, or some cannot be decoded or lie beside the class folders.
        """
        files = scan(self.root)
        if not files:
            raise DataError(f"no pictures in {self.root}: set dataset.root to a folder of {ACCEPTED}")
        files, inner_paths, num_test, num_val = _splits(files)
        classes = [path.partition("/")[0] if "/" in path else None for path in inner_paths]
        names = sorted({name for name in classes if name})
        if names and None in classes:
            stray = files[classes.index(None)].path
            raise DataError(f"{self.root} has class folders and loose pictures: move {stray} into a class folder")
        indices = {name: index for index, name in enumerate(names)}
        factors = ("class",) if names else ()
        labels = torch.tensor([[indices[name]] if names else [] for name in classes], dtype=torch.int64)
        pixels = read_cached(self.root, files, self.image_shape, self.fit, self.cache_dir)
        return Images(pixels, labels, factors, num_test, num_val)


def _splits(files: list[File]) -> tuple[list[File], list[str], int, int]:
    """Returns the files, training data first, their paths inside the split, and the numbers of test and val files."""
    tops = {file.path.partition("/")[0] for file in files if "/" in file.path}
    if "train" not in tops or (len(tops) > 1 and not tops & {"val", "test"}):
        return files, [file.path for file in files], 0, 0
    split = {name: [f for f in files if f.path.startswith(f"{name}/")] for name in ("train", "val", "test")}
    ordered = split["train"] + split["val"] + split["test"]
    if len(ordered) < len(files):
        log.warning("%d pictures outside train/, val/ and test/ are left out", len(files) - len(ordered))
    inner_paths = [file.path.partition("/")[2] for file in ordered]
    return ordered, inner_paths, len(split["test"]), len(split["val"])


def scan(root: Path) -> list[File]:
    """Lists the picture files below a folder, sorted by path.

    Raises:
        DataError: If a folder or file cannot be read.
    """
    files, folders = [], [str(root)]
    start = len(os.path.join(root, ""))
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(entry.path)
                    elif entry.name.lower().endswith(ENDINGS):
                        status = entry.stat()
                        path = entry.path[start:].replace(os.sep, "/")
                        files.append(File(path, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise DataError(f"cannot read {root} ({error}): set dataset.root to a folder of {ACCEPTED}") from error
    return sorted(files)


def read_cached(root: Path, files: list[File], image_shape: Sequence[int], fit: str, cache_dir: str) -> Tensor:
    """Decodes files in parallel, once: the next call with unchanged files maps the cache file into memory.

    Args:
        root: The folder that the paths of `files` start from.
        files: N pictures, in the order wanted.
        image_shape: (C, size, size).
        fit: See `vae_lab.images.fit_pixels`.
        cache_dir: Where the cache files are kept; made if needed.

    Returns:
        uint8 (N, C, size, size). Writing to it does not change the cache.

    Raises:
        DataError: If pictures cannot be decoded (all of them in one message) or the cache cannot be written.
    """
    identity = repr((CACHE_VERSION, tuple(image_shape), fit, files))
    cache = Path(cache_dir).expanduser() / f"{hashlib.sha256(identity.encode()).hexdigest()}.npy"
    try:
        if not cache.exists():
            _write_cache(cache, root, files, image_shape, fit)
        return torch.from_numpy(np.load(cache, mmap_mode="c"))
    except OSError as error:
        reason = f"cannot keep decoded pictures in {cache.parent} ({error})"
        raise DataError(f"{reason}: set dataset.source.cache_dir to a folder with space") from error


def _write_cache(cache: Path, root: Path, files: list[File], image_shape: Sequence[int], fit: str) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *image_shape)}
    bad = []
    # The rename makes a cache appear whole or not at all; two runs that fill it at once do no harm.
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        part = Path(folder) / cache.name
        with part.open("wb") as file:  # not a memory map: there, a full disk kills the process
            np.lib.format.write_array_header_1_0(file, header)
            for decoded in _decode_all(root, files, image_shape, fit):
                if isinstance(decoded, DataError):
                    bad.append(str(decoded))
                else:
                    file.write(decoded.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        if bad:
            more = f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
            listed = "; ".join(bad[:MAX_NAMED]) + more
            raise DataError(f"{len(bad)} of {len(files)} pictures cannot be used: {listed}")
        os.replace(part, cache)


def _decode_all(root: Path, files: list[File], image_shape: Sequence[int], fit: str) -> Iterator[Tensor | DataError]:
    """Yields each picture, or what is wrong with it, in order."""

    def decode_one(file: File) -> Tensor | DataError:
        try:
            return decode(root / file.path, image_shape, fit)
        except DataError as error:
            return error

    console = Console(stderr=True)
    title = f"decoding {len(files):,} pictures"
    if not console.is_terminal:
        log.info("%s of %s", title, root)
    starts = range(0, len(files), CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in track(starts, title, console=console, transient=True, disable=not console.is_terminal):
            yield from pool.map(decode_one, files[start : start + CHUNK])
