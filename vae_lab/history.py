"""What a run has logged, read back from its `metrics.jsonl`."""

import json
import logging
import math
from pathlib import Path

from vae_lab.images import printable

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
