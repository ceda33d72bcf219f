"""The archives of the standard datasets: downloaded and unpacked where files are missing."""

import gzip
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torchvision import datasets as torchvision_datasets

from vae_lab.downloads import download, one_downloader
from vae_lab.durable import durable_open
from vae_lab.errors import DataError, RunError
from vae_lab.images import printable


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
