"""What a sweep shows: one live table in a terminal, otherwise a line for every job that starts or ends."""

import math
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from vae_lab.sweep.job import Job

STATES = ("completed", "running", "failed", "preempted", "pending")
COLOURS = {"completed": "green", "running": "cyan", "failed": "red", "preempted": "yellow", "pending": "dim"}
MAX_ROWS = 30
REFRESH_SECONDS = 0.5


class View:
    """Shows a sweep on stderr while it runs; use it as a context manager.

    Args:
        folder: of the sweep.
        jobs: all of them.
    """

    def __init__(self, folder: Path, jobs: list[Job]):
        self.folder = folder
        self.jobs = jobs
        self.started = self.shown_at = time.monotonic()
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live:
            self.update(at_once=True)
            self.live.stop()

    def update(self, at_once: bool = False) -> None:
        """Draw the table anew, if it is time to."""
        if self.live and (at_once or time.monotonic() - self.shown_at >= REFRESH_SECONDS):
            self.shown_at = time.monotonic()
            self.live.update(self.table(), refresh=True)

    def tell(self, job: Job) -> None:
        """Say that a job has started or ended; in a terminal the table does."""
        if self.live:
            return
        text = f"job {job.number + 1}/{self.jobs[-1].number + 1}  {job.state:<9}  {job.title}"
        if job.state == "completed":
            text += f"  {job.monitor} {format_value(job.value)}" + (f"  {job.seconds:.0f} s" if job.seconds > 0 else "")
        self.console.print(f"{text}  {job.reason}".rstrip(), markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """State, epoch, metric and time left of the jobs; running and failed ones first where there are many."""
        table = Table(title=escape(f"{self.folder.name}: {self.summary()}{self.time_left()}"), title_justify="left")
        metric = next((job.monitor for job in self.jobs if job.config), "metric")
        for column in ("job", "overrides", "state", "epoch", metric, "left"):
            table.add_column(column, justify="left" if column in ("overrides", "state") else "right")
        for job in self.shown():
            epoch, value, left = job.progress() if job.folder else (None, None, math.nan)
            value = job.value if job.state == "completed" else value
            state = f"[{COLOURS[job.state]}]{job.state}[/]"
            cells = ["" if epoch is None else f"{epoch:.0f}", format_value(value), format_seconds(left)]
            table.add_row(str(job.number + 1), escape(job.title), state, *cells)
        if len(self.jobs) > MAX_ROWS:
            table.caption = f"{len(self.jobs) - MAX_ROWS} more"
        return table

    def shown(self) -> list[Job]:
        """The jobs that the table has room for: running and failed ones, then the latest."""
        order = ("running", "failed", "preempted", "completed", "pending")
        urgent = sorted(self.jobs, key=lambda job: (order.index(job.state), -job.number * (job.state == "completed")))
        return sorted(urgent[:MAX_ROWS], key=lambda job: job.number)

    def summary(self) -> str:
        """How many jobs are in which state."""
        counts = Counter(job.state for job in self.jobs)
        return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])

    def time_left(self) -> str:
        """When the last job may end, once one has."""
        done = sum(job.seconds > 0 for job in self.jobs)
        waiting = sum(job.state in ("pending", "running") for job in self.jobs)
        if not done or not waiting:
            return ""
        return f", about {format_seconds((time.monotonic() - self.started) / done * waiting)} left"

    def close(self) -> None:
        """Say how it ended: the failed and unfinished jobs, each with its reason and where its log is."""
        for job in self.jobs:
            if job.state in ("failed", "preempted"):
                line = f"{job.state}: job {job.number + 1}  {job.title}  {job.reason}  (logs in {job.folder})"
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.console.print(f"{self.summary()}: {self.folder}", markup=False, highlight=False, soft_wrap=True)


def format_value(value: float | None) -> str:
    """Four digits."""
    return "" if value is None else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """Like 1:02:03 or 0:45; nothing where nobody can tell."""
    if not math.isfinite(seconds):
        return ""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
