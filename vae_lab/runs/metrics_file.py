"""`metrics.jsonl`: one JSON object for each log event, appended by a run and read back by everybody else. No torch."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from vae_lab.errors import RunError
from vae_lab.runs.files import cannot_write

log = logging.getLogger(__name__)

Event = dict[str, float | int | None]


def read_events(path: Path, containing: str = "", last_bytes: int | None = None) -> list[Event]:
    """Read the log events of a run, the oldest first; none where there is no file.

    Lines that are none of ours, as a kill or a disk leaves them, are left out. Where the whole file was asked for, the
    log says so.

    Args:
        path: of the file.
        containing: only the lines with this text in them are looked at, such as `"val/`.
        last_bytes: how much of the file's end to look at, > 0; None for all of it.

    Returns:
        Each with its whole number `step`, and otherwise numbers, NaN and infinity included, or None.
    """
    try:
        with open(path, "rb") as file:
            if last_bytes is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last_bytes))
            lines = [line for line in file.read().splitlines() if containing.encode() in line]
    except FileNotFoundError:
        return []
    events = [event for event in map(read_event, lines) if event is not None]
    damaged = len(lines) - len(events)
    if damaged and not containing and last_bytes is None:
        log.warning("%s: %d of %d lines are damaged and left out", path, damaged, len(lines))
    return events


def read_event(line: bytes) -> Event | None:
    """One line, or None if it is not a step with values that are null or numbers that fit a float."""
    try:
        event = json.loads(line)
        numbers = [value for value in event.values() if value is not None]
    except (ValueError, RecursionError, AttributeError):
        return None
    is_ours = all(type(number) is float or type(number) is int and abs(number) < 2**63 for number in numbers)
    return event if is_ours and type(event.get("step")) is int else None


def as_frame(rows: list[dict], index: str) -> Any:
    """Rows as a pandas frame by one of their keys, or as they are where there is no pandas."""
    try:
        import pandas as pd
    except ModuleNotFoundError:
        return rows
    return pd.DataFrame(rows, columns=None if rows else [index]).set_index(index)


class MetricsFile:
    """Writes `metrics.jsonl`.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "metrics.jsonl"

    def append(self, metrics: dict[str, float], step: int | None) -> None:
        """Append one line with its time, flushed.

        Raises:
            RunError: if it cannot be written.
        """
        line = json.dumps({"step": step, **metrics, "time": round(time.time(), 3)}) + "\n"
        try:
            with open(self.path, "ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise RunError(cannot_write(self.path, error)) from error

    def sync(self) -> int:
        """Make what was written so far survive a power cut; returns its size in bytes."""
        if not self.path.exists():
            return 0
        with open(self.path, "r+b") as file:  # Windows syncs no file that is open for reading only
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def truncate(self, size: int) -> None:
        """Drop what was logged after a checkpoint; the continued run logs it again."""
        present = self.path.stat().st_size if self.path.exists() else 0
        if size > present:
            log.warning(
                "%s has only %d of %d bytes: earlier metrics are lost, the model is not", self.path, present, size
            )
        elif present:
            os.truncate(self.path, size)
