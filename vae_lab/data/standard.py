"""The standard datasets: downloaded where they are missing, checked against known checksums, read into `Images`.

A source checks its arguments without touching a file; `read()` returns `Images`.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from urllib.request import Request, urlopen
import numpy as np
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from vae_lab.runs.files import durable_open
from vae_lab.errors import DataError
from vae_lab.data.decoding import printable
from vae_lab.runs.files import locked
import gzip
import os
import shutil
import tarfile
from contextlib import contextmanager
from torchvision import datasets as torchvision_datasets
from vae_lab.errors import DataError, RunError
import pickle
from collections.abc import Sequence
import torch
from torch import Tensor
from vae_lab.data.image_folder import ImageCache
from vae_lab.data.image_folder import check_root, scan
from vae_lab.data.decoding import Images, check_fit, fit_pixels, printable

TRIES = 3
BACKOFF = 1.0  # seconds before the second try; three times that before the third
WINDOW = 15.0  # seconds, in each of which
MIN_BYTES = 15_000  # have to arrive: a server that stalls or drips is given up after at most two windows
MAX_BYTES = 2**30
CHUNK = 2**16

log = logging.getLogger(__name__)
_may_download = ContextVar("may_download", default=True)


def read_verified(path: Path, checksum: str) -> np.ndarray:
    """Reads a file whose content is known.

    Args:
        path: Of the file.
        checksum: MD5 or SHA-256 of its content, in hexadecimal digits.

    Returns:
        Its bytes, uint8 (N,).

    Raises:
        DataError: If the file cannot be read or has another checksum.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {error.strerror or error}") from error
    found = _digest(checksum, content).hexdigest()
    if found != checksum:
        reason = f"checksum mismatch {printable(path)}: expected {checksum}, got {found}"
        raise DataError(f"{reason}; delete it and run again")
    return content


def _digest(checksum: str, content=b""):
    """The hash object that makes checksums like the given one."""
    return hashlib.new({32: "md5", 64: "sha256"}[len(checksum)], content, usedforsecurity=False)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Makes a download a failure while the block runs: a command that only looks must not fetch gigabytes."""
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


@contextmanager
def one_downloader(folder: Path) -> Iterator[None]:
    """Waits until no other process downloads into a folder; a failure leaves no empty folder behind.

    Args:
        folder: Made if it does not exist.

    Raises:
        DataError: Within `no_downloads`.
        RunError: If the folder cannot be written to.
    """
    if not _may_download.get():
        raise DataError("this command downloads nothing")
    folders = (folder, *folder.parents)
    lock = folder / "download.lock"
    made = set()
    while True:
        made |= {path for path in folders if not path.exists()}
        with locked(lock, wait=True) as is_there:
            if not is_there:  # the process that we waited for has tidied up
                continue
            try:
                yield
            finally:
                tidy(lock, [path for path in folders if path in made])
            return


def tidy(lock: Path, folders: Sequence[Path]) -> None:
    """Removes a lock file, while it is held, and those of the folders above it that are empty then."""
    with suppress(OSError):  # they are not empty, or were never made
        lock.unlink(missing_ok=True)
        for path in folders:
            path.rmdir()


def download(urls: Sequence[str], path: Path, md5: str) -> None:
    """Downloads a file, unless it is there already; call it within `one_downloader`.

    Args:
        urls: Where it can be had; they are tried in turn.
        path: Of the file.
        md5: Its checksum.

    Raises:
        DataError: If every try failed, with what went wrong in each.
        RunError: If it cannot be written.
    """
    for leftover in path.parent.glob(f"{path.name}.tmp.*"):  # of killed processes
        leftover.unlink(missing_ok=True)
    if path.is_file() and _digest(md5, path.read_bytes()).hexdigest() == md5:
        return
    failures = []
    for attempt in range(TRIES):
        time.sleep(BACKOFF * (2**attempt - 1))
        url = urls[attempt % len(urls)]
        log.info("downloading %s", url)
        try:
            with durable_open(path) as file:
                digest = _digest(md5)
                for chunk in _progress(_body(url), path.name):
                    digest.update(chunk)
                    file.write(chunk)
                if digest.hexdigest() != md5:
                    raise DataError(f"checksum mismatch: expected {md5}, got {digest.hexdigest()}")
            return
        except DataError as error:
            failures.append(f"{url}: {error}")
    raise DataError("; ".join(dict.fromkeys(failures)))


def _progress(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    console = Console(stderr=True)
    columns = ("downloading {task.description}", DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        for chunk in chunks:
            progress.advance(task, len(chunk))
            yield chunk


def _body(url: str) -> Iterator[bytes]:
    """Yields what a server answers.

    A thread waits for it: a socket's own timeout starts anew with every byte, and looking up a name has none.

    Raises:
        DataError: If the server cannot be reached, is too slow, or breaks off.
    """
    arrived, given_up = queue.SimpleQueue(), threading.Event()
    threading.Thread(target=_receive, args=(url, arrived, given_up), daemon=True).start()
    try:
        total, in_window, end = 0, 0, time.monotonic() + WINDOW
        while True:
            with suppress(queue.Empty):
                chunk = arrived.get(timeout=max(0.0, end - time.monotonic()))
                if isinstance(chunk, Exception):
                    raise DataError(" ".join(f"{type(chunk).__name__}: {chunk}".split())) from chunk
                if not chunk:
                    return
                yield chunk
                total, in_window = total + len(chunk), in_window + len(chunk)
                if total > MAX_BYTES:
                    raise DataError(f"more than {MAX_BYTES:,} bytes")
            if time.monotonic() >= end:
                if in_window < MIN_BYTES:
                    raise DataError(f"fewer than {MIN_BYTES:,} bytes in {WINDOW:g} seconds")
                in_window, end = 0, time.monotonic() + WINDOW
    finally:
        given_up.set()


def _receive(url: str, arrived: queue.SimpleQueue, given_up: threading.Event) -> None:
    """Puts the chunks of an answer into a queue; at its end an empty one, or the exception that ended it."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "vae_lab"}), timeout=2 * WINDOW) as response:
            expected, total = response.length, 0
            while total != expected and not given_up.is_set() and (chunk := response.read1(CHUNK)):
                total += len(chunk)
                arrived.put(chunk)
        if expected is not None and total < expected:
            raise ConnectionError(f"the connection ended after {total:,} of {expected:,} bytes")
        arrived.put(b"")
    except Exception as error:  # whatever it is, the other thread must not wait for it in vain
        arrived.put(error)


def missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns those names that a folder does not hold."""
    return [name for name in names if not os.path.exists(folder / name)]


def unpack_idx(source: type[torchvision_datasets.MNIST], folder: Path) -> None:
    """Downloads and unpacks the files of MNIST, or of a dataset in its format, that are missing.

    Raises:
        DataError: If that is not possible.
    """
    archives = {name.removesuffix(".gz"): (name, md5) for name, md5 in source.resources}
    if not missing(folder, list(archives)):
        return
    with obtaining(source.__name__, folder, folder.parent):
        for name in missing(folder, list(archives)):
            archive, md5 = archives[name]
            download([mirror + archive for mirror in source.mirrors], folder / archive, md5)
            with gzip.open(folder / archive) as packed, durable_open(folder / name) as file:
                shutil.copyfileobj(packed, file)


def unpack_cifar(folder: Path, names: Sequence[str]) -> None:
    """Downloads CIFAR-10 and unpacks those of its batches that are missing.

    Raises:
        DataError: If that is not possible.
    """
    if not missing(folder, names):
        return
    source = torchvision_datasets.CIFAR10
    with obtaining("CIFAR10", folder, folder):
        wanted = missing(folder, names)
        if not wanted:
            return
        archive = folder.parent / source.filename
        download([source.url], archive, source.tgz_md5)
        with tarfile.open(archive) as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if name in wanted:
                    with durable_open(folder / name) as file:
                        shutil.copyfileobj(tar.extractfile(member), file)


@contextmanager
def obtaining(name: str, folder: Path, holder: Path) -> Iterator[None]:
    """Gives a failed download a message with what to do; one process downloads at a time.

    Args:
        name: Of the dataset.
        folder: Where its files belong.
        holder: The folder among those that `data_root` holds.

    Raises:
        DataError: If the download failed.
    """
    try:
        with one_downloader(folder):
            yield
    except (DataError, RunError) as error:
        raise DataError(
            f"{name} was not found in {printable(folder)} and could not be downloaded ({error}): "
            f"set data_root (or VAE_LAB_DATA) to the folder that holds {holder.name}/, "
            "or run once where there is a network"
        ) from error


# SHA-256 of the unpacked files: torchvision knows the checksums of the archives only.
MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class Digits:
    """1,797 handwritten digits, grey 8x8, that come with scikit-learn; no test split of their own.

    Args:
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, image_shape: Sequence[int], fit: str):
        self.image_shape = check_fit(image_shape, fit, source_size=8)
        self.fit = fit

    def read(self) -> Images:
        """Returns the images with their 17 grey levels spread over 0 to 255."""
        from sklearn.datasets import load_digits  # here, because importing it takes a second

        digits = load_digits()
        pixels = (torch.from_numpy(digits.images) * 255 / 16).round().to(torch.uint8)[:, None]
        labels = torch.from_numpy(digits.target).long()[:, None]
        return Images(fit_pixels(pixels, self.image_shape, self.fit), labels, ("digit",), num_test=0)


class MNIST:
    """60,000 + 10,000 handwritten digits, grey 28x28 (LeCun et al. 1998), downloaded when missing.

    Args:
        root: The folder that holds `MNIST/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str):
        self.folder = check_root(root) / "MNIST" / "raw"
        self.image_shape = check_fit(image_shape, fit, source_size=28)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        unpack_idx(torchvision_datasets.MNIST, self.folder)
        pixels, labels, num_test = read_idx(self.folder, MNIST_FILES)
        return Images(fit_pixels(pixels, self.image_shape, self.fit), labels, ("digit",), num_test)


class FashionMNIST:
    """60,000 + 10,000 pieces of clothing, grey 28x28 (Xiao et al. 2017), downloaded when missing.

    Args:
        root: The folder that holds `FashionMNIST/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str):
        self.folder = check_root(root) / "FashionMNIST" / "raw"
        self.image_shape = check_fit(image_shape, fit, source_size=28)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        unpack_idx(torchvision_datasets.FashionMNIST, self.folder)
        pixels, labels, num_test = read_idx(self.folder, FASHION_MNIST_FILES)
        return Images(fit_pixels(pixels, self.image_shape, self.fit), labels, ("class",), num_test)


class CIFAR10:
    """50,000 + 10,000 objects of 10 classes, RGB 32x32 (Krizhevsky 2009), downloaded when missing.

    Args:
        root: The folder that holds `cifar-10-batches-py/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str):
        self.folder = check_root(root) / "cifar-10-batches-py"
        self.image_shape = check_fit(image_shape, fit, source_size=32)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        source = torchvision_datasets.CIFAR10
        checksums = dict(source.train_list + source.test_list)
        unpack_cifar(self.folder, list(checksums))
        # Nothing is unpickled whose checksum has not been compared.
        batches = [pickle.loads(read_verified(self.folder / n, c), encoding="latin1") for n, c in checksums.items()]
        pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in batches])).view(-1, 3, 32, 32)
        labels = torch.tensor([label for batch in batches for label in batch["labels"]])[:, None]
        num_test = sum(len(batch["labels"]) for batch in batches[len(source.train_list) :])
        return Images(fit_pixels(pixels, self.image_shape, self.fit), labels, ("class",), num_test)


class CelebA:
    """202,599 aligned faces with 40 binary attributes, RGB 218x178 (Liu et al. 2015).

    The download needs gdown: `pip install "vae_lab[celeba]"`.

    Args:
        root: The folder that holds `celeba/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.
        cache_dir: Where the decoded pictures are kept.
        on_bad: "error", or "skip" to leave out pictures that cannot be used, up to 5 % of them.

    Raises:
        ValueError: If an argument is out of range.
    """

    # on_bad is not in the configs of 0.1.0
    def __init__(self, root: str, image_shape: Sequence[int], fit: str, cache_dir: str, on_bad: str = "error"):
        self.folder = check_root(root) / "celeba"
        self.pictures = self.folder / "img_align_celeba"
        shape = check_fit(image_shape, fit, source_size=218)
        self.cache = ImageCache(self.pictures, shape, fit, (0, 0, 0), on_bad, cache_dir)

    def read(self) -> Images:
        """Returns the official training, validation and test images, in this order.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        celeba = self._open()
        lines = (self.folder / "list_eval_partition.txt").read_text().splitlines()
        partition = torch.tensor([int(line.split()[1]) for line in lines])  # 0 training, 1 validation, 2 test
        order = partition.argsort(stable=True)
        found = {file.path: file for file in scan(self.pictures)}
        lost = [name for name in celeba.filename if name not in found]
        if lost:
            reason = f"{len(lost)} pictures are missing in {printable(self.pictures)}, the first is {lost[0]}"
            raise DataError(f"{reason}; delete that folder and run again")
        files = [found[celeba.filename[index]] for index in order]
        names = tuple(name for name in celeba.attr_names if name)  # the header line ends in a space
        num_val, num_test = (int((partition == number).sum()) for number in (1, 2))
        return self.cache.read(files, celeba.attr[order].long(), names, num_test, num_val)

    def _open(self) -> torchvision_datasets.CelebA:
        """Opens torchvision's dataset, which downloads it from Google Drive when it is not there."""
        source = torchvision_datasets.CelebA
        lists = {name: md5 for _, md5, name in source.file_list if name.endswith(".txt")}
        if missing(self.folder, [*lists, self.pictures.name]):
            with obtaining("CelebA", self.folder, self.folder):
                try:
                    source(self.folder.parent, split="all", download=True)
                except Exception as error:  # those of the network, the disk, the archive and Google have no common base
                    raise DataError(" ".join(f"{type(error).__name__}: {error}".split())) from error
        for name, md5 in lists.items():
            read_verified(self.folder / name, md5)
        return source(self.folder.parent, split="all")


def read_idx(folder: Path, checksums: dict[str, str]) -> tuple[Tensor, Tensor, int]:
    """Reads the two pairs of files of MNIST, or of a dataset in its format.

    Returns:
        uint8 (N, 1, 28, 28), int64 (N, 1), and how many of them, at the end, are the test split.

    Raises:
        DataError: If a file is damaged.
    """
    train, test, train_labels, test_labels = (read_verified(folder / n, c) for n, c in checksums.items())
    pixels = np.concatenate([train[16:], test[16:]])  # after a header with the numbers and sizes of the images
    labels = np.concatenate([train_labels[8:], test_labels[8:]])
    return torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(labels).long()[:, None], len(test_labels) - 8
