"""`sweep.jsonl`: one JSON object for every event of a sweep, in order. Lines are only ever added."""

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vae_lab.config.secrets import redact
from vae_lab.errors import RunError
from vae_lab.runs.files import cannot_write

JOURNAL = "sweep.jsonl"
log = logging.getLogger(__name__)


def read_journal(folder: Path) -> list[dict]:
    """All events; a line that a kill has torn is left out with a warning."""
    path, events = folder / JOURNAL, []
    if not path.exists():
        return events
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            events.append(event)
        else:
            log.warning("%s: line %d is torn, going on without it", path, number)
    return events


def append_event(sweep: Path, event: str, **fields: Any) -> None:
    """Add one event with its time to the journal of a sweep's folder; secrets are replaced.

    Raises:
        RunError: if it cannot be written.
    """
    path = sweep / JOURNAL
    line = json.dumps(redact({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields}))
    try:
        with open(path, "ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # after a torn line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error
