"""The runs below some folders, as plain values: what each was set to, how far it is and what it measured.

A folder is a run if it holds `status.json` or `.hydra/config.yaml`; nothing is looked for inside a run. Whatever stands
in the files may be a stranger's, or half written: a run that cannot be read is a failed one, with the reason.
"""

import json
import math
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vae_lab.config.saved import MAX_BYTES, check_yaml, saved_config
from vae_lab.errors import RunError
from vae_lab.runs.files import is_alive, read_json
from vae_lab.runs.resume import leaves
from vae_lab.sweep.job import JOURNAL

STATES = ("completed", "running", "preempted", "interrupted", "failed")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built
QUIET_SECONDS = 600  # after which a run that should be running is said to be silent
TAIL = 4096  # bytes at the end of metrics.jsonl that say how far a run is


@dataclass
class Entry:
    """One run.

    Attributes:
        name: of its folder, or of the W&B run.
        source: the folder on the command line below which it was found, or the W&B project.
        location: its folder, or its address.
        state: one of `STATES`.
        reason: why it is not completed; empty if it is.
        settings: every leaf of the config by its dotted key, interpolations as they are written.
        metrics: the numbers of `result.json`; of an unfinished run the last validation. In the units of the README.
        history: of every `val/` metric, (step, value) in order.
        epoch: that it is in or ended with, from 1, or None.
        folder: where its files are; None for an online run.
    """

    name: str
    source: str
    location: str
    state: str
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    epoch: int | None = None
    folder: Path | None = None

    @property
    def seed(self) -> Any:
        """The seed, or None where there is none."""
        return self.settings.get("seed")


def find_runs(folders: list[Path]) -> tuple[list[Entry], list[str]]:
    """Read every run below some folders, each once.

    Returns:
        The runs in the order of their paths, and notes on sweeps that are not at their end.

    Raises:
        RunError: if a folder does not exist, or holds no run.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    sweeps: list[Path] = []
    for top in folders:
        if not top.is_dir():
            raise RunError(f"{top} is not a folder")
        runs, here = run_folders(top)
        if not runs and not here:
            raise RunError(f"{top} holds no run: there is no status.json and no .hydra/config.yaml below it")
        for run in runs:
            found.setdefault(run.resolve(), (top, run))
        sweeps += here
    names = short_names([top for top, _ in found.values()])
    entries = [read_run(run, names[top]) for top, run in found.values()]
    return entries, list(dict.fromkeys(note for sweep in sweeps if (note := at_work(sweep, entries))))


def run_folders(top: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at and below a folder, and the folders of sweeps; links are not followed."""
    runs, sweeps = [], []
    for parent, folders, files in os.walk(top):
        here = Path(parent)
        if "status.json" in files or (".hydra" in folders and saved_config(here).is_file()):
            runs.append(here)
            folders.clear()
        elif JOURNAL in files:
            sweeps.append(here)
        folders.sort()
    return runs, sweeps


def short_names(tops: list[Path]) -> dict[Path, str]:
    """Folders on the command line by their own name, or by their whole path where two share one."""
    own = {top: top.resolve().name for top in tops}
    return {top: name if list(own.values()).count(name) == 1 else str(top) for top, name in own.items()}


def at_work(sweep: Path, entries: list[Entry]) -> str:
    """That a sweep has runs that are not at their end, so that other jobs may not have started; else empty."""
    runs = [entry for entry in entries if entry.folder and entry.folder.resolve().is_relative_to(sweep.resolve())]
    if all(run.state in ("completed", "failed") for run in runs):
        return ""
    return f"The sweep {visible(sweep.name)} is not at its end: jobs that have not started are not counted."


def read_run(folder: Path, source: str) -> Entry:
    """Read one run folder."""
    name, source, location = map(visible, (folder.resolve().name, source, str(folder)))
    entry = Entry(name, source, location, "failed", folder=folder)
    try:
        status = read_json(folder / "status.json")
        entry.state, entry.reason = state_of(folder, status)
        entry.settings = read_settings(folder)
        entry.epoch, entry.history = read_metrics(folder / "metrics.jsonl")
        last = {key: points[-1][1] for key, points in entry.history.items()}
        entry.metrics = numbers(read_json(folder / "result.json")) if entry.state == "completed" else last
    except (RunError, ValueError, OSError) as error:
        entry.state, entry.reason, entry.metrics = "failed", str(error), {}
    entry.reason = visible(" ".join(entry.reason.split()))
    return entry


def state_of(folder: Path, status: dict) -> tuple[str, str]:
    """The state and its reason; a run that says it is running may have been killed since."""
    state, reason = str(status.get("state", "interrupted")), str(status.get("reason", ""))
    if state not in STATES:
        return "failed", f"its status.json says {state!r}"
    if not status:
        return "interrupted", "there is no status.json"
    if state != "running":
        return state, "" if state == "completed" else reason
    owner = read_text(folder / ".lock").split()  # process PID on HOST
    if owner[1:2] and owner[1].isdigit() and owner[3:] == [socket.gethostname()] and not is_alive(int(owner[1])):
        return "interrupted", f"process {owner[1]} has ended without a word"
    quiet = time.time() - max((p.stat().st_mtime for p in folder.glob("*.json*")), default=time.time())
    return "running", f"no sign of it for {quiet / 3600:.1f} hours" if quiet > QUIET_SECONDS else ""


def read_text(path: Path) -> str:
    """The beginning of a small file; empty where there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read(200)
    except OSError:
        return ""


def read_settings(folder: Path) -> dict[str, Any]:
    """The leaves of the saved config; empty where a run ended before it was written.

    Raises:
        RunError: if it is damaged.
        ValueError: if it holds more than plain settings.
    """
    path = saved_config(folder)
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise RunError(f"{path} is not a config: it has more than {MAX_BYTES:,} bytes")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        check_yaml(path, text, LOADER)
        content = yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is not a config: it holds no keys")
    return visible(leaves(content))


def visible(value: Any) -> Any:
    """A copy of nested dicts, lists and text without what a terminal would obey instead of showing it.

    Control characters, and those that change the direction of writing, become their escapes: a stranger's text must not
    rewrite the reader's screen.
    """
    if isinstance(value, dict):
        return {visible(key): visible(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [visible(child) for child in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in value)


def read_metrics(path: Path) -> tuple[int | None, dict[str, list[tuple[int, float]]]]:
    """The last epoch, from 1, and every validation of `metrics.jsonl`; torn lines are left out."""
    if not path.is_file():
        return None, {}
    epoch, history = None, {}
    content = path.read_bytes()
    for line in content.splitlines():
        if b'"val/' in line and (row := parse(line)):
            step = row.get("step")
            for key, value in numbers(row).items():
                if key.startswith("val/") and isinstance(step, int):
                    history.setdefault(key, {})[step] = value  # a step that was repeated counts once, the last time
    for line in content[-TAIL:].splitlines():
        if isinstance(epoch_here := parse(line).get("epoch"), int):
            epoch = epoch_here + 1
    return epoch, {key: sorted(points.items()) for key, points in history.items()}


def parse(line: bytes) -> dict:
    """One line of JSON; empty where it is torn or no object."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def numbers(content: dict) -> dict[str, float]:
    """The numbers of a JSON object, NaN included; null, which some write for it, is left out."""
    return {
        visible(str(key)): float(value)
        for key, value in content.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 or is_odd(value)
    }


def is_odd(value: object) -> bool:
    """Whether a value is a float that is no number."""
    return isinstance(value, float) and not math.isfinite(value)
