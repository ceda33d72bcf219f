"""A lock on a file that ends with the process that holds it, however that ends.

It is a POSIX record lock: the kernel drops it when its owner dies, so a stale one cannot exist, and forked workers do
not inherit it, so they cannot keep it alive. The file itself stays; its content only names the owner in messages.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae_lab.durable import cannot_write
from vae_lab.errors import RunError

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold the lock. A process must not take the same lock twice.

    Yields:
        Whether the file still has its name. Who removes lock files, which may only be done while holding the lock, has
        to try again if not: those that come now make a new file.

    Args:
        path: of the lock file; it and its folder are made if they do not exist.
        wait: until another process has released it; otherwise that is an error.

    Raises:
        RunError: if another process holds the lock, or the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error
    try:
        take(descriptor, path, wait)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield is_at(path, descriptor)
    finally:
        os.close(descriptor)  # this releases it


def wait_for(path: Path, seconds: float) -> None:
    """Wait until no other process holds a lock, at most so long."""
    deadline = time.monotonic() + seconds
    while path.exists() and time.monotonic() < deadline:
        try:
            with locked(path):
                return
        except RunError:
            time.sleep(0.2)


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def take(descriptor: int, path: Path, wait: bool) -> None:
    """Lock an open file.

    Raises:
        RunError: if another process holds the lock and `wait` is false.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # EAGAIN or EACCES, depending on the system
        owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        if not wait:
            raise RunError(f"{path.parent} is locked by {owner}, which is still at work there") from error
        log.info("waiting for %s, which holds %s", owner, path)
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
    except OSError as error:  # a file system without locks
        log.warning("cannot lock %s (%s): take care that nothing else writes to that folder", path, error.strerror)
