"""The processes of a sweep's jobs: a few at a time, each in its share of the machine, each a single run.

They come from a fork server that has torch imported, or, where the system has none, from fresh interpreters. The
sweep's own process never imports torch, except to count GPUs.
"""

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from itertools import chain
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig

from vae_lab.config.composing import without_hydra
from vae_lab.config.secrets import print_redacted
from vae_lab.loggers.wandb_process import Ends, WandbForkServer, forked
from vae_lab.runs.files import wait_for
from vae_lab.runs.process import keep_memory, one_line_errors
from vae_lab.runs.resume import continue_if_begun
from vae_lab.runs.signals import SIGNALS, Preemption, signals_wait
from vae_lab.sweep.command_line import config_flags
from vae_lab.sweep.job import OUTPUT, Job

# macOS has a fork server too, but its own libraries do not survive a fork.
HAS_FORK_SERVER = hasattr(os, "fork") and sys.platform != "darwin"
# What takes its seconds, imported once before any job starts; the parts beside it take milliseconds. It must not start
# threads or touch a GPU: a fork would not survive that.
PRELOADED = ["vae_lab.__main__", "vae_lab.training.train", "vae_lab.training.progress", "vae_lab.evaluation.gallery"]
PRELOADED += ["vae_lab.data.standard", "vae_lab.sweep.preloaded"]
ORPHAN_SECONDS = 30.0  # how long a job waits for its process of a sweep that was killed, which may still be saving


class Slot(NamedTuple):
    """Room for one job: CPU threads, and GPUs as for CUDA_VISIBLE_DEVICES (None: none, or all of them)."""

    threads: int
    device: str | None


class Machine:
    """What jobs may use of this machine, at the same time.

    Without GPUs a job gets a core for each of its processes, or its share of the cores where `n_jobs` says how many
    there are. With GPUs it gets as many of them as it wants, and the cores that go with these. `OMP_NUM_THREADS`, or
    `MKL_NUM_THREADS`, is the most threads that it gets. How many threads a job has never depends on what else runs,
    because its numbers may.

    Args:
        n_jobs: how many at a time, >= 1; None is as many as there is room for.
        jobs_per_device: how many share a GPU, >= 1.
    """

    def __init__(self, n_jobs: int | None, jobs_per_device: int):
        self.n_jobs, self.jobs_per_device = n_jobs, jobs_per_device
        self.known: dict[tuple, list[Slot]] = {}

    def slots(self, trainer: DictConfig) -> list[Slot]:
        """The slots that there are if all jobs have that trainer, at least one."""
        key = (str(trainer.devices), trainer.accelerator)
        if key not in self.known:
            self.known[key] = self._share_out(trainer)
        return self.known[key]

    def _share_out(self, trainer: DictConfig) -> list[Slot]:
        from joblib import cpu_count  # knows of affinities and of a container's share; only here, it takes a while

        cores = cpu_count()
        wanted = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else None
        gpus = visible_gpus() if trainer.accelerator in ("auto", "gpu", "cuda") else []
        devices: list[str | None] = [None] * (self.n_jobs or max(1, cores // (wanted or 1)))
        if gpus:
            size = wanted or len(gpus)
            groups = [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)] or [",".join(gpus)]
            count = self.n_jobs or len(groups) * self.jobs_per_device
            devices = [groups[i % len(groups)] for i in range(count)]
        threads = max(1, cores // (len(devices) * (1 if gpus else wanted or 1)))
        told = (re.match(r"\s*(\d+)", os.environ.get(name, "")) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
        threads = min([threads, *(most for limit in told if limit and (most := int(limit[1])))])
        return [Slot(threads, device) for device in devices]

    def room(self, trainer: DictConfig, at_work: list[tuple[DictConfig, Slot]]) -> Slot | None:
        """The slot for one more job, on the GPUs that have least to do; None while it has to wait.

        Args:
            trainer: of the job.
            at_work: the trainers of those that run, and where.
        """
        slots = self.slots(trainer)
        if self.n_jobs and len(at_work) >= self.n_jobs:
            return None
        if slots[0].device is None:
            taken = sum(Fraction(1, len(self.slots(other))) for other, slot in at_work if slot.device is None)
            return slots[0] if taken + Fraction(1, len(slots)) <= 1 else None
        load = Counter(device for _, slot in at_work if slot.device for device in slot.device.split(","))
        most = max(Counter(device for slot in slots for device in str(slot.device).split(",")).values())
        gpus, size = visible_gpus(), len(slots[0].device.split(","))
        chosen = sorted(gpus, key=lambda gpu: (load[gpu], gpus.index(gpu)))[:size]
        if any(load[gpu] >= most for gpu in chosen):
            return None
        return slots[0]._replace(device=",".join(sorted(chosen, key=gpus.index)))


@cache
def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES would name them."""
    import torch  # only here, a second or two

    count = torch.cuda.device_count()  # asks the driver's library, starts nothing
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if count and named else list(map(str, range(count)))


class Pool:
    """Starts jobs on this machine, and tells how they ended.

    Args:
        n_jobs: how many at a time, >= 1; None is as many as there is room for.
        jobs_per_device: how many share a GPU, >= 1.
        is_tracked: whether the jobs are to have a process of W&B each.
    """

    def __init__(self, n_jobs: int | None, jobs_per_device: int, is_tracked: bool = False):
        self.machine = Machine(n_jobs, jobs_per_device)
        self.trackers = WandbForkServer() if is_tracked and HAS_FORK_SERVER else None
        self.running: dict[Any, tuple[Job, Slot, Connection]] = {}
        self.context: Any = multiprocessing.get_context("forkserver" if HAS_FORK_SERVER else "spawn")
        if HAS_FORK_SERVER:  # it starts at once, to import while the jobs are composed
            from multiprocessing import forkserver, resource_tracker

            self.context.set_forkserver_preload(PRELOADED)
            resource_tracker.ensure_running()  # else the server's start does it, and unblocks two of the signals
            with signals_wait():  # for ever: the server tells how the jobs end, and must outlive them
                forkserver.ensure_running()

    def most(self, trainer: DictConfig) -> int:
        """How many jobs with that trainer run at the same time."""
        return len(self.machine.slots(trainer))

    def room(self, trainer: DictConfig) -> Slot | None:
        """The slot for one more job; None while it has to wait."""
        return self.machine.room(trainer, [(job.config.trainer, slot) for job, slot, _ in self.running.values()])

    def start(self, job: Job, slot: Slot) -> None:
        """Start a job."""
        asked, ask = self.context.Pipe(duplex=False)
        trackers = self.trackers.fork() if self.trackers else []
        process = self.context.Process(target=work, args=(job.config, arguments_of(job), slot, asked, trackers))
        job.begin()
        self.running[process] = job, slot, ask  # first, so that no signal misses it
        with signals_wait():
            process.start()
        for end in (asked, *chain(*trackers)):
            end.close()

    def names_of_metrics(self, config: DictConfig) -> set[str]:
        """What a run with that config measures, from a process that has torch; empty where it cannot be built."""
        answer, send = self.context.Pipe(duplex=False)
        process = self.context.Process(target=tell_metrics, args=(config, send))
        with signals_wait():
            process.start()
        send.close()
        with answer, suppress(EOFError):
            return answer.recv()
        return set()

    def ended(self, seconds: float) -> list[tuple[Job, int]]:
        """The jobs that have ended, with their exit codes; waits at most so many seconds for one."""
        ready = connection.wait([process.sentinel for process in self.running], seconds) if self.running else []
        found = []
        for process in [process for process in self.running if process.sentinel in ready]:
            process.join()
            job, _, ask = self.running.pop(process)
            ask.close()
            found.append((job, process.exitcode))
        return found

    def stop(self, number: int) -> None:
        """Ask all running jobs to save a checkpoint and end, as on that signal; if it is the second, to end at once."""
        for _, _, ask in self.running.values():
            with suppress(OSError):  # it has just ended
                ask.send(number)


def arguments_of(job: Job) -> list[str]:
    """The command line of the same run alone, for the further processes of a run on several devices."""
    return [sys.argv[0], *config_flags(sys.argv[1:]), *job.overrides, "resume=auto"]


def tell_metrics(config: DictConfig, answer: Connection) -> None:
    """Build the model of a config, and tell the names of what is measured of it."""
    from vae_lab.training.build import build_module, names_of_metrics

    setup_globals()
    with suppress(ValueError):  # the jobs will say what is wrong
        answer.send(names_of_metrics(build_module(config)))


def work(
    config: DictConfig, arguments: list[str], slot: Slot, asked: Connection, trackers: Sequence[Ends] = ()
) -> None:
    """Train what a job's config says, or continue it, in a process of its own.

    The arguments are those of the same run alone, for the further processes of a run on several devices. The connection
    brings the numbers of signals, and ends with the sweep's process. W&B's processes may be there already.
    """
    forked[:] = trackers
    folder = Path(config.hydra.runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / OUTPUT, "ab") as file:  # all that this process prints
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()  # a crash in C says where
    os.environ.pop("HYDRA_FULL_ERROR", None)  # set by the sweep's process, not by the user
    # As in a single run, not as this process itself was started: spawned workers would import torch at every epoch.
    multiprocessing.set_start_method(None, force=True)
    try:
        with one_line_errors(), Preemption() as preemption, preemption.first():
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            threading.Thread(target=obey, args=(asked,), daemon=True).start()
            if slot.device is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = slot.device
            os.environ["OMP_NUM_THREADS"] = str(slot.threads)  # of the processes that this one starts
            sys.argv = arguments
            sys.modules["__main__"].__spec__ = find_spec("vae_lab.__main__")  # Lightning starts it for each device
            setup_globals()
            HydraConfig.instance().set_config(config)
            import torch

            from vae_lab.training.train import train

            torch.set_num_threads(slot.threads)
            keep_memory()
            wait_for(folder / ".lock", ORPHAN_SECONDS)
            cfg = without_hydra(config)
            continue_if_begun(cfg)
            train(cfg)
    except Exception:
        print_redacted(*sys.exc_info())
        sys.exit(1)


def obey(asked: Connection) -> None:
    """Give the main thread the signals that the sweep asks for; SIGTERM, to save and stop, if the sweep was killed."""

    def interrupt(number: int) -> None:
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:  # on Windows the main thread hears of it when it goes on
            signal.raise_signal(number)

    with suppress(EOFError, OSError):
        while True:
            interrupt(asked.recv())
    interrupt(signal.SIGTERM)
