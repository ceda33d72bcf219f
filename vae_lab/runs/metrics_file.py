"""`metrics.jsonl`: one JSON object for each log event, appended by a run and read back by everybody else."""

import json
import logging
import math
import os
import time
from pathlib import Path

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from vae_lab.data.decoding import printable
from vae_lab.errors import RunError
from vae_lab.runs.files import cannot_write

log = logging.getLogger(__name__)


def read_history(path: Path) -> list[dict[str, float | None]]:
    """Read the log events of a run; lines that are none of ours are left out, and the log says so.

    Returns:
        The step and the metrics of each.
    """
    lines = path.read_text(errors="replace").splitlines()
    rows = [row for row in map(parse, lines) if row is not None]
    if len(rows) < len(lines):
        log.warning("%s: %d of %d lines are damaged and left out", printable(path), len(lines) - len(rows), len(lines))
    return rows


def parse(line: str) -> dict[str, float | None] | None:
    """One line, or None if it is not a finite step with values that are numbers or null."""
    try:
        row = json.loads(line, parse_int=float)  # of which the largest is infinite
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(value, float | None) for value in row.values()):
        return None
    step = row.get("step")
    return row if step is not None and math.isfinite(step) else None


class MetricsFile(Logger):
    """Appends every log event to `metrics.jsonl`, flushed.

    Args:
        folder: the run folder.
    """

    name, version = "metrics", ""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The config is in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **metrics, "time": round(time.time(), 3)}) + "\n")
        except OSError as error:
            raise RunError(cannot_write(self.path, error)) from error

    def sync(self) -> int:
        """Make what was written so far survive a power cut; returns its size in bytes."""
        if not self.path.exists():
            return 0
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    @rank_zero_only
    def truncate(self, size: int) -> None:
        """Drop what was logged after a checkpoint; the continued run logs it again."""
        present = self.path.stat().st_size if self.path.exists() else 0
        if size > present:
            log.warning(
                "%s has only %d of %d bytes: earlier metrics are lost, the model is not", self.path, present, size
            )
        elif present:
            os.truncate(self.path, size)
