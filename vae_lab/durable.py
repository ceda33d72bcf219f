"""Files that appear under their name whole or not at all, even after a kill or a power cut.

The temporary file is `NAME.tmp.PID` in the same folder, because a rename is atomic only within one file system.
"""

import errno
import json
import os
import re
import shutil
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
