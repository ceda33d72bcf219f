"""The runs below some folders, as plain values: what each was set to, how far it is and what it measured.

A folder is a run if it holds `status.json` or `.hydra/config.yaml`; nothing is looked for inside a run. Whatever stands
in the files may be a stranger's, or half written: a run that cannot be read is a failed one, with the reason.
"""

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from vae_lab.config.defaults import complete, defaults_of
from vae_lab.config.nested import ABSENT, leaves, resolved
from vae_lab.config.saved import read_plain, saved_config
from vae_lab.errors import RunError, printable
from vae_lab.runs.files import read_json, read_values
from vae_lab.runs.metrics_file import read_events
from vae_lab.runs.states import SWEEP, run_folders, state_of

JOURNAL = "sweep.jsonl"  # in which a sweep says which job is in which folder
LOGGED = ("val/", "train/", "step", "epoch", "time")  # what is read of log events


@dataclass
class History:
    """What a run logged for each epoch: each metric, the epochs done and the seconds since the start, by step."""

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    epochs: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def last(self) -> dict[str, float]:
        """The last value of each metric of the validation."""
        return {key: points[max(points)] for key, points in self.values.items() if key.startswith("val/")}


@dataclass
class Entry:
    """One run."""

    name: str  # of its folder, or of the W&B run
    source: str  # the folder on the command line below which it was found, or the W&B project
    location: str  # its folder, or its address
    state: str  # one of `vae_lab.runs.states`
    reason: str = ""  # why it is not completed, or what it warned of
    settings: dict[str, Any] = field(default_factory=dict)  # leaves of the config by dotted key
    choices: dict[str, str] = field(default_factory=dict)  # the option of every group; empty where no file says
    metrics: dict[str, float] = field(default_factory=dict)  # of result.json; unfinished: of the last validation
    history: History = field(default_factory=History)
    epoch: int | None = None  # that it is in or ended with, from 1
    folder: Path | None = None  # where its files are; None for an online run
    images: str = ""  # the fingerprint of its images; empty where it has not read them
    seconds: float | None = None  # from start to end, of all its starts
    commit: str = ""  # of the code of its last start
    command: str = ""  # of its first start
    machine: str = ""  # of its last start: host and hardware
    job: int | None = None  # its number, where the journal of a search says it

    @property
    def trial(self) -> int | None:
        """Its number in a search; with a pruner the config says it too."""
        number = self.settings.get("callbacks.pruning.trial") if self.job is None else self.job
        return number if type(number) is int else None

    @property
    def seed(self) -> Any:
        """The seed, or None where there is none."""
        return self.settings.get("seed")

    @property
    def is_done(self) -> bool:
        """Whether it is completed."""
        return self.state == "completed"

    def value(self, metric: str) -> float:
        """A metric, NaN where it was not measured."""
        return self.metrics.get(metric, math.nan)


def find_runs(folders: list[Path]) -> tuple[list[Entry], list[str]]:
    """Read every run below some folders, each once.

    Args:
        folders: each a run, a sweep, or a folder of such.

    Returns:
        The runs in the order of their paths, and notes on what they lack.

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
    own = {top: top.resolve().name for top, _ in found.values()}
    names = {top: name if list(own.values()).count(name) == 1 else str(top) for top, name in own.items()}
    trials = {folder: number for sweep in dict.fromkeys(sweeps) for folder, number in trials_of(sweep).items()}
    entries = [read_run(run, names[top]) for top, run in found.values()]
    for path, entry in zip(found, entries, strict=True):
        entry.job = trials.get(path)
    going = [run for run, entry in zip(found, entries, strict=True) if entry.state not in ("completed", "failed")]
    notes = [
        f"The sweep {visible(sweep.name)} is not at its end: jobs that have not started are not counted."
        for sweep in dict.fromkeys(map(Path.resolve, sweeps))
        if any(run.is_relative_to(sweep) for run in going)
    ]
    steps = ([entry.metrics.get(key) for key in ("test/step", "best_step")] for entry in entries)
    mixed = [
        entry.name
        for entry, (tested, best) in zip(entries, steps, strict=True)
        if None not in (tested, best) and tested != best
    ]
    if mixed:
        notes.append(
            f"test/ is of the last weights, val/ of the best ones: {', '.join(mixed[:3])}{', ...' * (len(mixed) > 3)}."
        )
    fill_in(entries)
    return entries, notes


def trials_of(sweep: Path) -> dict[Path, int]:
    """The number of the trial in each folder of a search; none of another sweep."""
    path = sweep / JOURNAL
    if "OptunaSweeper" not in (sweep / SWEEP).read_text(errors="replace") or not path.is_file():
        return {}
    found = {}
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, TypeError, KeyError):  # of a line that a kill has torn
            event = json.loads(line)
            if type(event["job"]) is int and event["job"] >= 0:
                found[sweep.resolve() / str(event["folder"])] = event["job"]
    return found


def read_run(folder: Path, source: str) -> Entry:
    """Read one run folder."""
    name, source, location = map(visible, (folder.resolve().name, source, str(folder)))
    entry = Entry(name, source, location, "failed", folder=folder)
    try:
        status = read_json(folder / "status.json")
        entry.state, entry.reason = state_of(folder, status)
        entry.images = visible(str(status.get("images", "")))
        starts = [start for start in status.get("times") or () if isinstance(start, dict)] or [{}]
        entry.command = visible(str(starts[0].get("command") or ""))
        entry.commit = visible(str(starts[-1].get("commit") or ""))
        if isinstance(has := starts[-1].get("hardware"), dict):
            gpus = has.get("gpus")
            parts = [f"{has.get('cores')} x {has.get('cpu')}", f"{has.get('memory_gb')} GB"]
            parts += map(str, gpus if isinstance(gpus, list) else ())
            entry.machine = visible(f"{starts[-1].get('host')}: {', '.join(parts)}")
        with suppress(KeyError, ValueError, TypeError):  # the end of a start is not known
            times = [[datetime.fromisoformat(start[key]) for key in ("started", "ended")] for start in starts]
            entry.seconds = sum((end - begin).total_seconds() for begin, end in times)
        path = saved_config(folder)
        if path.is_file():  # else it ended before that was written
            entry.settings = settings_of(read_plain(path))
        path = path.with_name("choices.yaml")
        entry.choices = own_choices(read_plain(path)) if path.is_file() else {}
        path = folder / "metrics.jsonl"
        entry.epoch, entry.history = history_of(read_events(path, '"step"') if path.is_file() else [])
        result = read_json(folder / "result.json") if entry.is_done else {}
        entry.metrics = numbers(result) if entry.is_done else entry.history.last
        if isinstance(told := result.get("warnings"), list):
            entry.reason = "; ".join(map(str, told))
    except (RunError, ValueError, OSError) as error:
        entry.state, entry.reason, entry.metrics = "failed", str(error), {}
    entry.reason = visible(" ".join(entry.reason.split()))
    return entry


def image_values(entry: Entry) -> dict[str, np.ndarray]:
    """Metrics of each test image, `test/KEY` -> (N,), where they are of the weights that the test metrics are of."""
    found = read_values(entry.folder / "images_test.npz") if entry.folder else {}
    if found.get("step", math.nan) != entry.value("test/step"):
        return {}
    return {f"test/{key}": v for key, v in found.items() if v.ndim == 1 and v.dtype.kind == "f" and len(v) > 1}


def settings_of(config: dict) -> dict[str, Any]:
    """The leaves of a config with references followed, as W&B is told them; sections without any are left out."""
    return visible(resolved({key: value for key, value in leaves(config).items() if value != {}}))


def own_choices(chosen: dict) -> dict[str, str]:
    """Those of Hydra's choices that make the model, as text."""
    return visible({str(k).replace("/", "."): str(v) for k, v in chosen.items() if "hydra/" not in str(k)})


def visible(value: Any) -> Any:
    """A copy of nested dicts, lists and text in which what a terminal would obey is an escape that it shows.

    That are control characters, and those that change the direction of writing: a stranger's text must not rewrite the
    reader's screen.
    """
    if isinstance(value, dict):
        return {visible(key): visible(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [visible(child) for child in value]
    return printable(value) if isinstance(value, str) else value


def history_of(rows: Iterable[dict]) -> tuple[int | None, History]:
    """The last epoch, from 1, and the history in log events; a step that was repeated counts once, the last time."""
    epoch, begun, history = None, None, History()
    for row in rows:
        found = numbers({key: value for key, value in row.items() if key.startswith(LOGGED)})
        step, here, now = (found.get(key, math.nan) for key in ("step", "epoch", "time"))
        begun = now if begun is None and math.isfinite(now) else begun
        if not math.isfinite(step):
            continue
        epoch = int(here) if math.isfinite(here) else epoch
        for key, value in found.items():
            if key.startswith(("val/", "train/")):
                history.values.setdefault(key, {})[int(step)] = value
                history.epochs[int(step)] = here
                history.seconds[int(step)] = now - begun if begun is not None else math.nan
    return epoch, history


def numbers(content: dict) -> dict[str, float]:
    """The numbers of a JSON object, NaN included; null, which some write for it, is left out."""
    return {
        visible(str(key)): float(value)
        for key, value in content.items()
        if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300)
    }


def fill_in(entries: list[Entry]) -> None:
    """Give runs the keys that others with the same option of a group have, at their defaults.

    So a key that is new in `conf/` splits no group.
    """

    found: dict[tuple[str, str], set[str]] = {}
    for entry in entries:
        for key in entry.settings:
            part = max((part for part in entry.choices if key.startswith(f"{part}.")), key=len, default="")
            found.setdefault((part, entry.choices.get(part, "")), set()).add(key)
    for entry in entries:
        own = found.keys() & {("", ""), *entry.choices.items()}
        lacking = set().union(*(found[option] for option in own)) - entry.settings.keys()
        if lacking and entry.choices and entry.folder:
            known = defaults_of(entry.folder)
            filled = complete(entry.settings, {key: known.get(key, ABSENT) for key in sorted(lacking)})
            entry.settings = visible(resolved(filled))
