"""B1: a damaged file of a standard data set is named, and never trained on."""

import pickle
from pathlib import Path

import pytest
import tiny_mnist
import torch
from command import TINY, status
from picture_folder import flipped
from strangers import Payload

from vae_lab.data.standard import CIFAR10, MNIST_FILES, FashionMNIST
from vae_lab.errors import DataError

pytestmark = pytest.mark.fault

DAMAGE = {
    "truncated": lambda content: content[:-1],
    "count": lambda content: flipped(content, 7),
    "first value": lambda content: flipped(content, 16),
    "last bit": lambda content: flipped(content, len(content) - 1),
    "page": lambda _: b"<html>log in</html>" * 1000,
    "empty": lambda _: b"",
    "swapped": lambda content: next(other for other in tiny_mnist.FILES.values() if other != content),
    "other labels": lambda _: tiny_mnist.idx(tiny_mnist.NUM_TEST - 5, seed=3),
}


@pytest.fixture
def mnist(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a tiny MNIST."""
    tiny_mnist.expect(monkeypatch)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in tiny_mnist.FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", MNIST_FILES)
def test_b1_a_damaged_file_is_named(name: str, mnist: Path, tmp_path):
    assert torch.equal(tiny_mnist.read(tmp_path), tiny_mnist.PIXELS)
    for damage in DAMAGE.values():
        (mnist / name).write_bytes(damage(tiny_mnist.FILES[name]))
        with pytest.raises(DataError, match=rf"^checksum mismatch {mnist / name}: expected \w+, got \w+; delete it"):
            tiny_mnist.read(tmp_path)


def test_b1_mnist_is_no_fashion_mnist(data_root: Path, tmp_path):
    (tmp_path / "FashionMNIST").symlink_to(data_root / "MNIST")
    with pytest.raises(DataError, match="checksum mismatch .*FashionMNIST/raw/train-images-idx3-ubyte"):
        FashionMNIST(str(tmp_path), (1, 28, 28), "resize").read()


def test_b1_a_batch_of_cifar10_is_not_unpickled_before_it_is_verified(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(DataError, match=r"checksum mismatch .*/data_batch_1: expected c99cafc1\w*, got .*delete it"):
        CIFAR10(str(tmp_path), (3, 32, 32), "resize").read()
    assert not (tmp_path / "executed").exists()


def test_b1_the_command_ends_with_exit_code_3(command, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in MNIST_FILES:
        (folder / name).write_bytes(b"<html>")
    run = tmp_path / "run"
    code, message = command("vae-lab", *TINY, "dataset=mnist", f"data_root={tmp_path}", f"hydra.run.dir={run}")
    assert code == 3
    assert f"checksum mismatch {folder}/train-images-idx3-ubyte: expected " in message
    assert status(run)["state"] == "failed"
    assert not (run / "checkpoints").exists()
