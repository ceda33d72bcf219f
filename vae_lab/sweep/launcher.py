"""Hydra's launcher `local`: the loop over the jobs of a sweep, each in a process of its own, and nothing lost."""

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from vae_lab.errors import Preempted, SweepError
from vae_lab.runs.files import locked
from vae_lab.runs.signals import heeded
from vae_lab.sweep.job import Job, append_event, job_folder
from vae_lab.sweep.processes import Pool, share_out
from vae_lab.sweep.table import REFRESH_SECONDS, SweepTable


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
        self.jobs: list[Job] = []  # of all launches: a search has several

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and share out the machine."""
        if config.hydra.sweeper.get("max_batch_size") is not None:
            raise ValueError("hydra.sweeper.max_batch_size has no meaning with hydra/launcher=local; use sweep.n_jobs")
        self.config = config
        self.folder = Path(config.hydra.sweep.dir).resolve()
        self.loader = hydra_context.config_loader
        hydra_context.config_loader = self.composed = Remembering(self.loader)
        self.is_grid = config.hydra.sweeper._target_.endswith(".BasicSweeper")  # else a search, of several launches
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
        common = set(self.config.hydra.overrides.task)  # what the command does not vary
        jobs = [Job(initial_job_idx + i, list(overrides), common) for i, overrides in enumerate(job_overrides)]
        self.jobs += jobs
        table = SweepTable(self.folder, self.jobs, stays=self.is_grid)
        with locked(self.folder / ".lock"), stopping(self.pool.stop) as asked, table:
            append_event(self.folder, "sweep", arguments=sys.argv[1:], jobs=len(jobs))
            self._run(jobs, table, asked)
        table.close(jobs)
        if asked:
            raise Preempted(128 + asked[0])
        return [Returned(job, jobs) for job in jobs]

    def _run(self, jobs: list[Job], table: SweepTable, asked: list[int]) -> None:
        pending, twins = deque(jobs), []
        while pending or self.pool.running:
            if asked or (self.on_failure == "stop" and any(job.state == "failed" for job in jobs)):
                pending.clear()
            if pending and self.pool.free:
                job = pending.popleft()
                self._place(job)
                begun = (other for other in jobs if other.state in ("running", "failed", "preempted"))
                if twin := next((other for other in begun if other.folder == job.folder), None):
                    twins.append((job, twin))  # the same settings, written twice
                    continue
                if not job.is_done():  # else it is skipped
                    append_event(self.folder, "start", job=job.number, folder=job.folder.name, overrides=job.overrides)
                    self.pool.start(job)
                table.tell(job)
            for job, exit_code in self.pool.ended(0 if pending and self.pool.free else REFRESH_SECONDS):
                job.end(exit_code)
                append_event(self.folder, "end", exit_code=exit_code, **job.outcome)
                table.tell(job)
            table.update()
        for job, twin in twins:
            job.state, job.reason, job.value = twin.state, twin.reason, twin.value
            table.tell(job)

    def _place(self, job: Job) -> None:
        """Compose a job's config, which says where its folder is."""
        config = self.composed.checked.pop(tuple(job.overrides), None)
        if config is None:
            config = self.loader.load_sweep_config(self.config, job.overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = job.number
            folder = self.folder / job_folder(job.distinctive, _root_=config)
            config.hydra.run.dir = config.hydra.runtime.output_dir = str(folder)
        job.place(config)


class Remembering:
    """Hydra's config loader. Its sweeper composes every job to check it, a tenth of a second each: once is enough.

    Args:
        loader: which composes.
    """

    def __init__(self, loader: ConfigLoader):
        self._loader = loader
        self.checked: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose a job, and keep its config for the launcher."""
        config = self._loader.load_sweep_config(master_config, sweep_overrides)
        self.checked[tuple(sweep_overrides)] = config
        return config


class Returned(JobReturn):
    """What a job came to, as Hydra wants it back; unlike Hydra's own, it prints nothing of its own where a job failed.

    Args:
        job: that has ended, or was not started.
        jobs: of the sweep.
    """

    def __init__(self, job: Job, jobs: list[Job]):
        status = JobStatus.COMPLETED if job.state == "completed" else JobStatus.FAILED
        super().__init__(overrides=job.overrides, cfg=job.config, hydra_cfg=job.config, status=status)
        self._job, self._jobs = job, jobs

    @property
    def return_value(self) -> float | None:
        """The metric's best value.

        Raises:
            SweepError: if the job failed.
        """
        if self.status == JobStatus.COMPLETED:
            return self._job.value
        missing = sum(job.state != "completed" for job in self._jobs)
        raise SweepError(
            f"{missing} of {len(self._jobs)} jobs did not complete, see above; the same command tries again"
        )


@contextmanager
def stopping(stop: Callable[[int], None]) -> Iterator[list[int]]:
    """Hand on the signals that ask this process to stop, and collect them, while the block runs."""
    asked: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        stop(number)  # at once: what also reaches the jobs without us is one request with this

    previous = {number: signal.signal(number, hear) for number in heeded()}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
