"""The processes of a sweep's jobs: started from a fork server, a few at a time, each in its slot."""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess

from vae_lab.runs.signals import SIGNALS
from vae_lab.sweep.arguments import flags
from vae_lab.sweep.job import Job
from vae_lab.sweep.slots import Slot
from vae_lab.sweep.worker import work

# Imported once, before any job starts. Nothing in it may start threads or touch a GPU: a fork would not survive that.
PRELOADED = [
    *(
        "vae_lab.__main__",
        "vae_lab.training.train",
        "vae_lab.sweep.worker",
        "vae_lab.evaluation.gallery",
        "vae_lab.training.progress",
    ),
    *(
        "vae_lab.data.standard",
        "sklearn.datasets",
        "vae_lab.models.networks.mlp",
        "vae_lab.models.networks.conv",
        "vae_lab.models.posteriors",
    ),
    *("vae_lab.models.likelihoods", "vae_lab.objectives.elbo"),
]


class Pool:
    """Starts the fork server at once, so that it imports while the jobs are composed.

    Args:
        slots: room for as many jobs.
    """

    def __init__(self, slots: list[Slot]):
        self.free = list(slots)
        self.running: dict[BaseProcess, tuple[Job, Slot]] = {}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        # A signal to all processes of the command must not end the server, which tells how the jobs end.
        resource_tracker.ensure_running()  # else the server's start does it, and unblocks two of the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        multiprocessing.forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self, job: Job) -> None:
        """Start a job in a free slot."""
        slot = self.free.pop(0)
        arguments = [sys.argv[0], *flags(sys.argv[1:]), *job.overrides, "resume=auto"]
        process = self.context.Process(target=work, args=(job.config, arguments, slot.threads, slot.device))
        job.begin()
        process.start()
        self.running[process] = job, slot

    def ended(self, seconds: float) -> list[tuple[Job, int]]:
        """The jobs that have ended, with their exit codes; waits at most so many seconds for one."""
        sentinels = {process.sentinel: process for process in self.running}
        found = []
        for sentinel in connection.wait(sentinels, seconds) if sentinels else ():
            process = sentinels[sentinel]
            process.join()
            job, slot = self.running.pop(process)
            self.free.append(slot)
            found.append((job, process.exitcode))
        return found

    def stop(self, number: int) -> None:
        """Send all running jobs a signal: to save a checkpoint and end, or, if it is the second, to end at once."""
        for process in self.running:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, number)
