"""Files that appear under their name whole or not at all, even after a kill or a power cut.

The temporary file is `NAME.tmp.PID` in the same folder, because a rename is atomic only within one file system.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vae_lab.errors import RunError

TEMPORARY = re.compile(r".*\.tmp\.(\d+)")


@contextmanager
def durable_open(path: Path, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces the one of that name when the block ends without an exception.

    Args:
        path: of the file; its folder is made if it does not exist.
        size: bytes that will be written, where it is known, for the message about a full disk.

    Raises:
        RunError: if the file cannot be written; the previous file of that name is then intact.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunError(cannot_write(path, error, size)) from error
    finally:
        with suppress(OSError):  # where it could not be written, there is nothing to remove
            temporary.unlink(missing_ok=True)


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
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        return content
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; move it away to go on without it") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it to go on without it") from error


def durable_link(source: Path, target: Path) -> None:
    """Make `target` another name of a file that is never written to again, only replaced.

    Raises:
        RunError: if that cannot be done; the previous `target` is then intact.
    """
    temporary = target.with_name(f"{target.name}.tmp.{os.getpid()}")
    try:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise RunError(cannot_write(target, error, source.stat().st_size)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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


def sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the temporary files that killed processes left in a folder and below it; those of live ones stay.

    Returns:
        What was deleted.
    """
    found = [(path, TEMPORARY.fullmatch(path.name)) for path in folder.rglob("*.tmp.*")]
    dead = [path for path, match in found if match and not is_alive(int(match[1]))]
    for path in dead:
        path.unlink(missing_ok=True)
    return dead


def is_alive(pid: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


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
