"""Our launcher for Hydra: the loop over the jobs of a sweep, each in a process of its own, and nothing lost.

Where the processes run, is the business of a pool: `Pool` on this machine, `RayPool` and `SubmititPool` on others. It
tells for which job there is room, starts it, stops all, and tells how they ended.
"""

import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from vae_lab.config.help import CONF
from vae_lab.config.secrets import refuse_written_secrets
from vae_lab.errors import Preempted, SweepError
from vae_lab.runs.files import locked
from vae_lab.runs.signals import heeded
from vae_lab.sweep.command_line import study_of
from vae_lab.sweep.composing import Composer
from vae_lab.sweep.job import Job, append_event, job_folder, read_journal, runs_in
from vae_lab.sweep.processes import Pool
from vae_lab.sweep.table import REFRESH_SECONDS, SweepTable

ENGINES = ("local", "ray", "slurm", "slurm_local")


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep, on this machine or a cluster.

    Args:
        n_jobs: how many at a time, >= 1; None is as many as there is room for, see `Machine`.
        jobs_per_device: how many share a GPU, >= 1.
        on_failure: "continue" with the other jobs, or "stop": start no more.
        engine: where the jobs run: "local", "ray", "slurm" or "slurm_local".
        settings: of the engine, see `vae_lab.sweep.clusters`.

    Raises:
        ValueError: if one of these is something else.
    """

    def __init__(self, n_jobs: int | None, jobs_per_device: int, on_failure: str, engine: str = "local", **settings):
        for key, value in (("n_jobs", n_jobs), ("jobs_per_device", jobs_per_device)):
            if value is not None and not (type(value) is int and value >= 1):
                raise ValueError(f"sweep.{key} must be a whole number >= 1, got {value!r}")
        if on_failure not in ("continue", "stop"):
            raise ValueError(f"sweep.on_failure must be continue or stop, got {on_failure!r}")
        if engine not in ENGINES:
            raise ValueError(f"hydra.launcher.engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        self.engine, self.settings = engine, {key: plain(value) for key, value in settings.items()}
        self.n_jobs, self.jobs_per_device, self.on_failure = n_jobs, jobs_per_device, on_failure
        self.jobs: list[Job] = []  # of all launches: a search has several
        self.numbers: Sequence[int] = ()  # of the jobs of the next launch, where a search knows better than Hydra

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and share out the machine."""
        if config.hydra.sweeper.get("max_batch_size") is not None:
            raise ValueError("hydra.sweeper.max_batch_size has no meaning with this hydra/launcher; use sweep.n_jobs")
        refuse_written_secrets(OmegaConf.to_container(config))  # before the sweep's own files would hold them
        self.config = config
        self.folder = Path(config.hydra.sweep.dir).resolve()
        self.is_grid = config.hydra.sweeper._target_.endswith(".BasicSweeper")  # else a search, of several launches
        self.pool = self._open_pool()
        self.room = self.pool.most(config.trainer)  # how many jobs of a search run at the same time
        sweeper = config.hydra.sweeper
        self.table = SweepTable(self.folder, self.jobs, sweeper.get("n_trials"), not sweeper.get("metrics"))
        # Hydra's sweeper composes every job to check it: once is enough.
        loader = hydra_context.config_loader
        self.compose = cache(Composer(loader, config).compose)
        loader.load_sweep_config = lambda master_config, sweep_overrides: self.compose(*sweep_overrides)

    def _open_pool(self) -> Any:
        n_jobs, jobs_per_device = self.n_jobs, self.jobs_per_device
        try:
            if self.engine == "local":
                tracked = OmegaConf.to_yaml(self.config.get("logger", {}))
                return Pool(n_jobs, jobs_per_device, "vae_lab.loggers.wandb." in tracked, **self.settings)
            from vae_lab.sweep.clusters import RayPool, SubmititPool

            if self.engine == "ray":
                return RayPool(n_jobs, jobs_per_device, **self.settings)
            return SubmititPool(self.engine.removeprefix("slurm_"), self.folder, n_jobs, self.settings)
        except TypeError as error:  # of an argument that there is none
            raise ValueError(f"hydra.launcher: {error}") from error

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; completed ones are skipped, interrupted ones continue.

        Args:
            job_overrides: of each job.
            initial_job_idx: the first job's number.

        Returns:
            For each job whether it was completed, and the best value of its metric. Of one that was not started there
            is no config.

        Raises:
            RunError: if another process works on the same sweep.
            Preempted: if a signal stopped the sweep.
            SweepError: if a job of a grid did not complete.
        """
        common = set(self.config.hydra.overrides.task)  # what the command does not vary
        begun = cache(runs_in)  # what is there before these jobs start
        order, places = [], dict[str, Job]()  # the same settings, written twice or in two ways, are one job
        for i, overrides in enumerate(job_overrides):
            number = len(places) if self.is_grid else self.numbers[i] if self.numbers else initial_job_idx + i
            job = Job(number, list(overrides), common)
            self._place(job, begun)
            order.append(places.setdefault(job.folder.name.rpartition("_")[2], job))  # by its identity
        jobs = list(places.values())
        self.jobs += jobs
        asked: list[int] = []  # signals

        def hear(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            self.pool.stop(number)  # at once: what also reaches the jobs without us is one request with this

        with locked(self.folder / ".lock"):
            previous = {number: signal.signal(number, hear) for number in heeded()}
            try:
                self._tell_of_others(jobs)
                append_event(self.folder, "sweep", arguments=sys.argv[1:], jobs=len(jobs))
                with self.table if self.is_grid else nullcontext():  # that of a search is open until its end
                    self._run(jobs, asked)
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)
        self.table.close(jobs)
        if self.is_grid:
            self.table.end()
        if asked:
            raise Preempted(128 + asked[0])
        missing = sum(job.state != "completed" for job in jobs)
        if missing and self.is_grid:
            again = "; the same command tries again" if any(job.seconds >= 0 for job in jobs) else ""  # what was tried
            raise SweepError(f"{missing} of {len(jobs)} jobs did not complete, see above{again}")
        return [returned(job) for job in order]

    def _run(self, jobs: list[Job], asked: list[int]) -> None:
        pending = list(jobs)
        while pending or self.pool.running:
            if asked or (self.on_failure == "stop" and any(job.state == "failed" for job in jobs)):
                pending.clear()
            free = ((job, slot) for job in pending if (slot := self.pool.room(job.config.trainer)))
            job, slot = next(free, (None, None))  # the first one that there is room for now
            if job and slot:
                pending.remove(job)
                if not job.is_done():  # else it is skipped
                    append_event(self.folder, "start", job=job.number, folder=job.folder.name, overrides=job.overrides)
                    self.pool.start(job, slot)
                self.table.tell(job)
            for ended, exit_code in self.pool.ended(0 if job else REFRESH_SECONDS):
                ended.end(exit_code)
                said = {"state": ended.state, "reason": ended.reason, "seconds": round(ended.seconds, 3)}
                where = {"job": ended.number, "folder": ended.folder.name, "exit_code": exit_code}
                append_event(self.folder, "end", **where, **said)
                self.table.tell(ended)
            self.table.update()

    def _tell_of_others(self, jobs: list[Job]) -> None:
        """Say it if the folder also holds the jobs of another study, which stay."""
        before = [event["arguments"] for event in read_journal(self.folder) if event["event"] == "sweep"][-1:]
        if not before or self.config.sweep.longer or study_of(before[0], CONF) == study_of(sys.argv[1:], CONF):
            return
        known = {job.folder for job in self.jobs}
        if others := [path for path in self.folder.glob("*/status.json") if path.parent not in known]:
            given = shlex.join(a for a in before[0] if not a.startswith("sweep.default_name="))
            self.table.say(f"{self.folder} also holds another study, vae-lab {given}: {len(others)} jobs, which stay")

    def _place(self, job: Job, begun: Callable[[Path], dict]) -> None:
        """Compose a job's config, which says where its folder is; `ValueError` if it wants another sweep."""
        job.config = self.compose(*job.overrides)
        for part in ("launcher", "sweeper"):  # an experiment's, a setting that is varied
            if job.config.hydra[part] != self.config.hydra[part]:
                raise ValueError(
                    f"{job.title} sets another hydra.{part} than the sweep has, which is one for all jobs: "
                    f"run it in a sweep of its own, or say it for all"
                )
        with open_dict(job.config):
            job.config.hydra.job.id = job.config.hydra.job.num = job.number
            job.folder = self.folder / job_folder(job.distinctive, begun, _root_=job.config)
            job.config.hydra.run.dir = job.config.hydra.runtime.output_dir = str(job.folder)


def plain(value: Any) -> Any:
    """A setting as Python has it."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def returned(job: Job) -> JobReturn:
    """What a job came to, as Hydra wants it back."""
    is_completed = job.state == "completed"
    status = JobStatus.COMPLETED if is_completed else JobStatus.FAILED
    value = job.value if is_completed else SweepError(f"job {job.number} did not complete: {job.reason}")
    config = None if job.state == "pending" else job.config
    return JobReturn(job.overrides, config, config, status=status, _return_value=value)
