"""One job of a sweep, as the sweep sees it: what it is, and how it goes, from the files that its run writes."""

import json
import math
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from vae_lab.config.saved import load_saved
from vae_lab.errors import RunError
from vae_lab.runs.files import locked, read_json, write_json
from vae_lab.runs.resume import has_limits_of

TAIL = 8192  # bytes of a file that are read for its last lines
OUTPUT = "output.log"  # what a job printed


class Job:
    """A job and its run folder.

    Args:
        number: its place in the sweep, from 0.
        overrides: of the job.
        common: those that all jobs of the sweep have; they are not shown.
    """

    def __init__(self, number: int, overrides: list[str], common: set[str]):
        self.number = number
        self.overrides = overrides
        self.distinctive = [o for o in overrides if o not in common and not o.startswith("+callbacks.pruning.")]
        self.title = " ".join(self.distinctive)
        self.state = "pending"
        self.reason = ""
        self.config: DictConfig | None = None
        self.folder: Path | None = None
        self.started = self.seconds = math.nan
        self.first_epoch: float | None = None
        self.before: dict = {}  # what `status.json` said when it was started
        self.printed = 0  # bytes in its output then

    def place(self, config: DictConfig) -> None:
        """Set the config and the folder it says, and look what is there."""
        self.config = config
        self.folder = Path(config.hydra.runtime.output_dir)
        if self.status.get("state") == "completed":
            kept = has_limits_of(config, load_saved(self.folder))
            self.state = "completed" if kept else "failed"
            self.reason = "" if kept else "its folder was continued to other limits of training; use another sweep.name"

    @property
    def status(self) -> dict:
        """What `status.json` says; empty where there is nothing that can be read."""
        try:
            return read_json(self.folder / "status.json") if self.folder else {}
        except RunError:
            return {}

    @property
    def value(self) -> float | None:
        """The best value of the monitored metric, of a completed job."""
        try:
            return read_json(self.folder / "result.json").get("best_value")
        except RunError:
            return None

    @property
    def monitor(self) -> str:
        """The metric that the job's checkpoints watch."""
        return OmegaConf.select(self.config, "callbacks.checkpoints.monitor") or "val/loss"

    def begin(self) -> None:
        """Note that its process has been started."""
        self.state, self.reason, self.started = "running", "", time.monotonic()
        self.before, output = self.status, self.folder / OUTPUT
        self.printed = output.stat().st_size if output.exists() else 0

    def end(self, exit_code: int) -> None:
        """Note how its process ended; a run that could not say so itself is marked as failed.

        Args:
            exit_code: of the process; minus the signal's number if one killed it.
        """
        self.seconds = time.monotonic() - self.started
        said = self.status
        said = {} if said == self.before else said  # of an earlier start
        if said.get("state") == "completed":
            self.state = "completed"
        elif 128 < exit_code < 160 and said.get("state") != "failed":
            self.state, self.reason = "preempted", said.get("reason") or f"signal {exit_code - 128}"
        else:
            self.state = "failed"
            words = self._last_words() or said.get("reason") or ""
            self.reason = words if words and exit_code >= 0 else ended_by(exit_code)
        if self.state == "failed" or said.get("state") == "running":
            self._mark()

    def _mark(self) -> None:
        """Say in `status.json` how it ended, unless it did so itself, or another process has the folder."""
        with suppress(RunError), locked(self.folder / ".lock"):
            said = self.status
            if said == self.before or said.get("state") != self.state:
                write_json(self.folder / "status.json", {**said, "state": self.state, "reason": self.reason})

    def copy(self, twin: "Job") -> None:
        """Take over the end of another job that is the same, in the same folder."""
        self.state, self.reason = twin.state, twin.reason

    @property
    def outcome(self) -> dict:
        """How it ended, for the journal."""
        seconds = round(self.seconds, 3)
        return {"job": self.number, "folder": self.folder.name, "state": self.state, "reason": self.reason,
                "seconds": seconds}  # fmt: skip

    def _last_words(self) -> str:
        lines = tail(self.folder / OUTPUT, self.printed)
        return next((line.removeprefix("vae-lab: ") for line in reversed(lines) if line.startswith("vae-lab: ")), "")

    def progress(self) -> tuple[float | None, float | None, float]:
        """The epoch it is in, from 1, the monitored metric's last value, and the seconds left (or NaN)."""
        epoch = value = None
        for line in tail(self.folder / "metrics.jsonl"):
            try:
                event = json.loads(line)
            except ValueError:  # cut by the reading, or being written
                continue
            epoch = event["epoch"] + 1 if "epoch" in event else epoch
            value = event.get(self.monitor, value)
        total = OmegaConf.select(self.config, "trainer.max_epochs")
        if epoch is None or self.state != "running":
            return epoch, value, math.nan
        if self.first_epoch is None:
            self.first_epoch = epoch
        done = epoch - self.first_epoch
        elapsed = time.monotonic() - self.started
        known = done > 0 and total not in (None, -1)
        return epoch, value, elapsed / done * (total - epoch) if known else math.nan


def tail(path: Path, start: int = 0) -> list[str]:
    """The last lines of a text file after so many bytes, none where there is no file; the first of them may be cut."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - TAIL))
            return file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def ended_by(exit_code: int) -> str:
    """An exit code in words."""
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}" if exit_code else "ended without a result"
