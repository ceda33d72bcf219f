"""The decoded pictures that are kept: damage, kills, companions and full disks do no harm."""

import errno
import os
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from forks import fork, wait
from picture_folder import draw_many, flipped, read, values

from vae_lab.data import image_folder as image_cache
from vae_lab.errors import DataError

pytestmark = pytest.mark.fault


def cache_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").glob("*.pixels")
    return path


CACHE_DAMAGE = {
    "halved": lambda content: content[: len(content) // 2],
    "first pixel": lambda content: flipped(content, 0),
    "who is left out": lambda content: flipped(content, len(content) - 44),
    "checksum": lambda content: flipped(content, len(content) - 1),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE)
def test_a_damaged_cache_is_made_again(damage: str, tmp_path, caplog):
    root = draw_many(tmp_path / "in")
    (root / "007.png").write_bytes(b"")
    first = read(tmp_path, on_bad="skip").pixels.clone()
    path = cache_file(tmp_path)
    content = path.read_bytes()
    path.write_bytes(CACHE_DAMAGE[damage](content))
    images = read(tmp_path, on_bad="skip")
    assert torch.equal(images.pixels, first)
    assert images.num_skipped == 1
    assert f"{path} is damaged: the pictures are decoded again" in caplog.text
    assert path.read_bytes() == content


def test_a_killed_run_leaves_no_cache_and_what_it_leaves_is_removed(tmp_path):
    draw_many(tmp_path / "in", 2)

    def die_in_the_middle():
        image_cache.zlib.crc32 = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        read(tmp_path)

    assert wait(fork(die_in_the_middle)) == -signal.SIGKILL
    (leftover,) = (tmp_path / "cache").glob("*.part")
    leftover = leftover.rename(leftover.with_name("other.pixels.part"))
    assert values(read(tmp_path)) == [0, 1]
    assert not leftover.exists()


def test_processes_at_once_decode_every_picture_once(tmp_path):
    draw_many(tmp_path / "in", 10)
    log = tmp_path / "log"
    decode = image_cache.decode

    def decode_and_tell(path, *arguments):
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        time.sleep(0.02)  # so that the processes meet
        return decode(path, *arguments)

    def read_all():
        image_cache.decode = decode_and_tell
        assert values(read(tmp_path)) == list(range(10))

    children = [fork(read_all) for _ in range(3)]
    assert [wait(child) for child in children] == [0, 0, 0]
    assert sorted(log.read_text().split()) == [f"{number:03}.png" for number in range(10)]


def test_other_pictures_with_the_same_names_sizes_and_times_are_not_taken_for_those_in_the_cache(tmp_path):
    root = draw_many(tmp_path / "in", 3)
    assert values(read(tmp_path)) == [0, 1, 2]
    for path in root.iterdir():
        status, content = path.stat(), path.read_bytes()
        path.write_bytes((root / "001.png").read_bytes().ljust(len(content), b"\0"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
    assert values(read(tmp_path)) == [1, 1, 1]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    draw_many(tmp_path / "in", 3)
    with monkeypatch.context() as patch:
        patch.setattr("vae_lab.data.image_folder.os.replace", Mock(side_effect=full))
        with pytest.raises(DataError, match=r"cannot keep 576 bytes of decoded .*No space left on device.*: set dat"):
            read(tmp_path)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
    assert values(read(tmp_path)) == [0, 1, 2]
