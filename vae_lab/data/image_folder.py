"""A folder of pictures, with sub-folders for classes or splits, decoded once into a file that is mapped into memory.

A cache file holds the bytes of the pictures that can be used, one byte for each picture (1 if it is among them, else
0), and a CRC-32 of all this. It appears whole or not at all, and one that was damaged later is made again.
"""

import hashlib
import logging
import math
import mmap
import os
import re
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOENT
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vae_lab.data.decoding import Images, check_fit, decode
from vae_lab.errors import DataError, one_line, printable

# Of the kinds that `vae_lab.data.decoding.decode` reads.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm",
    ".pbm", ".pnm",
)  # fmt: skip
UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".psd", ".exr", ".dng", ".cr2", ".nef", ".arw")
REMEDY = f"set dataset.root to a folder of pictures ({' '.join(ENDINGS)})"
ON_BAD = ("error", "skip")
MAX_SKIPPED = 0.05  # of all pictures
MAX_NAMED = 1000
CACHE_VERSION = 5  # raise it when a decoded pixel can come out different
CHUNK = 256  # pictures
SAMPLE = 256  # pictures whose content is compared, at least
SAMPLE_READ = 2**20  # bytes of each of them
READ = 2**24  # bytes of a cache file at once

SPLITS = {  # by the names of their folders, in any case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# train2017, val_images, TestSet, trainA, dev, ... and not valley, latest, restraint
LIKE_SPLIT = re.compile(
    r"(?<![a-z])(train|val|test|dev|eval|holdout)(ing|id|idation|uation)?(s|set|val|[ab])?(?![a-z])"
)
SPLIT_REMEDY = "name the folders at the top train/, val/ and test/, or set dataset.root to a folder of classes"

log = logging.getLogger(__name__)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name when the block ends without an exception.

    One process at a time may write it: what a killed one leaves, `NAME.part`, is written over.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        with suppress(OSError):  # where it could not be written, there is nothing to remove
            part.unlink(missing_ok=True)


class File(NamedTuple):
    """A picture file: its path below the root with forward slashes, and what tells that it changed."""

    path: str
    size: int
    mtime_ns: int


class Decoded(NamedTuple):
    """What a cache file holds: uint8 (N - S, C, size, size), and what is wrong with the S others, by their index."""

    pixels: Tensor
    errors: dict[int, str]
    release: Callable[[], None] | None  # see `Images`


@dataclass
class ImageCache:
    """The decoded pictures below a folder, `root`; for the other arguments see `ImageFolder`."""

    root: Path
    image_shape: tuple[int, int, int]
    fit: str
    background: tuple[int, ...]
    on_bad: str
    cache_dir: str | None

    def __post_init__(self):
        if self.on_bad not in ON_BAD:
            raise ValueError(f"dataset.on_bad must be one of {', '.join(ON_BAD)}, got {self.on_bad!r}")
        home = os.environ.get("XDG_CACHE_HOME", "")  # its standard says that a relative one counts for nothing
        default = Path(home if os.path.isabs(home) else "~/.cache", "vae_lab")
        try:
            self.folder = Path(self.cache_dir or default).expanduser()
        except RuntimeError as error:  # a container's user may have no home folder
            raise ValueError(f"dataset.source.cache_dir must be set here: {one_line(error)}") from error

    def read(
        self, files: list[File], labels: Tensor, factors: tuple[str, ...], num_test: int = 0, num_val: int = 0
    ) -> Images:
        """Decodes N files, in the order of `Images`, or maps what was decoded before if none has changed.

        What can be used is returned; writing to the pixels does not change the cache, and lasts until their release.
        Labels are int64 (N, F).

        Raises:
            DataError: If pictures cannot be used (all of them in one message) or the cache cannot be written.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on metadata; what is wrong with pixels is an error
            pixels, errors, release = self._pixels(files)
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
        return Images(pixels, labels[kept], factors, left["test"], left["val"], len(errors), release=release)

    def _pixels(self, files: list[File]) -> Decoded:
        """Makes the cache file if it must, and maps it."""
        # Other pictures with the same names, sizes and times must not be taken for these.
        sample = hashlib.sha256()
        for file in files[:: max(1, len(files) // SAMPLE)]:
            if file.size > 0:  # it is not a pipe, which would keep us waiting
                with suppress(OSError), open(self.root / file.path, "rb") as content:
                    sample.update(content.read(SAMPLE_READ))
        identity = repr((CACHE_VERSION, self.image_shape, self.fit, self.background, files, sample.hexdigest()))
        path = self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()}.pixels"
        try:
            if (found := self._load(path, files)) is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / "lock"):
                    # Another process may have made it meanwhile.
                    found = self._load(path, files) or self._make(path, files)
        except OSError as error:
            size = len(files) * math.prod(self.image_shape)
            reason = f"cannot keep {size:,} bytes of decoded pictures in {printable(self.folder)} ({one_line(error)})"
            raise DataError(f"{reason}: set dataset.source.cache_dir to a folder with space") from error
        if found is None:
            raise DataError(f"{printable(path)} is not as it was written: check that disk, then run again")
        return found

    def _load(self, path: Path, files: list[File]) -> Decoded | None:
        """Maps a cache file; None if there is none, it is damaged, or a picture was left out that can be used."""
        if not path.exists():
            return None
        with open(path, "rb") as file:
            end, checksum = os.fstat(file.fileno()).st_size - 4, 0
            for start in range(0, end, READ):  # not mapped, which would hold all of it in memory
                checksum = zlib.crc32(file.read(min(READ, end - start)), checksum)
            is_whole = end > len(files) and checksum == int.from_bytes(file.read(), "little")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if is_whole else None
        if mapped is None:
            log.warning("%s is damaged: the pictures are decoded again", printable(path))
            path.unlink(missing_ok=True)
            return None
        pixels, is_kept = np.split(np.frombuffer(mapped, np.uint8)[:end], [end - len(files)])
        again = {index: self._decode(files[index]) for index in np.flatnonzero(is_kept == 0).tolist()}
        errors = {index: error for index, error in again.items() if isinstance(error, str)}
        if len(errors) < len(again):
            return None
        forget = getattr(mapped, "madvise", None)  # not on Windows, which takes memory back by itself
        release = partial(forget, mmap.MADV_DONTNEED) if forget else None
        return Decoded(torch.from_numpy(pixels).view(-1, *self.image_shape), errors, release)

    def _make(self, path: Path, files: list[File]) -> Decoded | None:
        """Decodes all files into a cache file, and maps that. Nobody else writes to the folder meanwhile."""
        for leftover in self.folder.glob("*.part"):  # of killed processes
            leftover.unlink(missing_ok=True)
        console = Console(stderr=True)
        title = f"decoding {len(files):,} pictures"
        if not console.is_terminal:
            log.info("%s of %s", title, printable(self.root))
        errors, checksum = {}, 0
        with whole_file(path) as part, ThreadPoolExecutor(os.cpu_count()) as pool:
            starts = range(0, len(files), CHUNK)
            for start in track(starts, title, console=console, transient=True, disable=not console.is_terminal):
                for index, decoded in enumerate(pool.map(self._decode, files[start : start + CHUNK]), start):
                    if isinstance(decoded, str):
                        errors[index] = decoded
                    else:
                        checksum = zlib.crc32(decoded.numpy().data, checksum)
                        part.write(decoded.numpy().data)
            self._judge(errors, len(files))
            is_kept = bytes(index not in errors for index in range(len(files)))
            part.write(is_kept + zlib.crc32(is_kept, checksum).to_bytes(4, "little"))
        return self._load(path, files)

    def _decode(self, file: File) -> Tensor | str:
        """Uint8 (C, size, size), or what is wrong with the picture."""
        try:
            return decode(self.root / file.path, self.image_shape, self.fit, self.background)
        except DataError as error:
            return str(error)

    def _judge(self, errors: dict[int, str], total: int) -> None:
        """Refuses bad pictures where they are not to be skipped, or are too many for that."""
        if errors and (self.on_bad == "error" or len(errors) > MAX_SKIPPED * total):
            remedy = f"mend or remove them; dataset.on_bad=skip leaves out up to {MAX_SKIPPED:.0%} of all pictures"
            raise DataError(f"{_listed(errors, total, 'cannot be used')}: {remedy}")


def _listed(errors: dict[int, str], total: int, what: str) -> str:
    reasons = list(errors.values())
    more = f"; and {len(reasons) - MAX_NAMED} more" if len(reasons) > MAX_NAMED else ""
    return f"{len(reasons)} of {total} pictures {what}: {'; '.join(reasons[:MAX_NAMED])}{more}"


class ImageFolder:
    """Any tree of pictures.

    The first-level sub-folders are the classes; a flat folder has no labels. Where they are `SPLITS`, `train/` and
    `test/` or `val/`, these are the official splits, the classes are inside them, and everything else is left out.
    What only looks like splits is refused. Hidden files are skipped.

    Args:
        root: The folder.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.
        cache_dir: Where the cache files are kept, made if needed; None for `vae_lab` in XDG_CACHE_HOME or ~/.cache.
        background: Under transparent pixels: a grey level, 0 to 255, or three of them, red, green and blue.
        on_bad: "error", or "skip" to leave out pictures that cannot be used, up to 5 % of them.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        root: str | None,
        image_shape: tuple[int, int, int],
        fit: str,
        cache_dir: str | None = None,
        background: int | Sequence[int] = 0,
        on_bad: str = "error",
    ):
        self.root = check_root(root)
        levels = [background] * 3 if isinstance(background, int) else background
        is_colour = isinstance(levels, Sequence) and len(levels) == 3
        if not is_colour or not all(type(level) is int and 0 <= level <= 255 for level in levels):
            expected = "a grey level from 0 to 255 or [red, green, blue]"
            raise ValueError(f"dataset.background must be {expected}, got {background!r}")
        self.cache = ImageCache(self.root, check_fit(image_shape, fit), fit, tuple(levels), on_bad, cache_dir)

    def read(self) -> Images:
        """Reads the cache, or decodes the pictures and fills it.

        Raises:
            DataError: If there are no pictures, or some cannot be decoded or lie beside the class folders.
        """
        files = scan(self.root)
        if not files:
            raise DataError(f"no pictures in {printable(self.root)}: {REMEDY}")
        folders = find_splits(self.root, files)
        chosen = {split: [f for f in files if f.path.startswith(f"{top}/")] for split, top in folders.items()}
        if folders:
            told = ", ".join(f"{top}/ is {split} ({len(chosen[split])})" for split, top in folders.items())
            log.info("splits of %s: %s", printable(self.root), told)
            if left_out := len(files) - sum(map(len, chosen.values())):
                outside = " and ".join(", ".join(f"{top}/" for top in folders.values()).rsplit(", ", 1))
                log.warning("%d pictures outside %s are left out", left_out, outside)
            files = [file for some in chosen.values() for file in some]
        parts = [file.path.split("/")[bool(folders) :] for file in files]
        classes = [path[0] if len(path) > 1 else "" for path in parts]  # "" for a loose picture
        names = sorted(set(classes) - {""})
        if names and "" in classes:
            stray = printable(files[classes.index("")].path)
            reason = f"{printable(self.root)} has class folders and loose pictures"
            raise DataError(f"{reason}: move {stray} into a class folder")
        index = {name: number for number, name in enumerate(names)}
        labels = torch.tensor([[index[name]] if names else [] for name in classes], dtype=torch.int64)
        num_val, num_test = (len(chosen.get(split, ())) for split in ("val", "test"))
        images = self.cache.read(files, labels, ("class",) if names else (), num_test, num_val)
        return images._replace(class_names=tuple(map(printable, names)))


def find_splits(root: Path, files: list[File]) -> dict[str, str]:
    """Which top-level folder is each of the splits train, val and test; empty where they are classes.

    Raises:
        DataError: If folders look like splits, and which is which cannot be told.
    """
    inside: defaultdict[str, set[str]] = defaultdict(set)  # the folders in each folder, which is "" at the top
    for file in files:
        *folders, _ = file.path.split("/")
        for depth, folder in enumerate(folders):
            inside["/".join(folders[:depth])].add(folder)
    tops = inside.pop("", set())
    known = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    splits = set(known.values())
    has_splits = "train" in splits and (len(splits) > 1 or known.keys() == tops)
    words = {top: re.sub("([a-z])([A-Z])", r"\1 \2", top).lower() for top in tops}  # TestSet is test set
    like = {top: match[1] for top, word in words.items() if (match := LIKE_SPLIT.search(word))}
    if has_splits:
        unclear = like.keys() - known.keys() or (known.keys() if len(known) > len(splits) else set())
    else:
        unclear = like.keys() if len(set(like.values())) > 1 or like.keys() == tops else set()
    kinds = {folder: {SPLITS.get(name.lower()) for name in names} - {None} for folder, names in inside.items()}
    below = [folder for folder, splits in kinds.items() if "train" in splits and len(splits) > 1]
    if unclear or below:
        named = ", ".join(f"{printable(folder)}/" for folder in sorted(unclear or below))
        what = "look like splits, but not clearly like train, val and test" if unclear else "have splits inside"
        raise DataError(f"in {printable(root)}, the folders {named} {what}: {SPLIT_REMEDY}")
    return {split: top for split in ("train", "val", "test") for top in known if has_splits and known[top] == split}


def check_root(root: str | None) -> Path:
    """Returns the folder that a user named, which must not be empty."""
    if root is None or not str(root).strip():
        raise ValueError(f"dataset.root must be a folder, got {root!r}: set dataset.root=DIR")
    return Path(str(root)).expanduser()


def scan(root: Path) -> list[File]:
    """Lists the picture files below a folder, sorted by path; what is wrong with one is found when it is decoded.

    Links to folders are followed, except to one that the link lies in.

    Raises:
        DataError: If folders cannot be read; all of them in one message.
    """
    top = os.path.realpath(root)
    files: list[File] = []
    unreadable: list[OSError] = []
    empty: list[str] = []
    others: Counter[str] = Counter()  # by their endings
    for folder, folders, names in os.walk(top, onerror=unreadable.append, followlinks=True):
        below = os.path.join(folder, "")[len(os.path.join(top, "")) :].replace(os.sep, "/")
        above = {os.path.realpath(path) for path in (Path(folder), *Path(folder).parents)}
        shown = [name for name in folders if name[0] != "."]
        folders[:] = [name for name in shown if os.path.realpath(os.path.join(folder, name)) not in above]
        for name in set(shown) - set(folders):
            path = printable(os.path.join(folder, name))
            log.warning("%s is left out: it links to a folder that it lies in", path)
        known = len(files)
        for name in names:
            path, ending = os.path.join(folder, name), os.path.splitext(name)[1].lower()
            if name[0] == ".":
                continue
            if ending in ENDINGS:
                size, mtime_ns = -1, -1  # of a link to nothing
                with suppress(OSError):
                    status = os.stat(path)
                    size, mtime_ns = status.st_size, status.st_mtime_ns
                files.append(File(below + name, size, mtime_ns))
                continue
            others[ending or "no ending"] += 1
            if not ending and not os.path.exists(path):  # it may have been a link to a folder
                unreadable.append(OSError(ENOENT, "it links to nothing", path))
        if len(files) == known and not folders:
            empty.append(folder)
    if unreadable:
        reasons = "; ".join(f"{printable(error.filename)} ({error.strerror})" for error in unreadable)
        raise DataError(f"cannot read {reasons}: {REMEDY}")
    if files and empty:
        log.warning("no pictures in %s", "; ".join(printable(folder) for folder in sorted(empty)))
    if unread := sum(others[ending] for ending in UNREAD):
        kinds = " ".join(ending for ending in UNREAD if others[ending])
        log.warning("%d pictures in %s are left out, as %s is not read", unread, printable(root), kinds)
    if files and others:
        kinds = ", ".join(f"{number} with {printable(ending)}" for ending, number in sorted(others.items()))
        log.info("files that are no pictures in %s: %s", printable(root), kinds)
    return sorted(files)
