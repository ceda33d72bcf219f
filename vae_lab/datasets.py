"""The standard datasets. A source checks its arguments without touching a file; `read()` returns `Images`."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets as torchvision_datasets
from torchvision.datasets import VisionDataset

from vae_lab.errors import DataError
from vae_lab.image_folder import read_cached, scan
from vae_lab.images import Images, check_fit, fit_pixels

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer


class Digits:
    """1,797 handwritten digits, grey 8x8, that come with scikit-learn; no test split of their own.

    Args:
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.images.fit_pixels`.

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
        fit: See `vae_lab.images.fit_pixels`.

    Raises:
        ValueError: If `image_shape` or `fit` is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str):
        self.folder = Path(root).expanduser() / "MNIST" / "raw"
        self.image_shape = check_fit(image_shape, fit, source_size=28)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        dataset = partial(torchvision_datasets.MNIST, self.folder.parents[1])
        return _read_splits(dataset, self.folder, "digit", self.image_shape, self.fit)


class FashionMNIST:
    """60,000 + 10,000 pieces of clothing, grey 28x28 (Xiao et al. 2017), downloaded when missing.

    Args:
        root: The folder that holds `FashionMNIST/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.images.fit_pixels`.

    Raises:
        ValueError: If `image_shape` or `fit` is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str):
        self.folder = Path(root).expanduser() / "FashionMNIST" / "raw"
        self.image_shape = check_fit(image_shape, fit, source_size=28)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        dataset = partial(torchvision_datasets.FashionMNIST, self.folder.parents[1])
        return _read_splits(dataset, self.folder, "class", self.image_shape, self.fit)


class CIFAR10:
    """50,000 + 10,000 objects of 10 classes, RGB 32x32 (Krizhevsky 2009), downloaded when missing.

    Args:
        root: The folder that holds `cifar-10-batches-py/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.images.fit_pixels`.

    Raises:
        ValueError: If `image_shape` or `fit` is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str):
        self.folder = Path(root).expanduser() / "cifar-10-batches-py"
        self.image_shape = check_fit(image_shape, fit, source_size=32)
        self.fit = fit

    def read(self) -> Images:
        """Returns training, then test images.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        dataset = partial(torchvision_datasets.CIFAR10, self.folder.parent)
        return _read_splits(dataset, self.folder, "class", self.image_shape, self.fit)


class CelebA:
    """202,599 aligned faces with 40 binary attributes, RGB 218x178 (Liu et al. 2015).

    The download needs gdown: `pip install "vae_lab[celeba]"`.

    Args:
        root: The folder that holds `celeba/`.
        image_shape: (C, size, size) with C 1 or 3.
        fit: See `vae_lab.images.fit_pixels`.
        cache_dir: Where the decoded pictures are kept.

    Raises:
        ValueError: If `image_shape` or `fit` is out of range.
    """

    def __init__(self, root: str, image_shape: Sequence[int], fit: str, cache_dir: str):
        self.folder = Path(root).expanduser() / "celeba"
        self.image_shape = check_fit(image_shape, fit, source_size=218)
        self.fit = fit
        self.cache_dir = cache_dir

    def read(self) -> Images:
        """Returns the official training, validation and test images, in this order.

        Raises:
            DataError: If the files are missing and cannot be downloaded, or are damaged.
        """
        celeba = _open(partial(torchvision_datasets.CelebA, self.folder.parent, split="all"), self.folder)
        lines = (self.folder / "list_eval_partition.txt").read_text().splitlines()
        partition = torch.tensor([int(line.split()[1]) for line in lines])  # 0 training, 1 validation, 2 test
        order = partition.argsort(stable=True)
        pictures = self.folder / "img_align_celeba"
        found = {file.path: file for file in scan(pictures)}
        missing = [name for name in celeba.filename if name not in found]
        if missing:
            raise DataError(f"{len(missing)} pictures are missing in {pictures}, the first is {missing[0]}")
        files = [found[celeba.filename[index]] for index in order]
        pixels = read_cached(pictures, files, self.image_shape, self.fit, self.cache_dir)
        names = tuple(name for name in celeba.attr_names if name)  # the header line ends in a space
        num_val, num_test = (int((partition == number).sum()) for number in (1, 2))
        return Images(pixels, celeba.attr[order].long(), names, num_test, num_val)


def _read_splits(
    dataset: Callable[..., VisionDataset], folder: Path, factor: str, image_shape: Sequence[int], fit: str
) -> Images:
    """Reads the training and the test split of a torchvision dataset that keeps its images in memory."""
    splits = [_open(partial(dataset, train=train), folder) for train in (True, False)]
    pixels = torch.cat([_channels_first(split.data) for split in splits])
    labels = torch.cat([torch.as_tensor(split.targets).long() for split in splits])[:, None]
    if len(pixels) != len(labels):
        counts = f"{len(pixels)} images, {len(labels)} labels"
        raise DataError(f"{folder} is damaged ({counts}): delete it and run again")
    return Images(fit_pixels(pixels, image_shape, fit), labels, (factor,), num_test=len(splits[1].data))


def _channels_first(data) -> Tensor:
    """(N, H, W) tensor or (N, H, W, C) array to a (N, C, H, W) tensor."""
    pixels = torch.as_tensor(data)
    return (pixels[..., None] if pixels.ndim == 3 else pixels).permute(0, 3, 1, 2).contiguous()


def _open(dataset: Callable[..., VisionDataset], folder: Path) -> VisionDataset:
    """Opens a torchvision dataset and downloads it when it is not there.

    Raises:
        DataError: One line with the folder, the reason and the remedy.
    """
    try:
        return dataset(download=False)
    except Exception as error:  # torchvision meets damaged files with bare asserts, views and parsers
        if "not found" not in str(error):
            raise DataError(f"{folder} is damaged ({_one_line(error)}): delete it and run again") from error
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            return dataset(download=True)
    except Exception as error:  # network, disk, archive and Google Drive errors have no common base
        name, holds = dataset.func.__name__, folder.parent.name if folder.name == "raw" else folder.name
        raise DataError(
            f"{name} was not found in {folder} and could not be downloaded ({_one_line(error)}): "
            f"set data_root (or VAE_LAB_DATA) to the folder that holds {holds}/, "
            "or run once where there is a network"
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds the waiting of torchvision's downloads, which set no timeout of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
