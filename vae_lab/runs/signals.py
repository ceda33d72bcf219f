"""The signals that ask a process to stop, and how a run hears them. No torch: the start of a command is to be quick."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from vae_lab.errors import Preempted

log = logging.getLogger(__name__)

# What schedulers, a closed terminal and Ctrl-C send before they kill; Windows has SIGINT, SIGTERM and SIGBREAK.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# Schedulers and `timeout` send the same signal to a process and to its group: within so many seconds it is one request.
SAME_REQUEST = 0.5


def heeded() -> list[signal.Signals]:
    """Those that this process heeds: all, but for SIGHUP under nohup."""
    return [n for n in SIGNALS if not (n.name == "SIGHUP" and signal.getsignal(n) == signal.SIG_IGN)]


class Preemption:
    """Turns the signals that announce an end into a `Preempted` exception; a context manager around everything.

    While `training` is true the first signal is only noted, for `StopAtSignal` to save a checkpoint at the next place
    from which a run continues exactly. A second signal half a second later, or one outside training, stops at once.
    In another thread than the main one, which alone hears signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.asked_at = 0.0
        self.training = False
        self.interrupted = False

    def __enter__(self) -> Self:
        self.process = os.getpid()
        hears = threading.current_thread() is threading.main_thread()
        self.previous = {number: signal.getsignal(number) for number in heeded()} if hears else {}
        self.listen()
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def listen(self) -> None:
        """Put our handlers in front, where Lightning has put its own, which would end the run with exit code 0."""
        for number in self.previous:
            signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: Any) -> None:
        if os.getpid() != self.process:
            return  # a worker, to which a signal to the whole group came too: the main process ends it
        again, now = self.signum is not None, time.monotonic()
        if again and now - self.asked_at < SAME_REQUEST:
            return
        self.signum, self.asked_at = signum, now
        if again or not self.training:
            self.interrupted = True
            raise Preempted(128 + signum)
        log.warning("%s: saving a checkpoint, then stopping", signal.Signals(signum).name)

    def end_if_asked(self) -> None:
        """Raise what somebody swallowed.

        Raises:
            Preempted: if a signal came.
        """
        if self.signum is not None:
            raise Preempted(128 + self.signum)

    @contextmanager
    def first(self) -> Iterator[None]:
        """Raise `Preempted` for whatever the block raises after a signal interrupted it.

        An interruption may come anywhere, and many a library makes an error of its own of what passes through it.
        """
        try:
            yield
        except Exception as error:
            if not self.interrupted:
                raise
            raise Preempted(128 + (self.signum or 0)) from error


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold signals back while the block starts a process, which inherits that until it says otherwise."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its own start, at the first process, would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
