"""Files that appear under their name whole or not at all, even after a kill or a power cut; and locks.

The temporary file is `NAME.tmp.PID` in the same folder, because a rename is atomic only within one file system.
"""

import errno
import json
import logging
import os
import re
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import psutil
from filelock import FileLock, Timeout

from vae_lab.errors import RunError

TEMPORARY = re.compile(r".*\.tmp\.(\d+)")
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # what a file system without locks answers
log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path, size: int | None = None) -> Iterator[Path]:
    """A temporary name beside `path`, whose file takes that place when the block ends without an exception."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
        if os.name != "nt":  # which opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise RunError(cannot_write(path, error, size)) from error
    finally:
        with suppress(OSError):  # where it could not be written, there is nothing to remove
            temporary.unlink(missing_ok=True)


@contextmanager
def durable_open(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces the one of that name when the block ends without an exception.

    Args:
        path: of the file; its folder is made if it does not exist.
        size: bytes that will be written, where it is known, for the message about a full disk.

    Raises:
        RunError: if the file cannot be written; the previous file of that name is then intact.
    """
    with replacing(path, size) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def durable_link(source: Path, target: Path) -> None:
    """Make `target` another name of a file that is never written to again, only replaced.

    Raises:
        RunError: if that cannot be done; the previous `target` is then intact.
    """
    with replacing(target, source.stat().st_size) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(source, temporary)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        RunError: if it cannot be written.
    """
    with durable_open(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict:
    """Read a JSON file that holds an object; a missing one is empty.

    Raises:
        RunError: if it is damaged or cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; move it away to go on without it") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it to go on without it") from error


def read_values(path: Path) -> dict[str, np.ndarray]:
    """Read a file of arrays, `.npz`; a missing or damaged one is empty, because an evaluation makes it anew."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return {}


def cannot_write(path: Path, error: OSError, size: int | None = None) -> str:
    """One line on why a file could not be written and what to do; on a full disk with the bytes needed and free."""
    reason = f"cannot write {path}: {error.strerror or error}"
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
        return f"{reason}; move {error.filename2 or error.filename or path} away, or choose another folder"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}; check the permissions of {path.parent}, or choose another folder"
    needed = f"{size:,} bytes needed, " if size else ""
    with suppress(OSError):
        needed += f"{shutil.disk_usage(path.parent).free:,} bytes free"
    return f"{reason} ({needed}); free space, then continue"


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the temporary files that killed processes left in a folder and below it, and return them."""
    found = [(path, TEMPORARY.fullmatch(path.name)) for path in folder.rglob("*.tmp.*")]
    dead = [path for path, match in found if match and not is_alive(int(match[1]))]
    for path in dead:
        path.unlink(missing_ok=True)
    return dead


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    return pid < 2**31 and psutil.pid_exists(pid)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, which ends with this process at the latest; forked workers have no part in it.

    A process must not take the same lock twice.

    Args:
        path: of the lock file; it and its folder are made if they do not exist.

    Raises:
        RunError: if another process holds the lock, or the file cannot be made.
    """

    def sign(descriptor: int) -> None:  # after the first byte, which nobody else can read on Windows
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"\nprocess {os.getpid()} on {socket.gethostname()}\n".encode())

    lock = FileLock(path, fallback_to_soft=False, on_acquired=sign)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        owner = ""
        with suppress(OSError), open(path, "rb", buffering=0) as file:
            file.seek(1)
            owner = file.read(200).decode(errors="replace").strip()
        message = f"{path.parent} is locked by {owner or 'another process'}, which is still at work there"
        raise RunError(message) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise RunError(cannot_write(path, error)) from error
        log.warning("cannot lock %s (%s): take care that nothing else writes to that folder", path, error.strerror)
    try:
        yield
    finally:
        lock.release()


def wait_for(path: Path, seconds: float) -> None:
    """Wait until no other process holds a lock, at most so long."""
    deadline = time.monotonic() + seconds
    while path.exists() and time.monotonic() < deadline:
        try:
            with locked(path):
                return
        except RunError:
            time.sleep(0.2)
