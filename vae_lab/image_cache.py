"""Pictures decoded once, in parallel, into a file that is mapped into memory from then on.

A cache file holds the bytes of the pictures that can be used, the indices of the others, their number (both int64),
and a CRC-32 of all this. It appears whole or not at all, and one that was damaged later is made again.
"""

import hashlib
import logging
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vae_lab.durable import durable_open
from vae_lab.errors import DataError, RunError
from vae_lab.images import Images, decode, printable
from vae_lab.lock import locked

ON_BAD = ("error", "skip")
MAX_SKIPPED = 0.05  # of all pictures
MAX_NAMED = 1000
CACHE_VERSION = 3  # raise it when a decoded pixel can come out different
CHUNK = 256  # pictures
READ = 2**24  # bytes at once
SAMPLE = 256  # pictures whose content is compared, at least
SAMPLE_READ = 2**20  # bytes of each of them

log = logging.getLogger(__name__)


class File(NamedTuple):
    """A picture file: its path below the root with forward slashes, and what tells that it changed."""

    path: str
    size: int
    mtime_ns: int


class ImageCache:
    """The decoded pictures of a folder.

    Args:
        root: The folder that the paths of the files start from.
        image_shape: (C, size, size).
        fit: See `vae_lab.images.fit_pixels`.
        background: Under transparent pixels: red, green and blue, 0 to 255.
        on_bad: "error", or "skip" to leave out pictures that cannot be used, up to 5 % of them.
        cache_dir: Where the cache files are kept; made if needed.

    Raises:
        ValueError: If `on_bad` is neither.
    """

    def __init__(
        self,
        root: Path,
        image_shape: Sequence[int],
        fit: str,
        background: tuple[int, int, int],
        on_bad: str,
        cache_dir: str,
    ):
        if on_bad not in ON_BAD:
            raise ValueError(f"dataset.on_bad must be one of {', '.join(ON_BAD)}, got {on_bad!r}")
        self.root = root
        self.image_shape = tuple(image_shape)
        self.fit = fit
        self.background = background
        self.on_bad = on_bad
        self.folder = Path(cache_dir).expanduser()

    def read(
        self, files: list[File], labels: Tensor, factors: tuple[str, ...], num_test: int = 0, num_val: int = 0
    ) -> Images:
        """Decodes files, or maps what was decoded before if none has changed.

        Args:
            files: N pictures, in the order of `Images`.
            labels: int64 (N, F).
            factors: The F column names.
            num_test: Files in the source's own test split.
            num_val: Files in its own validation split.

        Returns:
            The pictures that can be used. Writing to the pixels does not change the cache.

        Raises:
            DataError: If pictures cannot be used (all of them in one message) or the cache cannot be written.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on metadata; what is wrong with pixels is an error
            pixels, errors = self._pixels(files)
        self._judge(errors, len(files))
        if errors:
            log.warning("%s", _listed(errors, len(files), "are left out"))
        first_test = len(files) - num_test
        splits = {"test": range(first_test, len(files)), "val": range(first_test - num_val, first_test)}
        left = {name: len(split) - len(errors.keys() & split) for name, split in splits.items()}
        for name, split in splits.items():
            if split and not left[name]:
                raise DataError(f"none of the {len(split)} pictures of {name}/ in {printable(self.root)} can be used")
        kept = [index for index in range(len(files)) if index not in errors]
        return Images(pixels, labels[kept], factors, left["test"], left["val"], len(errors))

    def _pixels(self, files: list[File]) -> tuple[Tensor, dict[int, str]]:
        """Returns uint8 (N - S, C, size, size), and what is wrong with the S others by their index."""
        identity = repr((CACHE_VERSION, self.image_shape, self.fit, self.background, files, self._sample(files)))
        path = self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.pixels"
        try:
            found = self._load(path, files)
            if found is None:
                with locked(self.folder / "lock", wait=True):
                    if (found := self._load(path, files)) is None:  # another process may have made it meanwhile
                        self._make(path, files)
                        found = self._load(path, files)
        except (OSError, RunError) as error:
            reason = f"cannot keep decoded pictures in {printable(self.folder)} ({error})"
            raise DataError(f"{reason}: set dataset.source.cache_dir to a folder with space") from error
        if found is None:
            raise DataError(f"{printable(path)} is not as it was written: check that disk, then run again")
        return found

    def _sample(self, files: list[File]) -> str:
        """A checksum of some files: other pictures with the same names, sizes and times must not be taken for these."""
        digest = hashlib.sha256()
        for file in files[:: max(1, len(files) // SAMPLE)]:
            if file.size > 0:  # it is not a pipe, which would keep us waiting
                with suppress(OSError), open(self.root / file.path, "rb") as content:
                    digest.update(content.read(SAMPLE_READ))
        return digest.hexdigest()

    def _load(self, path: Path, files: list[File]) -> tuple[Tensor, dict[int, str]] | None:
        """Maps a cache file; None if there is none, it is damaged, or a picture was left out that can be used."""
        if not path.exists():
            return None
        skipped = _read_skipped(path)
        if skipped is None:
            log.warning("%s is damaged: the pictures are decoded again", printable(path))
            path.unlink(missing_ok=True)
            return None
        errors = {index: self._decode(files[index]) for index in skipped}
        if not all(isinstance(error, str) for error in errors.values()):
            return None
        shape = (len(files) - len(errors), *self.image_shape)
        return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape)), errors

    def _make(self, path: Path, files: list[File]) -> None:
        """Decodes all files into a cache file. Nobody else writes to the folder meanwhile."""
        for leftover in self.folder.glob("*.pixels.tmp.*"):  # of killed processes
            leftover.unlink(missing_ok=True)
        errors, checksum = {}, 0
        with durable_open(path, len(files) * math.prod(self.image_shape)) as file:
            for index, decoded in enumerate(self._decode_all(files)):
                if isinstance(decoded, str):
                    errors[index] = decoded
                else:
                    checksum = zlib.crc32(decoded.numpy().data, checksum)
                    file.write(decoded.numpy().data)
            self._judge(errors, len(files))
            end = np.array([*errors, len(errors)], "<i8").tobytes()
            file.write(end + zlib.crc32(end, checksum).to_bytes(4, "little"))

    def _decode(self, file: File) -> Tensor | str:
        """Returns uint8 (C, size, size), or what is wrong with the picture."""
        try:
            return decode(self.root / file.path, self.image_shape, self.fit, self.background)
        except DataError as error:
            return str(error)

    def _decode_all(self, files: list[File]) -> Iterator[Tensor | str]:
        """Yields the result of every file, in order."""
        console = Console(stderr=True)
        title = f"decoding {len(files):,} pictures"
        if not console.is_terminal:
            log.info("%s of %s", title, printable(self.root))
        starts = range(0, len(files), CHUNK)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in track(starts, title, console=console, transient=True, disable=not console.is_terminal):
                yield from pool.map(self._decode, files[start : start + CHUNK])

    def _judge(self, errors: dict[int, str], total: int) -> None:
        """Refuses bad pictures where they are not to be skipped, or are too many for that."""
        if errors and (self.on_bad == "error" or len(errors) > MAX_SKIPPED * total):
            remedy = f"mend or remove them; dataset.on_bad=skip leaves out up to {MAX_SKIPPED:.0%} of all pictures"
            raise DataError(f"{_listed(errors, total, 'cannot be used')}: {remedy}")


def _listed(errors: dict[int, str], total: int, what: str) -> str:
    reasons = list(errors.values())
    more = f"; and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    return f"{len(reasons)} of {total} pictures {what}: {'; '.join(reasons[:MAX_NAMED])}{more}"


def _read_skipped(path: Path) -> list[int] | None:
    """Returns the indices of the pictures that a cache file leaves out, or None if its checksum is wrong."""
    end = path.stat().st_size - 4
    if end < 8:
        return None
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(min(READ, end - file.tell())):
            checksum = zlib.crc32(chunk, checksum)
        if checksum.to_bytes(4, "little") != file.read():
            return None
        file.seek(end - 8)
        num_skipped = int.from_bytes(file.read(8), "little")
        file.seek(end - 8 * (num_skipped + 1))
        return np.frombuffer(file.read(8 * num_skipped), "<i8").tolist()
