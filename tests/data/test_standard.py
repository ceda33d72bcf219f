import hashlib
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from vae_lab.data.standard import CIFAR10, MNIST, CelebA, Digits, FashionMNIST
from vae_lab.errors import DataError


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = Mock(side_effect=URLError("no network"))
    monkeypatch.setattr("vae_lab.data.standard.urlopen", refuse)
    monkeypatch.setattr("vae_lab.data.standard.BACKOFF", 0)
    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", refuse)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    images = Digits((1, 8, 8), "resize").read()
    assert (images.pixels.dtype, images.pixels.max()) == (torch.uint8, 255)
    assert (images.factors, images.num_test) == (("digit",), 0)
    levels = images.pixels.float() / 255 * 16
    np.testing.assert_allclose(levels[:, 0], load_digits().images, atol=0.04)
    np.testing.assert_array_equal(images.labels[:, 0], load_digits().target)


def test_mnist_is_the_known_data(data_root: Path, capfd):
    images = MNIST(str(data_root), (1, 28, 28), "resize").read()
    assert (images.pixels.shape, images.labels.shape) == ((70_000, 1, 28, 28), (70_000, 1))
    assert images.num_test == 10_000
    assert images.pixels[:60_000].float().mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert images.pixels[:60_000].float().std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert images.labels[:5, 0].tolist() == [5, 0, 4, 1, 9]
    assert images.labels[60_000:60_005, 0].tolist() == [7, 2, 1, 0, 4]
    assert capfd.readouterr() == ("", "")


def test_celeba_keeps_the_official_partition(tmp_path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{index:06}.jpg" for index in range(1, 6)]
    for index, name in enumerate(names):
        Image.new("RGB", (178, 218), (index * 50,) * 3).save(folder / "img_align_celeba" / name)
    partition = [0, 2, 0, 1, 2]
    identities = [f"{name} 1" for name in names]
    attributes = [f"{name} {sign}  1" for name, sign in zip(names, [1, 1, -1, -1, -1], strict=True)]
    rows = {
        "list_eval_partition.txt": [f"{n} {p}" for n, p in zip(names, partition, strict=True)],
        "identity_CelebA.txt": identities,
        "list_bbox_celeba.txt": ["5", "image_id x", *identities],
        "list_landmarks_align_celeba.txt": ["5", "x", *identities],
        "list_attr_celeba.txt": ["5", "Bald Young ", *attributes],
    }
    for name, lines in rows.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    file_list = [("", hashlib.md5((folder / name).read_bytes()).hexdigest(), name) for name in rows]
    monkeypatch.setattr(torchvision_datasets.CelebA, "file_list", file_list)
    source = CelebA(str(tmp_path), (1, 64, 64), "crop", str(tmp_path / "cache"))
    images = source.read()
    assert images.pixels.shape == (5, 1, 64, 64)
    assert images.num_test == 2
    assert [round(value / 50) for value in images.pixels[:, 0, 32, 32].tolist()] == [0, 2, 3, 1, 4]
    assert images.factors == ("Bald", "Young")
    assert images.labels.tolist() == [[1, 1], [0, 1], [0, 1], [1, 1], [0, 1]]
    (folder / "img_align_celeba" / names[3]).unlink()
    with pytest.raises(DataError, match="1 pictures are missing in .*, the first is 000004.jpg"):
        source.read()
    (folder / "list_attr_celeba.txt").write_text("5")
    with pytest.raises(DataError, match="checksum mismatch .*/list_attr_celeba.txt: expected .*delete it"):
        source.read()


@pytest.mark.parametrize(
    ("source", "folder"),
    [(MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw"), (CIFAR10, "cifar-10-batches-py"), (CelebA, "celeba")],
)
def test_missing_data_says_where_why_and_what_to_do(tmp_path, no_network, source, folder: str):
    holds = folder.removesuffix("/raw")
    with pytest.raises(DataError) as caught:
        source(str(tmp_path), (1, 32, 32), "resize").read()
    message = str(caught.value)
    assert f"{source.__name__} was not found in {tmp_path / folder} and could not be downloaded (" in message
    assert "no network" in message
    assert "\n" not in message
    assert f"set data_root (or VAE_LAB_DATA) to the folder that holds {holds}/" in message
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["download.lock"]


@pytest.mark.parametrize("source", [MNIST, CIFAR10])
def test_arguments_are_checked_before_the_disk(source):
    with pytest.raises(ValueError, match=r"image_size must be >= (28|32) with fit=pad, got 16"):
        source("/nowhere", (1, 16, 16), "pad")
    with pytest.raises(ValueError, match="dataset.root must be a folder"):
        source(" ", (1, 32, 32), "resize")
