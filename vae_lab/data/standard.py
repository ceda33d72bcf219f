"""The standard datasets: downloaded where they are missing, checked against known checksums, read into `Images`.

A source checks its arguments without touching a file; `read()` returns `Images`.
"""

import gzip
import hashlib
import logging
import pickle
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import wrap_file
from torchvision import datasets as torchvision_datasets

from vae_lab.data.decoding import Images, check_fit, fit_pixels
from vae_lab.data.image_folder import ImageCache, check_root, scan, whole_file
from vae_lab.errors import DataError, one_line, printable

TRIES = 3
BACKOFF = 1.0  # seconds before the second try, twice that before the third
TIMEOUT = 15.0  # seconds without an answer, or without more of it
MAX_BYTES = 2**30
CHUNK = 2**16

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

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

log = logging.getLogger(__name__)
_may_download = ContextVar("may_download", default=True)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Makes a download a failure while the block runs: a command that only looks must not fetch gigabytes."""
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


@contextmanager
def obtaining(name: str, folder: Path, holder: str, wanted: Sequence[str]) -> Iterator[list[str]]:
    """Yields which of the wanted files in a folder are missing, for the block to download, one process at a time.

    Where the block fails, a `DataError` says to set `data_root` to what holds the folder `holder`.
    """

    def missing() -> list[str]:
        return [file for file in wanted if not (folder / file).exists()]

    if not missing():
        yield []
        return
    try:
        if not _may_download.get():
            raise DataError("this command downloads nothing")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "download.lock"):
            yield missing()
    except Exception as error:  # those of the network, the disk, the archives and Google have no common base
        raise DataError(
            f"{name} was not found in {printable(folder)} and could not be downloaded ({one_line(error)}): "
            f"set data_root (or VAE_LAB_DATA) to the folder that holds {holder}/, or run once where there is a network"
        ) from error


def download(urls: Sequence[str], path: Path, md5: str) -> None:
    """Downloads a file, unless it is there already; the URLs are tried in turn. Call it within `obtaining`."""
    with suppress(DataError):
        read_verified(path, md5)
        return
    failures = []
    for attempt in range(TRIES):
        time.sleep(BACKOFF * attempt)
        url = urls[attempt % len(urls)]
        log.info("downloading %s", url)
        try:
            _download(url, path, md5)
            return
        except (OSError, HTTPException, DataError) as error:
            failures.append(f"{url}: {type(error).__name__}: {one_line(error)}")
    raise DataError("; ".join(dict.fromkeys(failures)))


def _download(url: str, path: Path, md5: str) -> None:
    """Tries it once. The bytes are kept as they are sent: most libraries unpack what a server calls gzip-encoded."""
    console, digest = Console(stderr=True), hashlib.md5(usedforsecurity=False)
    with (
        urlopen(Request(url, headers={"User-Agent": "vae_lab"}), timeout=TIMEOUT) as response,
        wrap_file(response, response.length or 0, description=path.name, console=console, transient=True,
                  disable=not console.is_terminal) as body,
        whole_file(path) as file,
    ):  # fmt: skip
        while chunk := body.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            if file.tell() > MAX_BYTES:
                raise DataError(f"more than {MAX_BYTES:,} bytes")
        if digest.hexdigest() != md5:
            raise DataError(f"checksum mismatch after {file.tell():,} bytes: expected {md5}, got {digest.hexdigest()}")


def read_verified(path: Path, checksum: str, spare: int = 0) -> np.ndarray:
    """Reads the bytes of a file whose MD5 or SHA-256 is known, uint8 (N + spare,); the last `spare` are left free."""
    try:
        size = path.stat().st_size
        content = np.empty(size + spare, np.uint8)
        with open(path, "rb") as file:
            file.readinto(content[:size].data)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {error.strerror or error}") from error
    kind = {32: "md5", 64: "sha256"}[len(checksum)]
    found = hashlib.new(kind, content[:size].data, usedforsecurity=False).hexdigest()
    if found != checksum:
        reason = f"checksum mismatch {printable(path)}: expected {checksum}, got {found}"
        raise DataError(f"{reason}; delete it and run again")
    return content


class Digits:
    """1,797 handwritten digits, grey 8x8, that come with scikit-learn; no test split of their own.

    Args:
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.
    """

    def __init__(self, image_shape: tuple[int, int, int], fit: str):
        self.image_shape = check_fit(image_shape, fit, source_size=8)
        self.fit = fit

    def read(self) -> Images:
        """Returns the images with their 17 grey levels spread over 0 to 255."""
        spec = find_spec("sklearn")  # whose import takes a second, and 70 MB: only its file of digits is needed
        assert spec is not None
        assert spec.submodule_search_locations
        table = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
        rows = torch.from_numpy(np.loadtxt(table, np.uint8, delimiter=","))  # 64 levels from 0 to 16, and the digit
        pixels = (rows[:, :-1].view(-1, 1, 8, 8).double() * 255 / 16).round().to(torch.uint8)
        labels = rows[:, -1:].long()
        return Images(fit_pixels(pixels, self.image_shape, self.fit), labels, ("digit",), num_test=0)


class MNIST:
    """60,000 + 10,000 handwritten digits, grey 28x28 (LeCun et al. 1998), downloaded when missing.

    Args:
        root: The folder that holds `MNIST/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.
    """

    archives = torchvision_datasets.MNIST
    files = MNIST_FILES
    factor = "digit"
    class_names: tuple[str, ...] = ()  # the digits

    def __init__(self, root: str, image_shape: tuple[int, int, int], fit: str):
        self.folder = check_root(root) / type(self).__name__ / "raw"
        self.image_shape = check_fit(image_shape, fit, source_size=28)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images; a `DataError` says that files cannot be had, or are damaged."""
        archives = {name.removesuffix(".gz"): (name, md5) for name, md5 in self.archives.resources}
        name = type(self).__name__
        with obtaining(name, self.folder, name, list(self.files)) as missing:
            for file in missing:
                archive, md5 = archives[file]
                download([mirror + archive for mirror in self.archives.mirrors], self.folder / archive, md5)
                with gzip.open(self.folder / archive) as packed, whole_file(self.folder / file) as unpacked:
                    shutil.copyfileobj(packed, unpacked)
        room = 10_000 * 28 * 28  # for the test images after the others: with a copy, all would be there twice
        files = zip(self.files.items(), (room, 0, 0, 0), strict=True)
        train, test, train_labels, test_labels = (read_verified(self.folder / n, c, spare) for (n, c), spare in files)
        end = len(train) - room
        pixels = train[16 : end + len(test) - 16]  # after a header with the numbers and sizes of the images
        pixels[end - 16 :] = test[16:]
        labels = torch.from_numpy(np.concatenate([train_labels[8:], test_labels[8:]])).long()[:, None]
        fitted = fit_pixels(torch.from_numpy(pixels).view(-1, 1, 28, 28), self.image_shape, self.fit)
        num_test = len(test_labels) - 8
        return Images(fitted, labels, (self.factor,), num_test, class_names=self.class_names)


class FashionMNIST(MNIST):
    """60,000 + 10,000 pieces of clothing, grey 28x28 (Xiao et al. 2017), with the form and the arguments of MNIST."""

    archives = torchvision_datasets.FashionMNIST
    files = FASHION_MNIST_FILES
    factor = "class"
    class_names = tuple(torchvision_datasets.FashionMNIST.classes)


class CIFAR10:
    """50,000 + 10,000 objects of 10 classes, RGB 32x32 (Krizhevsky 2009), downloaded when missing.

    Args:
        root: The folder that holds `cifar-10-batches-py/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.
    """

    def __init__(self, root: str, image_shape: tuple[int, int, int], fit: str):
        self.folder = check_root(root) / "cifar-10-batches-py"
        self.image_shape = check_fit(image_shape, fit, source_size=32)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images; a `DataError` says that files cannot be had, or are damaged."""
        source = torchvision_datasets.CIFAR10
        checksums = dict(source.train_list + source.test_list)
        with obtaining("CIFAR10", self.folder, self.folder.name, list(checksums)) as missing:
            if missing:
                archive = self.folder.parent / source.filename
                download([source.url], archive, source.tgz_md5)
                with tarfile.open(archive) as tar:
                    for member in tar:
                        name = Path(member.name).name
                        if name in missing and (packed := tar.extractfile(member)):
                            with whole_file(self.folder / name) as file:
                                shutil.copyfileobj(packed, file)
        contents = [read_verified(self.folder / name, checksum) for name, checksum in checksums.items()]
        batches = [pickle.loads(content.data, encoding="latin1") for content in contents]  # only after that
        pixels = torch.from_numpy(np.concatenate([batch["data"] for batch in batches])).view(-1, 3, 32, 32)
        labels = torch.tensor([label for batch in batches for label in batch["labels"]])[:, None]
        num_test = sum(len(batch["labels"]) for batch in batches[len(source.train_list) :])
        fitted = fit_pixels(pixels, self.image_shape, self.fit)
        return Images(fitted, labels, ("class",), num_test, class_names=CIFAR10_CLASSES)


class CelebA:
    """202,599 aligned faces with 40 binary attributes, RGB 218x178 (Liu et al. 2015).

    The download needs gdown: `pip install "vae_lab[celeba]"`.

    Args:
        root: The folder that holds `celeba/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.data.decoding.fit_pixels`.
        cache_dir: See `vae_lab.data.image_folder.ImageFolder`.
        on_bad: "error", or "skip" to leave out pictures that cannot be used, up to 5 % of them.
    """

    def __init__(
        self,
        root: str,
        image_shape: tuple[int, int, int],
        fit: str,
        cache_dir: str | None = None,
        on_bad: str = "error",
    ):
        self.folder = check_root(root) / "celeba"
        self.pictures = self.folder / "img_align_celeba"
        shape = check_fit(image_shape, fit, source_size=218)
        self.cache = ImageCache(self.pictures, shape, fit, (0, 0, 0), on_bad, cache_dir)

    def read(self) -> Images:
        """Returns the official training, validation and test images; a `DataError` says that files are not there."""
        source = torchvision_datasets.CelebA
        lists = {name: md5 for _, md5, name in source.file_list if name.endswith(".txt")}
        with obtaining("CelebA", self.folder, self.folder.name, [*lists, self.pictures.name]) as missing:
            if missing:
                source(self.folder.parent, split="all", download=True)  # from Google Drive
        for name, md5 in lists.items():
            read_verified(self.folder / name, md5)
        celeba = source(self.folder.parent, split="all")
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
