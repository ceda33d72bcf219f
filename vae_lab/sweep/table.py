"""What a sweep shows: one live table in a terminal, otherwise a line for every job that starts or ends."""

import math
import shlex
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vae_lab.metrics.catalogue import find
from vae_lab.sweep.job import Job
from vae_lab.training.result import nearby, program

COLOURS = {"completed": "green", "running": "cyan", "failed": "red", "preempted": "yellow", "pending": "dim"}
REFRESH_SECONDS = 0.5
AROUND = 6  # lines of a terminal that are not for jobs: the head of the table, what is below it, the cursor


class SweepTable:
    """Shows a sweep on stderr while it runs; use it as a context manager.

    Args:
        folder: of the sweep.
        jobs: those that are known; a search adds to the list.
        trials: that a search will have in all; None for a grid.
        ranks: whether the monitored metric says which job is the best.
        console: to write to; None is stderr.
    """

    def __init__(
        self,
        folder: Path,
        jobs: list[Job],
        trials: int | None = None,
        ranks: bool = True,
        console: Console | None = None,
    ):
        self.folder, self.jobs, self.trials, self.ranks = folder, jobs, trials, ranks
        self.started = self.shown_at = time.monotonic()
        self.console = console or Console(stderr=True)
        is_live = self.console.is_interactive and self.console.file.isatty()  # whatever FORCE_COLOR says of a file
        self.live = Live(console=self.console, auto_refresh=False) if is_live else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live:
            self.live.update(self.draw(), refresh=True)
            self.live.stop()

    def update(self) -> None:
        """Draw the table anew, if it is time to."""
        if self.live and time.monotonic() - self.shown_at >= REFRESH_SECONDS:
            self.shown_at = time.monotonic()
            self.live.update(self.draw(), refresh=True)

    def tell(self, job: Job) -> None:
        """Say that a job has started or ended; in a terminal the table does."""
        if self.live:
            return
        text = f"job {job.number} of {self.trials or len(self.jobs)}  {job.state:<9}  {job.title}"
        if job.state == "completed":
            text += f"  {job.monitor} {format_value(job.value)}" + (f"  {job.seconds:.0f} s" if job.seconds > 0 else "")
        self.say(f"{text}  {job.reason}".rstrip())

    def close(self, jobs: list[Job]) -> None:
        """Say how jobs ended that did not complete, each with its reason and where its log is."""
        for job in jobs:
            if job.state in ("failed", "preempted"):
                self.say(f"{job.state}: job {job.number}  {job.title}  {job.reason}  (logs in {job.folder})")

    def end(self) -> None:
        """Say what a grid came to, and what is next."""
        best = "" if self.live else self.best()
        self.say(f"{self.counts()}: {self.folder}" + (f"\n{best}" if best else ""))
        self.say(next_command(self.folder))

    def draw(self) -> Group:
        """The jobs that there is room for, then how many are in which state, the time left, and the best one."""
        metric = next((job.monitor for job in self.jobs if job.state != "pending"), "metric")
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("job", justify="right")
        table.add_column(self.folder.name, no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("state")
        for column in ("epoch", metric, "left"):
            table.add_column(column, justify="right", no_wrap=True)
        urgent = sorted(self.jobs, key=urgency)[: max(1, self.console.height - AROUND)]
        for job in sorted(urgent, key=lambda job: job.number):
            epoch, value, left = job.progress() if job.state == "running" else (None, job.value, math.nan)
            cells = ["" if epoch is None else f"{epoch:.0f}", format_value(value), format_seconds(left)]
            table.add_row(str(job.number), Text(job.title), Text(job.state, COLOURS[job.state]), *cells)
        below = [f"{self.trials or len(self.jobs)} jobs: {self.counts()}{self.time_left()}", self.best()]
        return Group(table, *(Text(line, no_wrap=True, overflow="ellipsis") for line in below if line))

    def counts(self) -> str:
        """How many jobs are in which state."""
        counts = Counter(job.state for job in self.jobs)
        return ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])

    def best(self) -> str:
        """The best value of the monitored metric so far, and of which job."""
        done = [(job.value, job) for job in self.jobs if job.value is not None and math.isfinite(job.value)]
        if not done or not self.ranks:
            return ""
        metric = done[0][1].monitor
        value, job = (max if find(metric).better == "higher" else min)(done, key=lambda pair: pair[0])
        return f"best {metric} {format_value(value)}: job {job.number}  {job.title}"

    def time_left(self) -> str:
        """When the last job may end, once one has."""
        done = sum(job.seconds > 0 and job.started >= self.started for job in self.jobs)
        waiting = sum(job.state in ("pending", "running") for job in self.jobs)
        if self.trials and self.jobs:  # a search that goes on has those before the first one behind it
            waiting += self.trials - self.jobs[-1].number - 1
        if not done or not waiting:
            return ""
        return f", about {format_seconds((time.monotonic() - self.started) / done * waiting)} left"

    def say(self, text: str) -> None:
        """Print a line as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def urgency(job: Job) -> tuple[int, int]:
    """What is shown where there is no room for all: what runs, what went wrong, the latest, what is next."""
    order = ("running", "failed", "preempted", "completed", "pending").index(job.state)
    return order, job.number if job.state == "pending" else -job.number


def next_command(folder: Path) -> str:
    """What to do with a sweep, on one line."""
    return f"compare  {program()} compare {shlex.quote(nearby(folder))}"


def format_value(value: float | None) -> str:
    """Four digits."""
    return "" if value is None else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """Like 1:02:03; nothing where nobody can tell."""
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else ""
