"""Files from the internet: whole, verified and under their names, or not there at all."""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from vae_lab.durable import durable_open
from vae_lab.errors import DataError
from vae_lab.images import printable
from vae_lab.lock import locked

TRIES = 3
BACKOFF = 1.0  # seconds before the second try; three times that before the third
WINDOW = 15.0  # seconds, in each of which
MIN_BYTES = 15_000  # have to arrive: a server that stalls or drips is given up after at most two windows
MAX_BYTES = 2**30
CHUNK = 2**16

log = logging.getLogger(__name__)
_may_download = ContextVar("may_download", default=True)


def read_verified(path: Path, checksum: str) -> np.ndarray:
    """Reads a file whose content is known.

    Args:
        path: Of the file.
        checksum: MD5 or SHA-256 of its content, in hexadecimal digits.

    Returns:
        Its bytes, uint8 (N,).

    Raises:
        DataError: If the file cannot be read or has another checksum.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {printable(path)}: {error.strerror or error}") from error
    found = _digest(checksum, content).hexdigest()
    if found != checksum:
        reason = f"checksum mismatch {printable(path)}: expected {checksum}, got {found}"
        raise DataError(f"{reason}; delete it and run again")
    return content


def _digest(checksum: str, content=b""):
    """The hash object that makes checksums like the given one."""
    return hashlib.new({32: "md5", 64: "sha256"}[len(checksum)], content, usedforsecurity=False)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Makes a download a failure while the block runs: a command that only looks must not fetch gigabytes."""
    token = _may_download.set(False)
    try:
        yield
    finally:
        _may_download.reset(token)


@contextmanager
def one_downloader(folder: Path) -> Iterator[None]:
    """Waits until no other process downloads into a folder; a failure leaves no empty folder behind.

    Args:
        folder: Made if it does not exist.

    Raises:
        DataError: Within `no_downloads`.
        RunError: If the folder cannot be written to.
    """
    if not _may_download.get():
        raise DataError("this command downloads nothing")
    folders = (folder, *folder.parents)
    lock = folder / "download.lock"
    made = set()
    while True:
        made |= {path for path in folders if not path.exists()}
        with locked(lock, wait=True) as is_there:
            if not is_there:  # the process that we waited for has tidied up
                continue
            try:
                yield
            finally:
                tidy(lock, [path for path in folders if path in made])
            return


def tidy(lock: Path, folders: Sequence[Path]) -> None:
    """Removes a lock file, while it is held, and those of the folders above it that are empty then."""
    with suppress(OSError):  # they are not empty, or were never made
        lock.unlink(missing_ok=True)
        for path in folders:
            path.rmdir()


def download(urls: Sequence[str], path: Path, md5: str) -> None:
    """Downloads a file, unless it is there already; call it within `one_downloader`.

    Args:
        urls: Where it can be had; they are tried in turn.
        path: Of the file.
        md5: Its checksum.

    Raises:
        DataError: If every try failed, with what went wrong in each.
        RunError: If it cannot be written.
    """
    for leftover in path.parent.glob(f"{path.name}.tmp.*"):  # of killed processes
        leftover.unlink(missing_ok=True)
    if path.is_file() and _digest(md5, path.read_bytes()).hexdigest() == md5:
        return
    failures = []
    for attempt in range(TRIES):
        time.sleep(BACKOFF * (2**attempt - 1))
        url = urls[attempt % len(urls)]
        log.info("downloading %s", url)
        try:
            with durable_open(path) as file:
                digest = _digest(md5)
                for chunk in _progress(_body(url), path.name):
                    digest.update(chunk)
                    file.write(chunk)
                if digest.hexdigest() != md5:
                    raise DataError(f"checksum mismatch: expected {md5}, got {digest.hexdigest()}")
            return
        except DataError as error:
            failures.append(f"{url}: {error}")
    raise DataError("; ".join(dict.fromkeys(failures)))


def _progress(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    console = Console(stderr=True)
    columns = ("downloading {task.description}", DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)
        for chunk in chunks:
            progress.advance(task, len(chunk))
            yield chunk


def _body(url: str) -> Iterator[bytes]:
    """Yields what a server answers.

    A thread waits for it: a socket's own timeout starts anew with every byte, and looking up a name has none.

    Raises:
        DataError: If the server cannot be reached, is too slow, or breaks off.
    """
    arrived, given_up = queue.SimpleQueue(), threading.Event()
    threading.Thread(target=_receive, args=(url, arrived, given_up), daemon=True).start()
    try:
        total, in_window, end = 0, 0, time.monotonic() + WINDOW
        while True:
            with suppress(queue.Empty):
                chunk = arrived.get(timeout=max(0.0, end - time.monotonic()))
                if isinstance(chunk, Exception):
                    raise DataError(" ".join(f"{type(chunk).__name__}: {chunk}".split())) from chunk
                if not chunk:
                    return
                yield chunk
                total, in_window = total + len(chunk), in_window + len(chunk)
                if total > MAX_BYTES:
                    raise DataError(f"more than {MAX_BYTES:,} bytes")
            if time.monotonic() >= end:
                if in_window < MIN_BYTES:
                    raise DataError(f"fewer than {MIN_BYTES:,} bytes in {WINDOW:g} seconds")
                in_window, end = 0, time.monotonic() + WINDOW
    finally:
        given_up.set()


def _receive(url: str, arrived: queue.SimpleQueue, given_up: threading.Event) -> None:
    """Puts the chunks of an answer into a queue; at its end an empty one, or the exception that ended it."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "vae_lab"}), timeout=2 * WINDOW) as response:
            expected, total = response.length, 0
            while total != expected and not given_up.is_set() and (chunk := response.read1(CHUNK)):
                total += len(chunk)
                arrived.put(chunk)
        if expected is not None and total < expected:
            raise ConnectionError(f"the connection ended after {total:,} of {expected:,} bytes")
        arrived.put(b"")
    except Exception as error:  # whatever it is, the other thread must not wait for it in vain
        arrived.put(error)
