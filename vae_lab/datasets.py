"""The standard datasets. A source checks its arguments without touching a file; `read()` returns `Images`."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets as torchvision_datasets

from vae_lab.archives import missing, obtaining, unpack_cifar, unpack_idx
from vae_lab.downloads import read_verified
from vae_lab.errors import DataError
from vae_lab.image_cache import ImageCache
from vae_lab.image_folder import check_root, scan
from vae_lab.images import Images, check_fit, fit_pixels, printable

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
        fit: See `vae_lab.images.fit_pixels`.

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
        fit: See `vae_lab.images.fit_pixels`.

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
        fit: See `vae_lab.images.fit_pixels`.
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
