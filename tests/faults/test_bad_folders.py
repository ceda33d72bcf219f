"""B4 and B8 to B11: damaged, odd and few pictures are trained on as they should be, or named all at once."""

import errno
import json
import logging
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from command import status
from omegaconf import DictConfig
from picture_folder import draw, draw_many, flipped, read, values

from vae_lab.data.image_folder import ImageFolder
from vae_lab.errors import DataError
from vae_lab.training.train import train

pytestmark = pytest.mark.fault


@pytest.fixture
def few(config, tmp_path):
    """Compose the config of a run on so many pictures."""

    def compose(number: int, *overrides: str) -> DictConfig:
        draw_many(tmp_path / "in", number)
        where = [f"dataset.root={tmp_path / 'in'}", f"dataset.source.cache_dir={tmp_path / 'cache'}"]
        return config("dataset=image_folder", *where, "dataset.image_size=8", "loss=mse", *overrides)

    return compose


def make_bad(root: Path) -> list[str]:
    """Pictures that cannot be used, among good ones; returns how messages name them."""
    png, jpeg = draw(root / "good.png").read_bytes(), draw(root / "good.jpg", size=(32, 32)).read_bytes()
    progressive = draw(root / "progressive.jpg", size=(64, 64), progressive=True).read_bytes()
    bad = {
        "zero bytes.png": b"",
        "zeros.jpg": bytes(5000),
        "text.png": b"hello",
        "page.jpg": b"<!doctype html><html></html>",
        "truncated.png": png[: len(png) // 2],
        "without end.png": png[:-12],
        "flipped.png": flipped(png, len(png) // 2),
        "zero tail.png": png[:-100] + bytes(100),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "without end.jpg": jpeg[:-2],
        "zero tail.jpg": jpeg[:-200] + bytes(200),
        "progressive.jpg": progressive[: len(progressive) // 2],
        "truncated.webp": draw(root / "a.webp").read_bytes()[:-20],
        "truncated.gif": draw(root / "a.gif").read_bytes()[:-50],
        "truncated.bmp": draw(root / "a.bmp").read_bytes()[:-50],
        "truncated.tif": draw(root / "a.tif").read_bytes()[:100],
        "truncated.ppm": draw(root / "a.ppm").read_bytes()[:-50],
    }
    for name, content in bad.items():
        (root / name).write_bytes(content)
    (root / "dangling.png").symlink_to("nowhere.png")
    (root / "ring.png").symlink_to("ring.png")
    os.mkfifo(root / "pipe.png")
    (root / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # a socket's path is short
        listener.bind("socket.png")
        os.chdir(here)
    odd = ["line\nbreak.png", os.fsdecode(b"caf\xe9.png"), "\x1b[31m.png"]
    for name in odd:
        (root / name).write_bytes(b"")
    return [*bad, "dangling.png", "ring.png", "pipe.png", "device.png", "socket.png", *(ascii(n)[1:-1] for n in odd)]


def test_b4_every_bad_picture_is_listed_at_once(tmp_path, caplog):
    bad = make_bad(tmp_path / "in")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{len(bad)} of {len(bad) + 7} pictures cannot be used: ")
    for name in bad:
        assert f"in/{name}" in text
    assert "good" not in text
    assert text.isprintable()
    assert "dataset.on_bad=skip" in text


def test_b4_bad_pictures_can_be_skipped(tmp_path, caplog):
    root = draw_many(tmp_path / "in")
    (root / "007.png").write_bytes(b"")
    (root / "039.png").write_text("text")
    expected = [value for value in range(40) if value not in (7, 39)]
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        images = read(tmp_path, on_bad="skip")
        assert values(images) == expected
        assert images.num_skipped == 2
        assert len(images.labels) == 38
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "2 of 40 pictures are left out: " in record.message
        assert "007.png: no picture that can be read" in record.message
        assert "039.png: no picture that can be read" in record.message
    with pytest.raises(DataError, match="2 of 40 pictures cannot be used: .*007.png.*039.png"):
        read(tmp_path)  # the cache of a run that skips is no excuse


def test_b4_more_than_5_percent_are_not_skipped(tmp_path):
    root = draw_many(tmp_path / "in")
    for name in ("007.png", "008.png", "009.png"):
        (root / name).write_bytes(b"")
    with pytest.raises(DataError, match="3 of 40 pictures cannot be used: .*leaves out up to 5% of all"):
        read(tmp_path, on_bad="skip")


def test_b4_skipped_pictures_keep_labels_and_splits_in_step(tmp_path):
    for split, classes in {"train": ("a", "b"), "val": ("a", "b"), "test": ("a", "b")}.items():
        for number, name in enumerate(classes):
            draw_many(tmp_path / "in" / split / name, 10 + number)
    for bad in ("train/b/000.png", "val/a/009.png", "test/b/003.png"):
        (tmp_path / "in" / bad).write_bytes(b"")
    images = read(tmp_path, on_bad="skip")
    assert (len(images.pixels), images.num_val, images.num_test, images.num_skipped) == (60, 20, 20, 3)
    expected = [0] * 10 + [1] * 10 + [0] * 9 + [1] * 11 + [0] * 10 + [1] * 10
    assert images.labels[:, 0].tolist() == expected
    tens, elevens = list(range(10)), list(range(11))
    assert values(images)[:20] == tens + elevens[1:]
    assert values(images)[40:] == tens + [0, 1, 2, *range(4, 11)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_b4_a_split_does_not_vanish(split: str, tmp_path):
    draw_many(tmp_path / "in" / "train")
    (tmp_path / "in" / split).mkdir()
    (tmp_path / "in" / split / "only.png").write_bytes(b"")
    with pytest.raises(DataError, match=f"none of the 1 pictures of {split}/ in .*/in can be used"):
        read(tmp_path, on_bad="skip")


def test_b4_a_picture_that_was_mended_is_used_again(tmp_path, monkeypatch: pytest.MonkeyPatch):
    root = draw_many(tmp_path / "in")
    (root / "007.png").rename(tmp_path / "hidden.png")
    (root / "007.png").symlink_to(tmp_path / "hidden.png")
    with monkeypatch.context() as patch:
        opened = open

        def refuse(path, *arguments):
            if str(path).endswith("007.png"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, *arguments)

        patch.setattr("builtins.open", refuse)
        assert read(tmp_path, on_bad="skip").num_skipped == 1
    images = read(tmp_path, on_bad="skip")
    assert images.num_skipped == 0
    assert values(images) == list(range(40))


def test_b4_the_number_of_skipped_pictures_is_known_to_the_run(few, tmp_path):
    cfg = few(40, "dataset.on_bad=skip")
    (tmp_path / "in" / "007.png").write_bytes(b"")
    train(cfg)
    assert status(tmp_path / "run")["state"] == "completed"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped_files"] == 1


def test_b4_settings_are_checked_first(tmp_path):
    for background in (-1, 256, [0, 0], [0, 0, 300], 1.5, "red", None, True):
        with pytest.raises(ValueError, match="dataset.background must be a grey level from 0 to 255 or"):
            ImageFolder("/nowhere", (3, 8, 8), "crop", "/nowhere", background)
    with pytest.raises(ValueError, match="dataset.on_bad must be one of error, skip, got 'ignore'"):
        ImageFolder("/nowhere", (3, 8, 8), "crop", "/nowhere", on_bad="ignore")
    for root in ("", None):
        with pytest.raises(ValueError, match="dataset.root must be a folder"):
            ImageFolder(root, (3, 8, 8), "crop", "/nowhere")


def test_b8_pictures_of_any_size_are_fitted(tmp_path):
    for index, size in enumerate([(1, 1), (1, 500), (500, 1), (8, 8), (7, 9), (300, 200)]):
        draw(tmp_path / "in" / f"{index}.png", index, size)
    for fit in ("resize", "crop"):
        assert read(tmp_path, fit=fit).pixels.shape == (6, 3, 8, 8)
    with pytest.raises(DataError, match="4 of 6 pictures .*1.png: image_size must be >= 500 with fit=pad, got 8"):
        read(tmp_path, fit="pad")


def test_b9_folders_without_pictures_are_named(tmp_path, caplog):
    draw_many(tmp_path / "in" / "full", 3)
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "texts").mkdir()
    (tmp_path / "in" / "texts" / "notes.TXT").write_text("")
    with caplog.at_level(logging.INFO):
        images = read(tmp_path)
    assert len(images.pixels) == 3
    assert f"no pictures in {tmp_path}/in/empty; {tmp_path}/in/texts" in caplog.text
    assert f"files that are no pictures in {tmp_path}/in: 1 with .txt" in caplog.text


def test_b9_an_empty_folder_will_not_do(tmp_path):
    (tmp_path / "in").mkdir()  # a flat one is read in ../data/test_image_folder.py
    with pytest.raises(DataError, match="no pictures in .*/in: set dataset.root to a folder of pictures"):
        read(tmp_path)
    (tmp_path / "in").rmdir()
    (tmp_path / "in").write_text("")
    with pytest.raises(DataError, match=r"cannot read .*/in \(Not a directory\): set dataset.root to .*\.jpg .*\.pgm"):
        read(tmp_path)
    (tmp_path / "in").unlink()
    (tmp_path / "in").symlink_to("in")
    with pytest.raises(DataError, match=r"cannot read .*/in \(Too many levels of symbolic links\)"):
        read(tmp_path)


NAMES = [
    "ünï 画.png", "emoji😀.JPEG", "with space.png", "new\nline.png", "tab\t.png", "a" * 200 + ".png", "#.png", "%s.png",
    "a'b\"c.png", "{x}.png", "[red]x.png", "$HOME.png", "-rf.png", "a;b&c|d.png", "back\\slash.png", "a.b.PNG",
    "x.jfif", "x.jpe", "x.Tiff", "x.pnm", "x.dib", "x.apng", "really a png.jpg", os.fsdecode(b"caf\xe9.png"),
]  # fmt: skip
KINDS = {"jpeg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tiff": "TIFF", "pnm": "PPM", "dib": "BMP"}


def test_b10_odd_names_are_read(tmp_path):
    for name in NAMES:
        draw(tmp_path / "in" / "folder.png" / name, format=KINDS.get(name.rsplit(".", 1)[1].lower(), "PNG"))
    assert len(read(tmp_path).pixels) == len(NAMES)


@pytest.mark.parametrize("target", [".", "../..", "/", "../a"])
def test_b10_links_to_folders_do_not_go_round(target: str, tmp_path, caplog):
    draw(tmp_path / "in" / "a" / "1.png", 1)
    (tmp_path / "in" / "a" / "back").symlink_to(target, target_is_directory=True)
    assert values(read(tmp_path)) == [1]
    assert f"{tmp_path}/in/a/back is left out: it links to a folder that it lies in" in caplog.text


def test_b10_links_from_folder_to_folder_end(tmp_path):
    draw(tmp_path / "in" / "a" / "1.png", 1)
    draw(tmp_path / "elsewhere" / "2.png", 2)
    (tmp_path / "in" / "a" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in" / "a")
    assert values(read(tmp_path)) == [1, 2]


def test_b10_a_link_to_a_folder_that_is_gone_is_named(tmp_path):
    draw(tmp_path / "in" / "a" / "1.png", 1)
    (tmp_path / "in" / "b").symlink_to("/nowhere")
    (tmp_path / "in" / "c").symlink_to("c")
    with pytest.raises(DataError, match=r"cannot read .*in/b \(it links to nothing\); .*in/c \(it links to nothing\)"):
        read(tmp_path, on_bad="skip")


@pytest.mark.parametrize(("number", "override"), [(1, "dataset.val_size=0"), (5, "dataset.batch_size=100")])
def test_b11_few_pictures_are_trained_on(number: int, override: str, few, tmp_path):
    train(few(number, override))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 2
    assert np.isfinite(next(value for key, value in result.items() if key.endswith("/loss")))
