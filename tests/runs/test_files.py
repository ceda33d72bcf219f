"""A file is there whole or not at all."""

import errno
import os
import shutil

import pytest

from vae_lab.errors import RunError
from vae_lab.runs.files import durable_link, durable_open, read_json, write_json

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_file_appears_or_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for before, content in ((None, b"old"), (b"old", b"half and half")):
        with durable_open(path) as file:
            file.write(content)
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
        assert path.read_bytes() == content
        assert os.listdir(path.parent) == ["file"]


def test_bytes_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    with durable_open(tmp_path / "file") as file:
        file.write(b"new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write():
        with durable_open(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch, name):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*args):
        raise FULL

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(RunError, match=rf"cannot write {path}: No space left on device"), durable_open(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_written_is_a_run_error(tmp_path, monkeypatch):
    def read_only(*args, **kwargs):  # as a read-only file system answers, to unlink too
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("builtins.open", read_only)
    monkeypatch.setattr(os, "unlink", read_only)
    with pytest.raises(RunError, match="Read-only file system"), durable_open(tmp_path / "file"):
        pytest.fail("there is nothing to write to")


def test_a_link_replaces_its_target_and_outlives_its_source(tmp_path):
    (tmp_path / "last").write_bytes(b"new")
    (tmp_path / "best").write_bytes(b"old")
    durable_link(tmp_path / "last", tmp_path / "best")
    with durable_open(tmp_path / "last") as file:
        file.write(b"newer")
    assert (tmp_path / "best").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["best", "last"]


def test_a_link_that_fails_keeps_the_target(tmp_path, monkeypatch):
    (tmp_path / "last").write_bytes(b"new")
    (tmp_path / "best").write_bytes(b"old")

    def full(*args):
        raise FULL

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copy2", full)
    message = r"cannot write .*best: No space left on device \(3 bytes needed, [\d,]+ bytes free"
    with pytest.raises(RunError, match=message):
        durable_link(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == b"old"


def test_json_comes_back_and_damage_is_named(tmp_path):
    path = tmp_path / "status.json"
    assert read_json(path) == {}
    write_json(path, {"state": "running"})
    assert read_json(path) == {"state": "running"}
    for damaged in ('{"state": "run', "", "[1]", "\x00\x00"):
        path.write_text(damaged)
        with pytest.raises(RunError, match=rf"{path} is damaged \(.*\): delete it"):
            read_json(path)
