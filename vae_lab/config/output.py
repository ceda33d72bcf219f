"""Streams that may break, because a pipe's reader has ended or a disk is full, without the work breaking with them."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

log = logging.getLogger(__name__)


class Lasting:
    """A text stream; after the first failure what is written to it goes nowhere, and the log says so once.

    Args:
        name: for the message.
        stream: on which everything but writing is done as it is.
    """

    def __init__(self, name: str, stream: TextIO):
        self._name = name
        self._stream = stream
        self._is_lost = False

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        """Write, or pretend to."""
        if not self._is_lost:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or pretend to."""
        if not self._is_lost:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        self._is_lost = True
        with suppress(OSError):  # it has no file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still to be flushed, and what other processes write
            os.close(nowhere)
        reason = error.strerror or error
        log.warning(
            "cannot write to %s any more (%s): what is printed there is lost, the work goes on", self._name, reason
        )


@contextmanager
def lasting_output() -> Iterator[None]:
    """Make stdout and stderr `Lasting` within the block, and flush them at its end."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    lasting = {name: Lasting(name, stream) for name, stream in before.items() if stream is not None}
    for name, stream in lasting.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in lasting.items():
            stream.flush()
            setattr(sys, name, before[name])
