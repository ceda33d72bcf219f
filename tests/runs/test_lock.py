"""One process at a time, and nobody for ever."""

import errno
import os
import signal
import time
from unittest.mock import Mock

import pytest
from forks import fork, hold, wait

from vae_lab.errors import RunError
from vae_lab.runs.files import locked, wait_for


def test_a_bounded_wait_ends_with_the_lock_free_or_without(tmp_path):
    lock = tmp_path / "sub" / ".lock"
    holder = hold(lock)
    start = time.monotonic()
    wait_for(lock, 0.5)
    assert time.monotonic() - start >= 0.5  # still held
    killer = fork(lambda: (signal.sigtimedwait([], 0.2), os.kill(holder, signal.SIGKILL)))
    wait_for(lock, 60)
    assert wait(holder) == -signal.SIGKILL
    assert wait(killer) == 0
    assert time.monotonic() - start < 50
    wait_for(tmp_path / "none" / ".lock", 60)
    assert not (tmp_path / "none").exists()


def test_forked_workers_do_not_keep_it(tmp_path):
    with locked(tmp_path / ".lock"):
        worker = fork(signal.pause)
    try:
        with locked(tmp_path / ".lock"):
            assert wait(fork(lambda: locked(tmp_path / ".lock").__enter__())) == 1  # held: refused to another
    finally:
        os.kill(worker, signal.SIGKILL)
        wait(worker)


def test_a_lock_left_by_a_dead_process_is_only_a_file(tmp_path):
    (tmp_path / ".lock").write_text("process 999999999 on elsewhere\n")
    with locked(tmp_path / ".lock"):
        assert "999999999" not in (tmp_path / ".lock").read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write .*file/\.lock: "), locked(tmp_path / "file" / ".lock"):
        pytest.fail("there is no such folder")


def test_a_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with locked(tmp_path / ".lock"):
        (warning,) = caplog.records
    assert "(No locks available): take care that nothing else writes" in warning.message
