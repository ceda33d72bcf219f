"""`vae-lab-ls`: the runs and sweeps below some folders, for a reader or for a shell; and how they are removed.

What was read of a run that has ended is kept in `.vae-lab-ls.json` in the folder that is listed, by the times of its
`status.json` and `result.json`. That file may be deleted at any time. Nothing here imports torch.
"""

import json
import math
import os
import re
import shutil
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from vae_lab.config.arguments import read_arguments
from vae_lab.errors import RunError
from vae_lab.metrics.catalogue import find
from vae_lab.runs.files import durable_open, locked, read_json, write_json
from vae_lab.runs.metrics_file import read_events
from vae_lab.runs.states import STATES, run_folders, state_of

USAGE = """vae-lab-ls: runs and sweeps, the newest last; those of a sweep where only that is named.

  vae-lab-ls [DIR...] [key=value]    below these folders; without one below outputs

  state=any           print the folders of the runs in a state, one a line:
                      completed, running, preempted, interrupted, failed
  last=false          print the folder of the run that was started last
  best=KEY            print the folder of the completed run that is best in a metric of result.json, such as val/elbo
  remove=false        delete the named runs and sweeps, or with the settings above those runs, after showing them
  yes=false           do not ask before

Settings may also be written --state failed, --last. Example: vae-lab eval "$(vae-lab ls --best val/elbo)" """
DEFAULTS = {"state": "any", "last": False, "best": None, "remove": False, "yes": False}
CACHE = ".vae-lab-ls.json"
UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
# How a config says which metric its checkpoints watch: parsing the YAML of every run would take most of the time.
MONITOR = re.compile(r"^  checkpoints:\n(?:    .*\n)*?    monitor: ([\w/]+)$", re.MULTILINE)


class Row(NamedTuple):
    """What is known of a run.

    Attributes:
        state: see `vae_lab.runs.states`.
        started: when it was started last, in seconds since 1970; 0 where no file says.
        seconds: that it took, over all its starts.
        size: of its files, in bytes.
        metric: that its checkpoints watch.
        best: the best value of that metric so far, None where there is none.
        result: the finite numbers in `result.json`.
    """

    state: str
    started: float
    seconds: float
    size: int
    metric: str
    best: float | None
    result: dict[str, float]


def list_runs(arguments: list[str]) -> None:
    """List, choose or remove what the command line names.

    Args:
        arguments: folders and settings; see `USAGE`.

    Raises:
        ValueError: if a setting is wrong.
        RunError: if a folder does not exist or no run is found, or one that is to be removed is at work.
    """
    named, settings = read_arguments(arguments, DEFAULTS, USAGE, {"state": ("any", *STATES)})
    if (key := settings["best"]) and find(key).better is None:
        raise ValueError(f"best must be a metric of which one side is better, such as val/elbo, got {key!r}")
    folders = named or [Path("outputs")]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise RunError(f"{missing[0]} is not a folder; name one that holds runs")
    rows, sweeps = dict[Path, Row](), list[Path]()
    for folder in folders:
        found, below = read_rows(folder)
        rows |= found
        sweeps += below
    rows = dict(sorted(rows.items(), key=lambda item: item[1].started))
    chosen = list(rows)
    if settings["state"] != "any":
        chosen = [run for run in chosen if rows[run].state == settings["state"]]
    if key:
        is_high = find(key).better == "higher"
        chosen = [run for run in chosen if rows[run].state == "completed" and key in rows[run].result]
        chosen = sorted(chosen, key=lambda run: rows[run].result[key] * (1 if is_high else -1))[-1:]
    if settings["last"]:
        chosen = chosen[-1:]
    is_choice = settings["state"] != "any" or key or settings["last"]
    if settings["remove"]:
        wrong = [folder for folder in named if folder not in (*rows, *sweeps) or folder.is_symlink()]
        if not is_choice and (wrong or not named):
            raise ValueError(
                f"remove needs the folders of runs or sweeps, or state=, last or best=, which choose some below "
                f"{wrong[0] if wrong else folders[0]}"
            )
        remove(chosen if is_choice else named, rows, is_agreed=settings["yes"])
    elif not is_choice:
        print_rows(rows, [sweep for sweep in sweeps if sweep not in named])
    elif chosen:
        print(*chosen, sep="\n")
    elif settings["state"] == "any":
        raise RunError(f"no completed run below {folders[0]} has {key}" if key else f"{folders[0]} holds no run")


def read_rows(top: Path) -> tuple[dict[Path, Row], list[Path]]:
    """The runs at and below a folder, from its cache where they have ended, and the folders of sweeps."""
    runs, sweeps = run_folders(top)
    cache, kept = top / CACHE, dict[str, list]()
    before = {}
    with suppress(RunError):  # a damaged one is made again
        before = read_json(cache)
    rows = {}
    for run in runs:
        key = str(run).removeprefix(str(top))  # a hundred times as fast as os.path.relpath
        signature = [modified(f"{run}/status.json"), modified(f"{run}/result.json")]
        known: Any = before.get(key)
        if is_known(known, signature):
            rows[run] = Row(*known[1])
        else:
            rows[run], known = read_row(run), None
        if rows[run].state not in ("running", "interrupted"):
            kept[key] = known or [signature, rows[run]]
    if kept != before and top not in runs:
        with suppress(RunError), durable_open(cache) as file:  # a folder of somebody else's is listed all the same
            file.write(json.dumps(kept).encode())
    return rows, sweeps


def modified(path: str) -> int:
    """When a file was changed last, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def is_known(entry: Any, signature: list[int]) -> bool:
    """Whether an entry of the cache is a row, and that of these files."""
    try:
        then, (state, started, seconds, size, metric, best, result) = entry
        numbers = [started, seconds, size, *([] if best is None else [best]), *result.values()]
        return (
            then == signature
            and state in STATES
            and type(metric) is str
            and all(type(number) in (int, float) for number in numbers)
        )
    except (TypeError, ValueError, AttributeError):
        return False


def read_row(folder: Path) -> Row:
    """Read what the files of a run say."""
    state, started, seconds, result, text = "failed", 0.0, 0.0, {}, ""
    with suppress(RunError, OSError):
        status = read_json(folder / "status.json")
        state, _ = state_of(folder, status)
        for start in status.get("times") or ():
            with suppress(KeyError, TypeError, ValueError):  # how a killed start ended is not known
                started = datetime.fromisoformat(start["started"]).timestamp()
                ended = datetime.fromisoformat(start["ended"]).timestamp() if state != "running" else time.time()
                seconds += ended - started
        result = {key: number for key, number in read_json(folder / "result.json").items() if is_finite(number)}
        text = (folder / ".hydra" / "config.yaml").read_text(errors="replace")
    monitor = MONITOR.search(text)
    metric = monitor[1] if monitor else "val/loss"
    best = result.get("best_value") if state == "completed" else None
    if best is None:
        events = read_events(folder / "metrics.jsonl", f'"{metric}"')
        values = [value for event in events if is_finite(value := event.get(metric))]
        best = better_of(metric)(values, default=None)
    size, seen = 0, set()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                facts = os.lstat(os.path.join(parent, name))
                size += 0 if facts.st_ino in seen else facts.st_size  # checkpoints share their bytes
                seen.add(facts.st_ino)
    return Row(state, started, seconds, size, metric, best, result)


def is_finite(value: Any) -> bool:
    """Whether it is a number, and neither NaN nor infinite."""
    return type(value) in (int, float) and math.isfinite(value)


def better_of(metric: str):
    """`max` or `min`, whichever finds the best value of a metric."""
    return max if find(metric).better == "higher" else min


def print_rows(rows: dict[Path, Row], sweeps: list[Path]) -> None:
    """Print a line for each run that is in no sweep, and for each sweep one that sums up its jobs; the newest last."""
    jobs: dict[Path, list[Row]] = {sweep: [] for sweep in sweeps}
    lines, now = [], time.time()
    for run, row in rows.items():
        if run.parent in jobs:
            jobs[run.parent].append(row)
        else:
            lines.append((row.started, run, row.state, row))
    for sweep, of_sweep in jobs.items():
        counts = Counter(row.state for row in of_sweep)
        state = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "nothing yet"
        started = max((row.started for row in of_sweep), default=0.0)
        metric = of_sweep[0].metric if of_sweep else ""
        best = better_of(metric)((row.best for row in of_sweep if row.best is not None), default=None)
        size, seconds = sum(row.size for row in of_sweep), sum(row.seconds for row in of_sweep)
        lines.append((started, sweep, state, Row(state, started, seconds, size, metric, best, {})))
    table = [("state", "started", "took", "size", "best", "", "folder")]
    for started, folder, state, row in sorted(lines, key=lambda line: line[:2]):
        age = f"{short_time(now - started)} ago" if started else ""
        best = ("", "") if row.best is None else (f"{row.best:.4g}", row.metric)
        name = str(folder) if str(folder).isprintable() else ascii(str(folder))  # a terminal obeys control characters
        table.append((state, age, short_time(row.seconds), f"{row.size / 1e6:.1f} MB", *best, name))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        aligned = (
            cell.ljust(width) if place in (0, 5) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells[:-1], widths, strict=False))
        )
        print("  ".join((*aligned, cells[-1])))


def short_time(seconds: float) -> str:
    """Such as 3 d, 2 h, 15 min, 8 s."""
    for length, unit in UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def remove(folders: list[Path], rows: dict[Path, Row], is_agreed: bool) -> None:
    """Delete runs and whole sweeps, after they were shown; nothing if one of them is at work.

    Raises:
        RunError: naming what is at work, or cannot be removed.
        ValueError: if nobody is there to be asked.
    """
    if not folders:
        print("nothing to remove")
        return
    folders = [folder for folder in dict.fromkeys(folders) if not set(folder.parents) & set(folders)]
    own = {folder: [run for run in rows if run == folder or folder in run.parents] for folder in folders}
    print_rows({run: rows[run] for runs in own.values() for run in runs}, [f for f in folders if f not in rows])
    if running := [run for runs in own.values() for run in runs if rows[run].state == "running"]:
        raise RunError(f"{running[0]} is running; stop it first, nothing was removed")
    if not is_agreed:
        if not sys.stdin.isatty():
            raise ValueError("remove asks first, and nobody is there to answer: add --yes")
        if input(f"remove {len(folders)} of these for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
    with ExitStack() as locks:  # all of them before the first is touched
        for place in dict.fromkeys(path for folder, runs in own.items() for path in (folder, *runs)):
            locks.enter_context(locked(place / ".lock"))
        for runs in own.values():
            for run in runs:  # a removal that is interrupted must not leave what passes for a whole run
                write_json(run / "status.json", {"state": "failed", "reason": "removed in part; remove it again"})
                for path in run.iterdir():
                    if path.name not in ("status.json", ".lock"):
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for folder in folders:  # Windows removes no lock that is held
        shutil.rmtree(folder)
    print(f"removed {len(folders)}")
