"""A data set in the format of MNIST with 40 training and 20 test images."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lab.data.standard import MNIST

NUM_TRAIN, NUM_TEST = 40, 20


def idx(*shape: int, seed: int) -> bytes:
    """A file in MNIST's format: its magic number, its sizes, and bytes from 0 to 9."""
    header = np.array([0x800 + len(shape), *shape], ">i4").tobytes()
    return header + np.random.default_rng(seed).integers(0, 10, shape, dtype=np.uint8).tobytes()


FILES = {
    "train-images-idx3-ubyte": idx(NUM_TRAIN, 28, 28, seed=0),
    "t10k-images-idx3-ubyte": idx(NUM_TEST, 28, 28, seed=1),
    "train-labels-idx1-ubyte": idx(NUM_TRAIN, seed=2),
    "t10k-labels-idx1-ubyte": idx(NUM_TEST, seed=3),
}
IMAGES = FILES["train-images-idx3-ubyte"][16:] + FILES["t10k-images-idx3-ubyte"][16:]
PIXELS = torch.frombuffer(bytearray(IMAGES), dtype=torch.uint8).view(-1, 1, 28, 28)


def expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these the files that are known as MNIST."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    monkeypatch.setattr(MNIST, "files", checksums)


def read(root: Path) -> torch.Tensor:
    """The pixels of the data set."""
    return MNIST(str(root), (1, 28, 28), "resize").read().pixels
