"""The jobs of a sweep on other machines: on Ray's workers, or as what submitit hands to Slurm.

They share a folder with the sweep, so that all it has to know of a job is in the job's files. A worker or a machine
that is lost is a preempted job: what is left of its processes saves and stops, and Ray or Slurm start it again
elsewhere, where it continues; at the latest the same command does.
"""

import logging
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig

from vae_lab.errors import RunError, one_line
from vae_lab.sweep.job import Job
from vae_lab.sweep.processes import Slot, arguments_of, work

LOST = 128 + signal.SIGTERM  # the exit code of a job whose worker is gone
CARRIED = ("VAE_LAB_", "WANDB_", "OMP_NUM_THREADS", "MKL_NUM_THREADS")  # variables that Ray's workers are told
RETRIES = 3  # of a job whose worker was lost, before the sweep goes on without it


class JobProcess:
    """A job as Ray and submitit call it on their machine: in a process of its own, which survives no caller.

    Args:
        config: of the job.
        arguments: of the same run alone.
        threads: that it gets.
    """

    def __init__(self, config: DictConfig, arguments: list[str], threads: int):
        self.config, self.arguments, self.threads = config, arguments, threads

    def __call__(self) -> int:
        """Run it; returns its exit code."""
        context = multiprocessing.get_context("spawn")
        asked, self.ask = context.Pipe(duplex=False)
        slot = Slot(self.threads, None)  # whose GPUs the cluster has chosen
        self.process = context.Process(target=work, args=(self.config, self.arguments, slot, asked))
        self.process.start()
        asked.close()
        try:
            while self.process.is_alive():
                self.process.join(0.5)  # which a cancelling Ray, unlike a signal, does not interrupt
        except KeyboardInterrupt:  # how Ray cancels
            self._stop()
        number = (self.process.exitcode or 0) - 128
        if number in (signal.SIGUSR1, signal.SIGUSR2) and callable(signal.getsignal(number)):
            signal.raise_signal(number)  # submitit's, which starts the job again
        return self.process.exitcode or 0

    def _stop(self) -> None:
        with suppress(OSError):  # it has just ended
            self.ask.send(signal.SIGTERM)
        self.process.join()

    def checkpoint(self) -> Any:
        """Save and stop before a time limit or a preemption; returns what submitit is to start later."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        return DelayedSubmission(JobProcess(self.config, self.arguments, self.threads))

    def __getstate__(self) -> dict:
        return {key: self.__dict__[key] for key in ("config", "arguments", "threads")}


class RayPool:
    """Starts jobs on the workers of a Ray cluster, and tells how they ended.

    Args:
        n_jobs: how many at a time; None is as many as the cluster has room for.
        jobs_per_device: how many share a GPU.
        cpus_per_task: cores, and threads, of a job.
        address: of the cluster's head, HOST:PORT; "auto" is the one that this machine belongs to.

    Raises:
        ValueError: if Ray is not installed.
        RunError: if there is no cluster.
    """

    def __init__(self, n_jobs: int | None, jobs_per_device: int, cpus_per_task: int, address: str):
        self.ray = package("ray", "ray")
        self.n_jobs, self.jobs_per_device, self.cpus = n_jobs, jobs_per_device, cpus_per_task
        self.running: dict[Any, Job] = {}
        try:
            self.ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = "" if isinstance(error, ConnectionError) else f": {one_line(error)}"  # whose own advice is not for us
            said = f"no Ray cluster answers at hydra.launcher.address={address}{why}"
            raise RunError(f"{said}; start one with: ray start --head") from error

    def gpus(self, trainer: DictConfig) -> float:
        """How many GPUs a job takes; a part of one where several share it."""
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        if not has_gpus or trainer.accelerator not in ("auto", "gpu", "cuda"):
            return 0
        return trainer.devices if type(trainer.devices) is int and trainer.devices > 1 else 1 / self.jobs_per_device

    def most(self, trainer: DictConfig) -> int:
        """How many jobs with that trainer run at the same time."""
        there, gpus = self.ray.cluster_resources(), self.gpus(trainer)
        room = [there.get("CPU", 0) / self.cpus, *([there["GPU"] / gpus] if gpus else [])]
        return self.n_jobs or max(1, int(min(room)))

    def room(self, trainer: DictConfig) -> Slot | None:
        """The slot for one more job; None while it has to wait."""
        return Slot(self.cpus, None) if len(self.running) < self.most(trainer) else None

    def start(self, job: Job, slot: Slot) -> None:
        """Start a job on a worker."""
        call = JobProcess(job.config, arguments_of(job), slot.threads)
        task = self.ray.remote(run).options(
            num_cpus=self.cpus, num_gpus=self.gpus(job.config.trainer), max_retries=RETRIES, name=job.title
        )
        told = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
        job.begin()
        self.running[task.remote(call, os.getcwd(), told)] = job

    def ended(self, seconds: float) -> list[tuple[Job, int]]:
        """The jobs that have ended, with their exit codes; waits at most so many seconds for one."""
        ready, _ = self.ray.wait(list(self.running), timeout=seconds) if self.running else ([], [])
        found = []
        for task in ready:
            try:
                exit_code = self.ray.get(task)
            except self.ray.exceptions.RayError:
                exit_code = LOST
            found.append((self.running.pop(task), exit_code))
        return found

    def stop(self, number: int) -> None:
        """Ask all running jobs to save a checkpoint and end."""
        for task in self.running:
            self.ray.cancel(task)


def run(call: JobProcess, place: str, environment: dict[str, str]) -> int:
    """What a worker of Ray calls; relative paths and variables mean there what they mean to the sweep."""
    os.chdir(place)
    os.environ.update(environment)
    return call()


class SubmititPool:
    """Hands jobs to Slurm, which queues them, and tells how they ended.

    Args:
        cluster: slurm, or local: processes on this machine, to try it.
        folder: of the sweep; submitit keeps its files in it.
        n_jobs: how many at a time; None is all of them.
        settings: arguments of submitit's executor, such as `timeout_min`, `partition`.
    """

    def __init__(self, cluster: str, folder: Any, n_jobs: int | None, settings: dict):
        submitit = package("submitit", "slurm")
        self.lost, self.failed = submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError
        self.n_jobs, self.threads = n_jobs, settings.get("cpus_per_task") or 1
        self.running: dict[Any, Job] = {}
        shared = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout")
        named = {k if k in shared else f"{cluster}_{k}": v for k, v in settings.items() if v is not None}
        at_first = {key: named.pop(key) for key in (f"{cluster}_max_num_timeout",) if key in named}
        try:
            self.executor = submitit.AutoExecutor(folder=folder / ".submitit" / "%j", cluster=cluster, **at_first)
            self.executor.update_parameters(**named)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise ValueError(f"hydra.launcher: submitit refuses it ({one_line(error)})") from error

    def most(self, trainer: DictConfig) -> int:
        """How many jobs of a search are in the queue at the same time."""
        return self.n_jobs or 1

    def room(self, trainer: DictConfig) -> Slot | None:
        """The slot for one more job; None while it has to wait."""
        return Slot(self.threads, None) if not self.n_jobs or len(self.running) < self.n_jobs else None

    def start(self, job: Job, slot: Slot) -> None:
        """Put a job into the queue."""
        job.begin()
        self.running[self.executor.submit(JobProcess(job.config, arguments_of(job), slot.threads))] = job

    def ended(self, seconds: float) -> list[tuple[Job, int]]:
        """The jobs that have ended, with their exit codes; waits at most so many seconds for one."""
        done = [queued for queued in self.running if queued.done()]
        if not done:
            time.sleep(seconds)
        return [(self.running.pop(queued), self._exit_code(queued)) for queued in done]

    def _exit_code(self, queued: Any) -> int:
        try:
            return queued.result()
        except self.failed:  # before there was a process
            return 1
        except self.lost:
            return LOST

    def stop(self, number: int) -> None:
        """Ask all jobs to save a checkpoint and end, or to leave the queue."""
        for queued in self.running:
            queued.cancel(check=False)


def package(name: str, extra: str) -> Any:
    """Import what only a launcher needs; `ValueError` naming the extra where it is missing."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ValueError(f"this hydra/launcher needs the package {name}: pip install 'vae_lab[{extra}]'") from error
