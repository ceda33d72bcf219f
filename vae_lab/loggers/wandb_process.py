"""The process that talks to W&B, as the run sees it: telling it something never waits."""

import atexit
import json
import logging
import multiprocessing
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import psutil

from vae_lab.config.secrets import redact
from vae_lab.loggers.wandb_worker import fork_on_demand, main
from vae_lab.runs.signals import signals_wait

log = logging.getLogger(__name__)

FINISH_TIMEOUT = 10  # seconds for W&B at the end of a run
UPLOAD_TIMEOUT = 8  # of them for what was not uploaded yet
Ends = tuple[Connection, Connection]  # what takes orders for a process, what gives its reports
forked: list[Ends] = []  # of processes that are there already, for the next of this one's; a sweep makes them


def obstacle(timeout: float) -> str | None:
    """What keeps a run from being online, such as no API key, if that is known in so many seconds."""
    process = WandbProcess()
    process.begin("check", None, timeout)
    reason = next((text for _, text in process.reports(timeout)), None)
    process.close(0)
    return reason


class WandbProcess:
    """W&B for one run after the other; it ends with `close`, or with this process.

    Raises:
        OSError: if no process can be started.
    """

    def __init__(self):
        self.is_over = True  # no run, or none that anything could be told of
        self._orders: queue.SimpleQueue = queue.SimpleQueue()
        self._child: BaseProcess | None = None  # where a sweep has not made the process already
        self._process: psutil.Process | None = None  # of such a one as soon as it has told its number
        if forked:
            given, self._reports = forked.pop()
        else:
            taken, given = multiprocessing.Pipe(duplex=False)
            self._reports, told = multiprocessing.Pipe(duplex=False)
            self._child = start(main, taken, told)
            self._process = psutil.Process(self._child.pid)
        threading.Thread(target=feed, args=(self._orders, given), daemon=True).start()
        atexit.register(self.close)  # else multiprocessing would wait for it there

    def begin(self, order: str, value: Any, patience: float) -> None:
        """Give the first order of a run, "start", or of none, "check"; W&B should start in `patience` seconds."""
        self.is_over = self._has_started = False
        self._start_deadline = time.monotonic() + patience
        self.send(order, value)

    def send(self, order: str, value: Any) -> None:
        """Give a further order, see `vae_lab.loggers.wandb_worker`, and log what there is to report."""
        self._orders.put(json.dumps([order, value], default=str).encode())
        self._log_reports(0)

    def finish(self, exit_code: int) -> None:
        """Wait until everything is stored, for `FINISH_TIMEOUT` seconds from when W&B has, or should have, started."""
        try:
            self.send("finish", exit_code)
            start = 0 if self._has_started else self._start_deadline - time.monotonic()
            self._log_reports(max(0, start) + FINISH_TIMEOUT)
            if not self.is_over and self._has_started:
                log.warning("W&B does not finish; what it has stored is in the run folder, see wandb sync")
            elif not self.is_over:
                log.warning("W&B does not start, this run is not tracked: it gives no sign, try to reinstall wandb")
        finally:
            if not self.is_over:
                self.close(0)

    def reports(self, timeout: float) -> Iterator[tuple[int, str]]:
        """Level and text of each report until the run is over, or for so many seconds."""
        deadline = time.monotonic() + timeout
        try:
            while not self.is_over and self._reports.poll(max(0, deadline - time.monotonic())):
                report = self._reports.recv()
                if isinstance(report, int):
                    with suppress(psutil.NoSuchProcess):
                        self._process = psutil.Process(report)
                    continue
                self.is_over, self._has_started = report is None, True
                if report:
                    yield report[0], redact(report[1])
        except (EOFError, OSError):
            self.is_over = True
            yield logging.WARNING, "W&B tracking ends here, the run goes on: its process died"

    def _log_reports(self, timeout: float) -> None:
        for level, text in self.reports(timeout):
            log.log(level, "%s", text)

    def close(self, timeout: float = FINISH_TIMEOUT) -> None:
        """Let the process end; if it does not in so many seconds, kill it with all that it has started."""
        atexit.unregister(self.close)
        self.is_over = True
        self._orders.put(None)
        if self._process is not None and not self._has_ended(timeout):  # else it ends when it finds nobody to serve
            with suppress(psutil.NoSuchProcess):
                for part in (*self._process.children(recursive=True), self._process):
                    part.kill()
            self._has_ended(1)

    def _has_ended(self, timeout: float) -> bool:
        """Whether the process has ended, or does in so many seconds."""
        if self._child is not None:
            self._child.join(timeout)
            return not self._child.is_alive()
        assert self._process is not None
        try:
            self._process.wait(timeout)
        except psutil.NoSuchProcess:
            return True
        except psutil.TimeoutExpired:
            return False
        return True


class WandbForkServer:
    """A process that has imported W&B, for the jobs of a sweep: it forks one in milliseconds instead of seconds."""

    def __init__(self):
        self._asks, asked = socket.socketpair()
        self._asks.setblocking(False)
        self._process = start(fork_on_demand, asked)
        atexit.register(self.close)

    def close(self) -> None:
        """End it, which has nothing to lose; the processes that it has forked go on."""
        self._process.kill()
        self._process.join()
        self._asks.close()

    def fork(self) -> list[Ends]:
        """The ends of a new process, for `forked`; none where there is no server any more."""
        taken, given = multiprocessing.Pipe(duplex=False)
        reports, told = multiprocessing.Pipe(duplex=False)
        with taken, told:
            try:
                socket.send_fds(self._asks, [b"."], [taken.fileno(), told.fileno()])
            except OSError:
                return []
        return [(given, reports)]


def start(target: Callable, *ends: Any) -> BaseProcess:
    """Start a process that runs no code of this one's main module or of the current folder, and give it these ends."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=ends, name="wandb", daemon=True)
    with ExitStack() as stack:
        for end in ends:
            stack.enter_context(end)
        with apart(), signals_wait():
            process.start()
    return process


def feed(orders: queue.SimpleQueue, pipe: Connection) -> None:
    """Send orders for as long as there are any and somebody takes them: what waits is a thread, not the training."""
    with pipe, suppress(OSError):
        while (order := orders.get()) is not None:
            pipe.send_bytes(order)


@contextmanager
def apart() -> Iterator[None]:
    """Let no process that starts here run this one's main module or the current folder's code."""
    main_module, safe_path = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    sys.modules["__main__"] = ModuleType("__main__")  # spawn would run a user's script again
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
