"""A folder of pictures, with sub-folders for classes or splits."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from errno import ENOENT
from pathlib import Path

import torch

from vae_lab.errors import DataError
from vae_lab.image_cache import File, ImageCache
from vae_lab.images import Images, check_fit, printable

# Of the kinds that `vae_lab.images.decode` reads.
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".dib")
ENDINGS += (".ppm", ".pgm", ".pbm", ".pnm")
ACCEPTED = f"pictures ({' '.join(ENDINGS)})"

log = logging.getLogger(__name__)


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
        background: Under transparent pixels: a grey level, 0 to 255, or three of them, red, green and blue.
        on_bad: "error", or "skip" to leave out pictures that cannot be used, up to 5 % of them.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        root: str,
        image_shape: Sequence[int],
        fit: str,
        cache_dir: str,
        background: int | Sequence[int] = 0,  # these two are not in the configs of 0.1.0
        on_bad: str = "error",
    ):
        self.root = check_root(root)
        shape = check_fit(image_shape, fit)
        self.cache = ImageCache(self.root, shape, fit, check_background(background), on_bad, cache_dir)

    def read(self) -> Images:
        """Reads the cache, or decodes the pictures and fills it.

        Raises:
            DataError: If there are no pictures, or some cannot be decoded or lie beside the class folders.
        """
        files = scan(self.root)
        if not files:
            raise DataError(f"no pictures in {printable(self.root)}: set dataset.root to a folder of {ACCEPTED}")
        files, inner_paths, num_test, num_val = _splits(files)
        classes = [path.partition("/")[0] if "/" in path else None for path in inner_paths]
        names = sorted({name for name in classes if name})
        if names and None in classes:
            stray = printable(files[classes.index(None)].path)
            reason = f"{printable(self.root)} has class folders and loose pictures"
            raise DataError(f"{reason}: move {stray} into a class folder")
        indices = {name: index for index, name in enumerate(names)}
        factors = ("class",) if names else ()
        labels = torch.tensor([[indices[name]] if names else [] for name in classes], dtype=torch.int64)
        return self.cache.read(files, labels, factors, num_test, num_val)


def check_root(root: str) -> Path:
    """Returns the folder that a user named.

    Raises:
        ValueError: If it is empty.
    """
    if root is None or not str(root).strip():
        raise ValueError(f"dataset.root must be a folder, got {root!r}")
    return Path(str(root)).expanduser()


def check_background(background: int | Sequence[int]) -> tuple[int, int, int]:
    """Returns red, green and blue.

    Raises:
        ValueError: If it is neither a grey level from 0 to 255 nor three of them.
    """
    levels = [background] * 3 if isinstance(background, int) else background
    if (
        not isinstance(levels, Sequence)
        or len(levels) != 3
        or not all(type(level) is int and 0 <= level <= 255 for level in levels)
    ):
        expected = "a grey level from 0 to 255 or [red, green, blue]"
        raise ValueError(f"dataset.background must be {expected}, got {background!r}")
    return tuple(levels)


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
    """Lists the picture files below a folder, sorted by path; what is wrong with one is found when it is decoded.

    Links to folders are followed, except to one that the link lies in.

    Raises:
        DataError: If folders cannot be read; all of them in one message.
    """
    top = os.path.realpath(root)
    start = len(os.path.join(top, ""))
    files, unreadable, empty, endings = [], [], [], Counter()
    for folder, folders, names in os.walk(top, onerror=unreadable.append, followlinks=True):
        folders[:] = [name for name in folders if name[0] != "." and not _leads_back(Path(folder, name))]
        shown = [name for name in names if name[0] != "."]
        pictures = [name for name in shown if name.lower().endswith(ENDINGS)]
        files += [_file(os.path.join(folder, name), start) for name in pictures]
        others = [name for name in shown if not name.lower().endswith(ENDINGS)]
        endings.update(os.path.splitext(name)[1].lower() or "no ending" for name in others)
        # A link to nothing may have been a link to a folder.
        links = [os.path.join(folder, name) for name in others if "." not in name]
        unreadable += [OSError(ENOENT, "it links to nothing", path) for path in links if not os.path.exists(path)]
        if not pictures and not folders:
            empty.append(folder)
    if unreadable:
        reasons = "; ".join(f"{printable(error.filename)} ({error.strerror})" for error in unreadable)
        raise DataError(f"cannot read {reasons}: set dataset.root to a folder of {ACCEPTED}")
    if files and empty:
        log.warning("no pictures in %s", "; ".join(printable(folder) for folder in sorted(empty)))
    if files and endings:
        kinds = ", ".join(f"{number} with {printable(ending)}" for ending, number in sorted(endings.items()))
        log.info("files that are no pictures in %s: %s", printable(root), kinds)
    return sorted(files)


def _leads_back(folder: Path) -> bool:
    """Whether a folder is, through a link, one that it lies in."""
    try:
        leads_back = any(folder.samefile(above) for above in folder.parents)
    except OSError:
        return False  # listing it will say why
    if leads_back:
        log.warning("%s is left out: it links to a folder that it lies in", printable(folder))
    return leads_back


def _file(path: str, start: int) -> File:
    """Describes a file, by its path from `start` on; a link to nothing has the size -1."""
    relative = path[start:].replace(os.sep, "/")
    try:
        status = os.stat(path)
    except OSError:
        return File(relative, -1, -1)
    return File(relative, status.st_size, status.st_mtime_ns)
