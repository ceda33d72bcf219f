import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folder import draw, draw_many, read, values
from PIL import Image

from vae_lab.data.batches import ImageData
from vae_lab.data.image_folder import ImageFolder
from vae_lab.errors import DataError


def test_official_splits_of_real_pictures(data_root: Path, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "in" / split).mkdir(parents=True)
        for name in ("cat", "truck"):
            (tmp_path / "in" / split / name).symlink_to(data_root / "cifar10_jpg" / split / name)
    source = ImageFolder(str(tmp_path / "in"), (3, 32, 32), "resize", str(tmp_path / "cache"))
    images = source.read()
    assert images.pixels.shape == (1000, 3, 32, 32)
    assert images.num_test == 200
    assert images.factors == ("class",)
    assert images.labels[:, 0].tolist() == [0] * 400 + [1] * 400 + [0] * 100 + [1] * 100
    assert torch.equal(source.read().pixels, images.pixels)
    last = np.array(Image.open(max((data_root / "cifar10_jpg" / "test" / "truck").iterdir())))
    np.testing.assert_array_equal(images.pixels[-1].permute(1, 2, 0), last)


@pytest.mark.fault
def test_b9_a_flat_folder_has_no_labels_and_is_sorted(tmp_path):
    for name, value in {"b.png": 2, "ä 画.PNG": 3, "a.bmp": 1}.items():
        draw(tmp_path / "in" / name, value)
    draw(tmp_path / "in" / ".hidden.png", 9)
    (tmp_path / "in" / "notes.txt").write_text("not a picture")
    images = read(tmp_path)
    assert values(images) == [1, 2, 3]
    assert (images.labels.shape, images.factors, images.num_test) == ((3, 0), (), 0)


def test_first_level_folders_are_the_classes(tmp_path):
    for name, value in {"dog/1.png": 3, "cat/x.png": 1, "cat/deep/y.png": 2, "train/1.png": 4}.items():
        draw(tmp_path / "in" / name, value)
    images = read(tmp_path)
    assert dict(zip(values(images), images.labels[:, 0].tolist(), strict=True)) == {1: 0, 2: 0, 3: 1, 4: 2}
    assert images.num_test == 0


def test_test_pictures_come_last_and_what_is_no_split_is_left_out(tmp_path, caplog):
    layout = {"test/a/1.png": 5, "test/b/1.png": 6, "train/a/1.png": 1, "train/b/1.png": 2, "val/b/1.png": 3}
    for name, value in (layout | {"extra/1.png": 9}).items():
        draw(tmp_path / "in" / name, value)
    (tmp_path / "in" / "train" / "a" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    images = read(tmp_path)
    assert f"1 pictures in {tmp_path / 'in'} are left out, as .heic is not read" in caplog.text
    assert values(images) == [1, 2, 3, 5, 6]
    assert images.labels[:, 0].tolist() == [0, 1, 1, 0, 1]
    assert images.class_names == ("a", "b")
    assert (images.num_val, images.num_test) == (1, 2)
    assert "1 pictures outside train/, val/ and test/ are left out" in caplog.text


SPLITS = {  # of folders with 3, 2 and 1 pictures: how many are for training, validation, test
    "train val test": (3, 2, 1),
    "train valid": (3, 2, 0),
    "train valid test": (3, 2, 1),
    "Train Test": (3, 0, 2),
    "training validation testing": (3, 2, 1),
    "TRAIN": (3, 0, 0),
    "test/a Training/a": (2, 0, 3),
    "train/images valid/images test/images": (3, 2, 1),
    "cat dog train": (6, 0, 0),  # the last is a vehicle
    "valid invalid": (5, 0, 0),
    "train_station bus_station": (5, 0, 0),
    "latest valley restraint": (6, 0, 0),
}
UNCLEAR = [
    *("train2017 val2017", "train_images test_images", "training_set test_set", "seg_train seg_test", "trainA testA"),
    *("TrainSet TestSet", "trainval test", "train dev", "train test test2", "val test", "test", "train training"),
    *("train val valid", "images/train images/val", "bottle/train bottle/test cable"),
]


@pytest.mark.fault
@pytest.mark.parametrize("folders", [*SPLITS, *UNCLEAR])
def test_folders_of_splits_are_recognised_or_refused(folders: str, tmp_path, caplog):
    files = [(f"{folder}/{n}.png", n) for folder, count in zip(folders.split(), (3, 2, 1), strict=False)
             for n in range(count)]  # fmt: skip
    for name, value in files:
        draw(tmp_path / "in" / name, value, (1, 1))
    if folders in UNCLEAR:
        with pytest.raises(DataError, match=r"/in, the folders .*: name the folders at the top train/, val/ and test/"):
            read(tmp_path)
        return
    with caplog.at_level(logging.INFO):
        images = read(tmp_path)
    train, val, test = SPLITS[folders]
    assert (images.num_val, images.num_test, len(images.pixels)) == (val, test, train + val + test)
    told = [record.message for record in caplog.records if record.message.startswith("splits of")]
    has_splits = val + test > 0 or folders == "TRAIN"
    assert len(told) == has_splits
    assert not has_splits or f"is train ({train})" in told[0]


def test_the_cache_is_used_until_a_file_changes(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for value in (1, 2):
        draw(tmp_path / "in" / f"{value}.png", value)
    assert values(read(tmp_path)) == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr("vae_lab.data.image_folder.decode", None)
        images = read(tmp_path)
        assert values(images) == [1, 2]
        images.pixels.zero_()
        assert values(read(tmp_path)) == [1, 2]
    draw(tmp_path / "in" / "2.png", 7)
    assert values(read(tmp_path)) == [1, 7]
    (tmp_path / "in" / "1.png").rename(tmp_path / "in" / "3.png")
    assert values(read(tmp_path)) == [7, 1]
    assert read(tmp_path, size=4).pixels.shape == (2, 3, 4, 4)


def test_only_so_many_bad_pictures_are_named(tmp_path, monkeypatch: pytest.MonkeyPatch):
    draw_many(tmp_path / "in", 1)
    for index in range(23):
        (tmp_path / "in" / f"bad{index:02}.png").write_bytes(b"")
    monkeypatch.setattr("vae_lab.data.image_folder.MAX_NAMED", 20)
    with pytest.raises(DataError, match="23 of 24 pictures cannot be used: .*bad00.*bad19.*; and 3 more") as caught:
        read(tmp_path)
    assert "bad20.png" not in str(caught.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_more_pictures_than_a_chunk_keep_their_order(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vae_lab.data.image_folder.CHUNK", 4)
    draw_many(tmp_path / "in", 11)
    assert values(read(tmp_path)) == list(range(11))


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    draw(tmp_path / "in" / "cat" / "1.png", 1)
    draw(tmp_path / "in" / "loose.png", 1)
    with pytest.raises(DataError, match="move loose.png into a class folder"):
        read(tmp_path)
    (tmp_path / "in" / "loose.png").unlink()
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="cannot keep 192 bytes of decoded pictures in .*/cache .*set dataset.source"):
        read(tmp_path)


def test_an_empty_or_relative_xdg_cache_home_is_unset_and_no_home_is_told(tmp_path, monkeypatch: pytest.MonkeyPatch):
    folders = {}
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "here", str(tmp_path / "elsewhere")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        folders[value] = ImageFolder("/nowhere", (1, 8, 8), "crop").cache.folder
    assert list(folders.values()) == [tmp_path / ".cache" / "vae_lab"] * 2 + [tmp_path / "elsewhere" / "vae_lab"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where neither HOME nor the user is known
    with pytest.raises(ValueError, match="dataset.source.cache_dir must be set here: Could not determine home"):
        ImageFolder("/nowhere", (1, 8, 8), "crop")
    assert ImageFolder("/nowhere", (1, 8, 8), "crop", "/tmp/cache").cache.folder == Path("/tmp/cache")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and memory is given back there only")
def test_a_mapped_file_does_not_stay_in_memory(tmp_path, monkeypatch: pytest.MonkeyPatch):
    draw_many(tmp_path / "in", 60)

    def resident() -> int:
        own = rf"{tmp_path}.*\.pixels\n(?:.*\n)*?Rss: +(\d+)"  # not those that another test still maps
        return 1024 * sum(map(int, re.findall(own, Path("/proc/self/smaps").read_text())))

    monkeypatch.setattr("vae_lab.data.batches.MOST_MAPPED", 2**18)
    source = ImageFolder(str(tmp_path / "in"), (3, 128, 128), "resize", str(tmp_path / "cache"))
    source.read()  # decodes
    arguments = {"batch_size": 4, "binarize": "none", "flip": False, "val_size": 4, "test_size": 4, "split_seed": 0}
    data = ImageData(source, (3, 128, 128), num_workers=0, seed=0, **arguments)
    data.setup("fit")
    before = data.splits["train"].pixels.float().mean()
    assert resident() >= data.splits["train"].pixels.nbytes
    data.splits["train"].release()
    assert resident() == 0
    for batch in data.train_dataloader():
        assert batch.x.shape[0] == 4
        assert resident() < 2**20  # what is gathered in between, and its neighbours, which the system reads with it
    assert data.splits["train"].pixels.float().mean() == before
