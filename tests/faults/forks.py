"""A run in a forked process, so that it can be killed for real without the seconds that a new interpreter takes."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import DictConfig

from vae_lab.__main__ import main
from vae_lab.objectives.elbo import ELBO
from vae_lab.runs.files import locked
from vae_lab.training.train import train


def fork(action: Callable[[], object]) -> int:
    """Call something in a child process; returns its pid. The exit code is that of `SystemExit`, or 1 for an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where there are threads; this child needs none
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        action()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int, timeout: float = 60) -> int:
    """The exit code of a child process, or minus the signal that ended it."""
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError("the run did not end")
        time.sleep(0.005)


def hold(lock: Path) -> int:
    """The pid of a process that holds a lock until it is killed."""
    reading, writing = os.pipe()

    def held() -> None:
        with locked(lock):
            os.write(writing, b"!")
            signal.pause()

    pid = fork(held)
    os.read(reading, 1)
    return pid


def train_in_fork(cfg: DictConfig, prepare: Callable[[], object] = lambda: None) -> int:
    """Train in a child process after `prepare` was called there; returns the exit code."""

    def action():
        prepare()
        train(cfg)

    return wait(fork(action))


class Forked:
    """The command `vae-lab` as `command.start` starts it, but forked; with what `finish` and `wait_until` need."""

    def __init__(self, *arguments: str | Path, cwd: Path, env: dict[str, str] | None = None):
        self.args, self.returncode = ["vae-lab", *map(str, arguments)], None
        self.files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - stdout, stderr
        self.pid = fork(lambda: self._work(cwd, env or {}))

    def _work(self, cwd: Path, env: dict[str, str]) -> None:
        os.setsid()
        warnings.simplefilter("default")
        os.chdir(cwd)
        for name in [name for name in os.environ if name.startswith(("VAE_LAB", "WANDB", "HYDRA"))]:
            del os.environ[name]
        os.environ.update(env | {"OMP_NUM_THREADS": "1"})
        for number, file in enumerate(self.files, 1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.argv = self.args
        sys.modules["__main__"].__spec__ = find_spec("vae_lab.__main__")  # Lightning starts it for each device
        main()

    def poll(self) -> int | None:
        done, status = (0, 0) if self.returncode is not None else os.waitpid(self.pid, os.WNOHANG)
        self.returncode = os.waitstatus_to_exitcode(status) if done else self.returncode
        return self.returncode

    def communicate(self, timeout: float = 60) -> list[str]:
        if self.returncode is None:
            self.returncode = wait(self.pid, timeout)
        said = []
        for file in self.files:
            with file:
                file.seek(0)
                said.append(file.read())
        return said


def at_call(owner, hook: str, number: int, action, patch=setattr) -> None:
    """Call `action` just before the n-th call of a method, counted from 0."""
    original, calls = getattr(owner, hook), iter(range(10**9))

    def acting(*args, **kwargs):
        if next(calls) == number:
            action()
        return original(*args, **kwargs)

    patch(owner, hook, acting)


class Killed(BaseException):
    """Stands for the moment at which a process disappears."""


def die() -> None:
    raise Killed


def train_until(evaluation: int, cfg: DictConfig, monkeypatch) -> None:
    """Train until the n-th evaluation of the objective, in training or validation, and disappear there."""
    with monkeypatch.context() as context:
        at_call(ELBO, "__call__", evaluation, die, context.setattr)
        with pytest.raises(Killed):
            train(cfg)


def can_mount() -> bool:
    """Whether a disk of a few bytes can be made, in a mount namespace of its own."""
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
