"""The process that talks to W&B, as the run sees it: neither writing to it nor reading from it ever waits."""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from vae_lab.config.secrets import redact

log = logging.getLogger(__name__)

FINISH_TIMEOUT = 10  # seconds for W&B at the end of a run
UPLOAD_TIMEOUT = 8  # of them for what was not uploaded yet
MAX_WAITING = 2**26  # bytes of orders
# Variables that hold paths, which may start from the current directory.
FILES = ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_IDENTITY_TOKEN_FILE")


def command(*arguments: str) -> dict[str, Any]:
    """Arguments for `subprocess`: the same Python with the same packages, and no terminal that could be asked on.

    W&B obeys `wandb/settings` in the current directory, which may be a stranger's, and would send the API key to the
    server named there; so it starts where there is none.
    """
    files = {name: os.path.abspath(os.environ[name]) for name in FILES if os.environ.get(name)}
    return {
        "args": [sys.executable, "-P", "-m", "vae_lab.loggers.wandb_worker", *arguments],
        "env": {**os.environ, **files, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        "cwd": "/",
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
    }


def obstacle(timeout: float) -> str | None:
    """What keeps a run from being online, such as no API key; no connection is made.

    Args:
        timeout: seconds, after which there is no answer, > 0.
    """
    try:
        done = subprocess.run(**command("check"), stdin=subprocess.DEVNULL, timeout=timeout)
    except subprocess.TimeoutExpired:
        return None  # the run will find out
    return next((redact(text) for _, text in reports(done.stdout.splitlines())), None)


def reports(lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """The reports, level and text, among lines that may also be what a customised Python prints as it starts."""
    for line in lines:
        with suppress(ValueError, RecursionError):
            match json.loads(line):
                case [int() as level, str() as text]:
                    yield level, text


class WandbProcess:
    """Starts the process; it ends when it is told to, or when this one does.

    Args:
        init_timeout: seconds to wait for the server at the start, > 0.
        settings: the others of `vae_lab.loggers.wandb_run.init_run`.

    Raises:
        OSError: if no process can be started.
    """

    def __init__(self, init_timeout: float, **settings: Any):
        self.has_ended = False
        self._has_reported = False
        self._waiting, self._received = bytearray(), b""
        self._start_deadline = time.monotonic() + init_timeout
        self._process = subprocess.Popen(**command(), stdin=subprocess.PIPE, bufsize=0)
        self._orders, self._reports = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._orders, False)
        os.set_blocking(self._reports, False)
        self.send("start", {"init_timeout": init_timeout, "upload_timeout": UPLOAD_TIMEOUT, **settings})

    def send(self, order: str, value: Any) -> None:
        """Give an order, see `vae_lab.loggers.wandb_run.carry_out`. What the pipe does not take waits for the next call."""
        self._waiting += json.dumps([order, value], default=str).encode() + b"\n"
        self._exchange()
        if len(self._waiting) > MAX_WAITING:
            log.warning("W&B takes nothing any more, tracking ends here, the run goes on")
            self._kill()

    def finish(self, exit_code: int) -> None:
        """Wait until everything is stored, for `FINISH_TIMEOUT` seconds from when W&B has, or should have, started."""
        if not self.has_ended:
            self.send("finish", exit_code)
        now = time.monotonic()
        deadline = FINISH_TIMEOUT + (now if self._has_reported else max(now, self._start_deadline))
        while not self.has_ended and (seconds := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._reports, select.POLLIN)
            if self._waiting:
                poll.register(self._orders, select.POLLOUT)
            poll.poll(1000 * seconds)
            self._exchange()
        if not self.has_ended:
            if self._has_reported:
                log.warning("W&B does not finish; what it has stored is in the run folder, see wandb sync")
            else:
                log.warning("W&B does not start, this run is not tracked: it gives no sign, try to reinstall wandb")
            self._kill()

    def _exchange(self) -> None:
        with suppress(BlockingIOError):
            while chunk := os.read(self._reports, 2**16):
                self._received += chunk
            self.has_ended = True
        try:
            while self._waiting:
                del self._waiting[: os.write(self._orders, self._waiting)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._waiting.clear()
        *lines, self._received = self._received.split(b"\n")
        for level, text in reports(lines):
            log.log(level, "%s", redact(text))
            self._has_reported = True
        if self.has_ended:
            self._end()

    def _end(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        if self._process.returncode != 0:
            log.warning("W&B tracking ends here, the run goes on: its process died")
        self._kill()

    def _kill(self) -> None:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")  # W&B's own process; only Linux tells
        if self._process.poll() is None:
            for leader in [*(map(int, children.read_text().split()) if children.exists() else ()), pid]:
                with suppress(ProcessLookupError):
                    os.killpg(leader, signal.SIGKILL)  # each has a session of its own
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self.has_ended = True
