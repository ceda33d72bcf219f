"""Arrays in every layout and kind come out as the same bytes, and what is no array of images is refused."""

import numpy as np
import pytest
import torch

from vae_lab.data.arrays import Arrays
from vae_lab.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(6) % 4


def save(path, content):
    {".npy": np.save, ".npz": lambda p, c: np.savez(p, **c), ".pt": lambda p, c: torch.save(c, p)}[path.suffix](
        path, content
    )
    return path


def read(path, channels=3, size=4, fit="resize"):
    return Arrays(str(path), (channels, size, size), fit).read()


def tensors(**arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", PIXELS),
        ("a.npy", PIXELS.transpose(0, 2, 3, 1)),
        ("a.npy", PIXELS.reshape(6, -1)),
        ("a.npy", PIXELS.astype(np.int64)),
        ("a.npy", PIXELS / 255),
        ("a.npy", (PIXELS / 255).astype(np.float32)),
        ("a.npz", {"only": PIXELS}),
        ("a.npz", {"x": PIXELS, "y": LABELS}),
        ("a.npz", {"images": PIXELS, "labels": LABELS, "note": np.zeros(1)}),
        ("a.npz", {"x_train": PIXELS[:4], "x_test": PIXELS[4:], "y_train": LABELS[:4], "y_test": LABELS[4:]}),
        ("a.pt", torch.from_numpy(PIXELS)),
        ("a.pt", tensors(x=PIXELS, y=LABELS)),
        ("a.pt", tuple(tensors(x=PIXELS, y=LABELS).values())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_layout_is_the_same_images(tmp_path, name, content):
    images = read(save(tmp_path / name, content))
    assert np.array_equal(images.pixels.numpy(), PIXELS)
    has_labels = isinstance(content, tuple) or (isinstance(content, dict) and len(content) > 1)
    assert images.factors == (("label",) if has_labels else ())
    assert images.labels[:, 0].tolist() == LABELS.tolist() if has_labels else images.labels.shape == (6, 0)
    assert images.num_test == (2 if isinstance(content, dict) and "x_test" in content else 0)


def test_grey_and_binary_arrays_and_labels_beside_the_file(tmp_path):
    bits = PIXELS[:, 0] > 127
    save(tmp_path / "bits.npy", bits)
    save(tmp_path / "bits_labels.npy", np.stack([LABELS, LABELS], 1))
    images = read(tmp_path / "bits.npy", channels=1)
    assert np.array_equal(images.pixels[:, 0].numpy(), bits * np.uint8(255))
    assert images.factors == ("label 0", "label 1")
    assert read(tmp_path / "bits.npy", channels=1, size=8, fit="pad").pixels.shape == (6, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", PIXELS.astype(int) + 1, r"pixels must be whole numbers in \[0, 255\], got 1 to 256"),
        ("a.npy", PIXELS * 1.0, r"pixels must be numbers in \[0, 1\], got 0 to 255"),
        ("a.npy", np.full((2, 4, 4), np.nan), r"pixels must be numbers in \[0, 1\], got nan to nan"),
        ("a.npy", np.zeros((2, 4, 4, 4), np.uint8), r"images must have the shape .*, got \(2, 4, 4, 4\)"),
        ("a.npy", np.zeros((0, 4, 4), np.uint8), r"images must have the shape .*, got \(0, 4, 4\)"),
        ("a.npy", np.array(["a"] * 32).reshape(2, 4, 4), "images must be numbers, got <U1"),
        ("a.npz", {"x": PIXELS, "y": LABELS[:3]}, r"labels must have the shape \(6,\) or \(6, F\), got \(3,\)"),
        ("a.npz", {"x": PIXELS, "y": LABELS - 1}, "labels must be whole numbers >= 0"),
        ("a.npz", {"x": PIXELS, "y": LABELS + 0.5}, "labels must be whole numbers >= 0, got float64"),
        ("a.npz", {"pictures": PIXELS, "classes": LABELS}, r"has no x or images .*, but pictures, classes"),
        ("a.npz", {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS}, "must both have the same label columns"),
        ("a.pt", [1, 2, 3], "images must have the shape"),
    ],
)
def test_what_is_no_array_of_images_is_refused(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read(save(tmp_path / name, content))


def test_files_that_execute_something_are_refused(tmp_path):
    torch.save({"x": pytest.importorskip}, tmp_path / "a.pt")  # a function, by its name
    np.save(tmp_path / "a.npy", np.array([print]), allow_pickle=True)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    for name in ("a.pt", "a.npy", "a.npz", "none.npy"):
        with pytest.raises(DataError, match=rf"cannot read .*{name}: .+; (it must hold|set dataset\.root)"):
            read(tmp_path / name)


@pytest.mark.parametrize("root", [None, "", "folder", "images.csv"])
def test_the_file_must_be_named(root):
    with pytest.raises(ValueError, match=r"dataset\.root must be a file of images, \.npy, \.npz, \.pt, got"):
        Arrays(root, (1, 4, 4), "resize")
