"""The process of a command: what it prints can always be printed, and a failure is one line and an exit code.

A run on several devices starts its further processes itself. What a launcher or an earlier program left in the
environment says nothing about them: Lightning would believe it, and a process that is not the first keeps no record.
"""

import atexit
import ctypes
import gc
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vae_lab.config.explain import explain
from vae_lab.config.secrets import print_redacted, redact
from vae_lab.errors import DataError, NumericsError, OutOfMemoryError, Preempted, RunError, SweepError
from vae_lab.runs.files import cannot_write

SETTING_ERRORS = (ValueError, HydraException, OmegaConfBaseException, yaml.YAMLError)
# An OSError is a full disk or a folder without permission.
USER_ERRORS = (*SETTING_ERRORS, DataError, NumericsError, OutOfMemoryError, RunError, SweepError, OSError)
# Where Lightning finds one of these, it takes the process for one of many.
RANKS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"),
    *("SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),  # where its processes meet: two jobs of a sweep must not have the same
)
FIRST = "VAE_LAB_FIRST_PROCESS"  # its number, for those that it starts


def is_first() -> bool:
    """Whether this is no further process that another one of ours started; a spawned job of a sweep has no rank."""
    return os.environ.get(FIRST) != str(os.getppid()) or "LOCAL_RANK" not in os.environ


def forget_ranks() -> None:
    """Make a first process one of its own: `srun -n4 vae-lab` is four runs. To be called before Lightning's import."""
    if is_first():
        for name in RANKS:
            os.environ.pop(name, None)
        os.environ[FIRST] = str(os.getpid())


class Lossy(io.FileIO):
    """An open file; once it cannot be written to, what is written goes nowhere, and the other output says so.

    A pipe whose reader has ended (`vae-lab ... | head`) is nothing to speak of.
    """

    def write(self, data: Any, /) -> Any:
        """Write, or pretend to."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # also for other processes that write there
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                told = f"vae-lab: what is printed is lost ({error.strerror}); the work goes on\n"
                with suppress(OSError):
                    os.write(1 if self.fileno() == 2 else 2, told.encode())
            return len(data)


def lossy(stream: TextIO | None) -> TextIO:
    """Stdout or stderr as one that can always be written to, whatever becomes of its reader, its disk, its encoding."""
    if stream is None:
        return open(os.devnull, "w")
    if type(stream) is not io.TextIOWrapper or (os.name == "nt" and stream.isatty()):  # a notebook's, a console's
        return stream
    stream.flush()
    file = io.BufferedWriter(Lossy(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn failures a user can mend into one line on stderr and an exit code; see `vae_lab.errors`.

    HYDRA_FULL_ERROR=1 shows the traceback, as it does for Hydra.
    """
    forget_ranks()
    sys.excepthook = print_redacted  # of what nobody thought of
    streams, full_error = (sys.stdout, sys.stderr), os.environ.get("HYDRA_FULL_ERROR", "0")
    sys.stdout, sys.stderr = map(lossy, streams)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here
    try:
        try:
            os.getcwd()
        except FileNotFoundError as error:  # torch and Hydra fail there without a word of it
            raise RunError("the folder that you are in was removed or moved; go to another one with cd") from error
        yield
    except USER_ERRORS as error:
        if full_error == "1" and is_first():  # further processes inherit the variable from the first
            raise
        print(f"vae-lab: {in_one_line(error)}", file=sys.stderr)
        # Some of Hydra's are an OSError too.
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, SETTING_ERRORS) else RunError.exit_code))
    except KeyboardInterrupt as error:
        raise Preempted(130) from error
    except Preempted:
        if not is_first():  # Lightning would kill the first process, which tells the end
            sys.exit(0)
        raise
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
        for stream, before in zip((sys.stdout, sys.stderr), streams, strict=True):
            stream.flush()
            if before is None:
                stream.close()
        sys.stdout, sys.stderr = streams


def keep_memory() -> None:
    """Have glibc keep what this process frees, such as the memory of a step, for what it asks for next.

    Else it gives much of it back, and the system maps and clears it anew in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    if mallopt is not None:
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, the largest
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, which glibc would raise to this by itself if the other one were not set


def as_process(command: Callable[[], None]) -> None:
    """Run a command as all that this process does, and end it as soon as nothing is left to do.

    Python would go on to take apart every object, and the libraries themselves: with torch, 2 s and 0.13 GB more.
    """
    frame = sys._getframe(2).f_back  # of whatever runs the program that runs this
    while frame is not None and frame.f_globals.get("__name__") == "runpy":  # python -m
        frame = frame.f_back
    if frame is not None or os.name == "nt":  # a profiler or a debugger goes on afterwards
        command()
        return
    code = 0
    try:
        command()
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        code = stop.code
    try:  # what Python's own end begins with; the children of multiprocessing end in the same way
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        flush_files()
        gc.collect()  # what a run has left may have an end of its own, and write
        gc.unfreeze()
        flush_files()
        ctypes.CDLL(None).fflush(None)  # what libraries in C have printed
    finally:  # also if Ctrl-C comes meanwhile
        os._exit(code)


def flush_files() -> None:
    """Write what is still in the buffers of files that nobody has closed."""
    kinds = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    files = [thing for thing in gc.get_objects() if type(thing) in kinds]
    for file in (*files, sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, it is full, or closed
            file.flush()


def in_one_line(error: Exception, arguments: Sequence[str] | None = None) -> str:
    """What an exception says to a user, on one line and without secrets; the arguments are those of the command."""
    if isinstance(error, OSError) and isinstance(error.filename, str) and not isinstance(error, SETTING_ERRORS):
        error = RunError(cannot_write(Path(error.filename), error))
    return redact(" ".join(explain(error, sys.argv[1:] if arguments is None else arguments).split()))
