"""Hydra's launcher `local`: each job in a process of its own, several at a time, and nothing lost.

It is here because Hydra takes plugins from the package `hydra_plugins` only.
"""

import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from vae_lab.config.secrets import refuse_written_secrets
from vae_lab.errors import Preempted, SweepError
from vae_lab.runs.files import locked
from vae_lab.runs.signals import heeded
from vae_lab.sweep.identity import job_folder
from vae_lab.sweep.job import Job
from vae_lab.sweep.journal import append_event
from vae_lab.sweep.pool import Pool
from vae_lab.sweep.slots import share_out
from vae_lab.sweep.view import REFRESH_SECONDS, View

BEGUN = ("running", "failed", "preempted")


class LocalLauncher(Launcher):
    """Runs the jobs of a sweep on this machine.

    Args:
        n_jobs: how many at a time, >= 1; None is as many as there are slots, see `share_out`.
        jobs_per_device: how many share a GPU, >= 1.
        on_failure: "continue" with the other jobs, or "stop": start no more.

    Raises:
        ValueError: if one of these is something else.
    """

    def __init__(self, n_jobs: int | None, jobs_per_device: int, on_failure: str):
        for key, value in (("n_jobs", n_jobs), ("jobs_per_device", jobs_per_device)):
            if value is not None and not (type(value) is int and value >= 1):
                raise ValueError(f"sweep.{key} must be a whole number >= 1, got {value!r}")
        if on_failure not in ("continue", "stop"):
            raise ValueError(f"sweep.on_failure must be continue or stop, got {on_failure!r}")
        self.n_jobs = n_jobs
        self.jobs_per_device = jobs_per_device
        self.on_failure = on_failure

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and share out the machine."""
        if config.hydra.sweeper.get("max_batch_size") is not None:
            raise ValueError("hydra.sweeper.max_batch_size has no meaning with hydra/launcher=local; use sweep.n_jobs")
        refuse_written_secrets(OmegaConf.to_container(config))
        self.config = config
        self.loader = hydra_context.config_loader
        self.pool = Pool(share_out(config.trainer, self.n_jobs, self.jobs_per_device))

    @property
    def room(self) -> int:
        """How many jobs run at the same time."""
        return len(self.pool.free) + len(self.pool.running)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; completed ones are skipped, interrupted ones continue.

        Args:
            job_overrides: of each job.
            initial_job_idx: the first job's number.

        Returns:
            For each job whether it was completed, and the best value of its metric. Of a failed one, asking for the
            value raises `SweepError` with a summary.

        Raises:
            RunError: if another process works on the same sweep.
            Preempted: if a signal stopped the sweep.
        """
        folder = Path(self.config.hydra.sweep.dir).resolve()
        common = set(self.config.hydra.overrides.task)  # what the command does not vary
        jobs = [Job(initial_job_idx + i, list(overrides), common) for i, overrides in enumerate(job_overrides)]
        with locked(folder / ".lock"), stopping() as asked, View(folder, jobs) as view:
            append_event(folder, "sweep", arguments=sys.argv[1:], jobs=len(jobs))
            self._run(folder, jobs, view, asked)
        view.close()
        if asked:
            raise Preempted(128 + asked[0])
        return [self._returned(job, jobs) for job in jobs]

    def _run(self, folder: Path, jobs: list[Job], view: View, asked: list[int]) -> None:
        pending, twins, told = deque(jobs), [], 0
        while pending or self.pool.running:
            if asked or (self.on_failure == "stop" and any(job.state == "failed" for job in jobs)):
                pending.clear()
            if pending and self.pool.free:
                job = pending.popleft()
                job.place(self._compose(job))
                twin = next((other for other in jobs if other.folder == job.folder and other.state in BEGUN), None)
                if twin:  # the same settings, written twice
                    twins.append((job, twin))
                    continue
                if job.state == "pending":
                    append_event(folder, "start", job=job.number, folder=job.folder.name, overrides=job.overrides)
                    self.pool.start(job)
                view.tell(job)
            for job, exit_code in self.pool.ended(0 if pending and self.pool.free else REFRESH_SECONDS):
                job.end(exit_code)
                append_event(folder, "end", exit_code=exit_code, **job.outcome)
                view.tell(job)
            if len(asked) > told:
                told = len(asked)
                self.pool.stop(asked[-1])
            view.update()
        for job, twin in twins:
            job.copy(twin)
            view.tell(job)

    def _compose(self, job: Job) -> DictConfig:
        config = self.loader.load_sweep_config(self.config, job.overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = job.number
            folder = Path(config.hydra.sweep.dir) / job_folder(job.distinctive, _root_=config)
            config.hydra.run.dir = config.hydra.runtime.output_dir = str(folder.resolve())
        return config

    def _returned(self, job: Job, jobs: list[Job]) -> JobReturn:
        returned = Returned(overrides=job.overrides, cfg=job.config, hydra_cfg=job.config)
        returned.status = JobStatus.COMPLETED if job.state == "completed" else JobStatus.FAILED
        returned._return_value = job.value if job.state == "completed" else failure(jobs)
        return returned


class Returned(JobReturn):
    """What a job came to; unlike Hydra's, it prints nothing when the value of a failed one is asked for."""

    @property
    def return_value(self) -> float | None:
        """The metric's best value.

        Raises:
            SweepError: if the job failed.
        """
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value


def failure(jobs: list[Job]) -> SweepError:
    """What a sweep says in the end if not all of its jobs were completed."""
    completed = sum(job.state == "completed" for job in jobs)
    return SweepError(
        f"{len(jobs) - completed} of {len(jobs)} jobs did not complete, see above; the same command tries again"
    )


@contextmanager
def stopping() -> Iterator[list[int]]:
    """Collect the signals that ask this process to stop, while the block runs."""
    asked: list[int] = []
    previous = {number: signal.signal(number, lambda number, frame: asked.append(number)) for number in heeded()}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
