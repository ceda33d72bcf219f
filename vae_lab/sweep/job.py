"""One job of a sweep: what makes it the same job again, and how it goes, from the files that its run writes."""

import hashlib
import json
import logging
import math
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae_lab.config.defaults import changes, saved_settings, settings_of, written
from vae_lab.config.nested import Settings, leaves, resolved
from vae_lab.config.roles import HERE, is_identity
from vae_lab.config.saved import load_saved
from vae_lab.config.secrets import redact
from vae_lab.errors import RunError
from vae_lab.runs.files import cannot_write, locked, read_json, write_json
from vae_lab.runs.folder import folder_name
from vae_lab.runs.metrics_file import read_events
from vae_lab.runs.resume import LIMITS, has_limits_of
from vae_lab.runs.signals import SIGNALS

JOURNAL = "sweep.jsonl"  # in the sweep's folder: one JSON object for every start and end, lines are only ever added
OUTPUT = "output.log"  # in the job's folder: what it printed
MAX_TITLE = 80  # characters of a folder's name that say what the job is
log = logging.getLogger(__name__)


def identity(cfg: DictConfig) -> str:
    """Eight hexadecimal digits, the same for two configs that train the same model.

    The hash of the resolved config without what leaves the trained model as it is; 1 and 1.0 are the same number. Paths
    below `data_root` count as they are written, so that a moved data folder changes nothing.
    """
    plain: Any = OmegaConf.to_container(cfg)
    kept = {key: value for key, value in plain.items() if is_identity(key)} | {"data_root": HERE["data_root"]}
    settings = resolved(leaves(kept))
    if any(re.search(r"\$\{|\?\?\?", str(value)) for value in settings.values()):  # OmegaConf knows, but is slow
        settings = leaves(OmegaConf.to_container(OmegaConf.create(kept), resolve=True))
    content = {key: whole(value) for key, value in settings.items() if is_identity(key)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def whole(value: Any) -> Any:
    """A value, or a list of them, with whole numbers as such."""
    if isinstance(value, list):
        return list(map(whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def job_folder(
    overrides: list[str] | None = None, begun: Callable[[Path], dict] | None = None, *, _root_: DictConfig
) -> str:
    """The name of a job's folder in that of its sweep: the one that holds it already, else `OVERRIDES_IDENTITY`.

    Args:
        overrides: that say what the job is; None is all that it has.
        begun: `runs_in`, or one that remembers.
        _root_: its composed config, with Hydra's own node.
    """
    key, sweep = identity(_root_), Path(_root_.hydra.sweep.dir)
    shown = ",".join(o for o in overrides or _root_.hydra.overrides.task if is_identity(key_of(o)))
    name = folder_name(None, re.sub(r"[\s'\"\\]", "", short(shown))[:MAX_TITLE] or "defaults")
    if existing := next(sweep.glob(f"*_{key}"), None) or begun_before(_root_, (begun or runs_in)(sweep), name):
        return existing.name
    return f"{name}_{key}"


def runs_in(sweep: Path) -> dict[Path, Settings]:
    """The folders of runs in that of a sweep, each with the settings that it has."""
    found = {}
    for folder in (path.parent.parent for path in sweep.glob("*/.hydra/config.yaml")):
        with suppress(RunError, ValueError):  # another run's business
            found[folder] = saved_settings(folder, written(folder))
    return found


def begun_before(cfg: DictConfig, begun: dict[Path, Settings], name: str) -> Path | None:
    """The folder of a run whose config is the same experiment in other words.

    It has other keys, because `conf/` has changed since; or, with `sweep.longer`, other limits of training.

    Args:
        cfg: of the job.
        begun: see `runs_in`.
        name: with which the folder's name probably begins; one that does goes before others.
    """
    wanted = settings_of(cfg) if begun else {}
    others = LIMITS if cfg.sweep.longer else ()
    own = {key: value for key, value in wanted.items() if is_identity(key) and key not in others}
    if any("${" in str(value) for value in own.values()):
        return None  # what a variable of the environment was then, only the hash tells
    for folder in sorted(begun, key=lambda folder: (not folder.name.startswith(f"{name}_"), folder.name)):
        saved = begun[folder]
        if any(saved.get(key, value) != value and "${" not in str(saved[key]) for key, value in own.items()):
            continue  # as nearly all; what they lack does not count
        with suppress(RunError, ValueError):
            if not any(is_identity(key) and key not in others for key in changes(folder, wanted, cfg.hydra)):
                return folder
    return None


def short(text: str) -> str:
    """Text in which numbers of many decimals have four digits."""
    return re.sub(r"-?\d+\.\d{5,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", text)


def key_of(argument: str) -> str:
    """What an override sets; another argument is itself."""
    return argument.lstrip("+~").partition("=")[0]


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
        own = [o for o in overrides if is_identity(key_of(o)) and not o.startswith("+callbacks.pruning.")]
        self.distinctive = [o for o in own if o not in common]
        self.title = short(" ".join(self.distinctive or own)) or "defaults"
        self.config: Any = None  # a DictConfig once it is placed, as is the folder
        self.folder = Path()
        self.state, self.reason = "pending", ""
        self.value: float | None = None  # the best one of the monitored metric, of a completed job
        self.started = self.seconds = math.nan
        self.first_epoch: float | None = None
        self.before: dict = {}  # what `status.json` said when it was started
        self.printed = 0  # bytes in its output then

    def is_done(self) -> bool:
        """Whether the folder needs nothing more, so that the job is skipped; it fails if it was continued by hand."""
        if self.status.get("state") != "completed":
            return False
        if has_limits_of(self.config, load_saved(self.folder)):
            self.state, self.value = "completed", self.read("result").get("best_value")
            return True
        self.state = "failed"
        go_on = f"go on with resume_sweep={self.folder.parent} and these limits, or use another sweep.name"
        self.reason = f"its folder was continued to other limits of training; {go_on}"
        if self.config.sweep.longer:
            result, trainer = self.read("result"), self.config.trainer
            reached = {"max_epochs": result.get("epochs", 0), "max_steps": result.get("steps", 0)}
            passed = [key for key in reached if trainer[key] not in (None, -1) and trainer[key] < reached[key]]
            if not passed:
                self.state, self.reason = "pending", ""
                return False
            key = passed[0]
            self.reason = f"trainer.{key} must be >= {reached[key]}, where it is already, got {trainer[key]}"
        return True

    def read(self, name: str) -> dict:
        """What `status.json` or `result.json` says; empty where there is nothing that can be read."""
        with suppress(RunError):
            return read_json(self.folder / f"{name}.json")
        return {}

    @property
    def status(self) -> dict:
        """What `status.json` says."""
        return self.read("status")

    @property
    def monitor(self) -> str:
        """The metric that the job's checkpoints watch."""
        return OmegaConf.select(self.config, "callbacks.checkpoints.monitor") or "val/loss"

    def begin(self) -> None:
        """Note that its process is started."""
        self.state, self.reason, self.started = "running", "", time.monotonic()
        self.before, output = self.status, self.folder / OUTPUT
        self.printed = output.stat().st_size if output.exists() else 0

    def end(self, exit_code: int) -> None:
        """Note how its process ended (a signal that killed it is negative); mark a run that could not say so."""
        self.seconds = time.monotonic() - self.started
        said = {} if self.status == self.before else self.status  # of an earlier start
        number = -exit_code if -exit_code in SIGNALS else exit_code - 128  # of the signal that asked it to stop
        if said.get("state") == "completed":
            self.state, self.value = "completed", self.read("result").get("best_value")
        elif 0 < number < 32 and said.get("state") != "failed":
            self.state, self.reason = "preempted", said.get("reason") or f"signal {number}"
        elif exit_code < 0:
            self.state, self.reason = "failed", f"killed by {signal.Signals(-exit_code).name}"
        else:
            how = f"ended with exit code {exit_code}" if exit_code else "ended without a result"
            self.state, self.reason = "failed", self.last_words() or said.get("reason") or how
        was_complete = self.before.get("state") == "completed" and not said  # it has refused to go on, and stays
        if self.state != said.get("state") and (self.state == "failed" or said) and not was_complete:
            with suppress(RunError), locked(self.folder / ".lock"):  # unless another process has the folder
                write_json(self.folder / "status.json", {**self.status, "state": self.state, "reason": self.reason})

    def last_words(self) -> str:
        """The last error that it printed since it was started."""
        output = self.folder / OUTPUT
        printed = output.read_bytes()[self.printed :].decode(errors="replace") if output.exists() else ""
        said = [line.removeprefix("vae-lab: ") for line in printed.splitlines() if line.startswith("vae-lab: ")]
        return said[-1] if said else ""

    def progress(self) -> tuple[float | None, float | None, float]:
        """The epoch it is in, from 1, the monitored metric's last value, and the seconds left (or NaN)."""
        last: dict = {}
        for event in read_events(self.folder / "metrics.jsonl", last_bytes=8192):
            last |= event
        value, left = last.get(self.monitor), math.nan
        if "epoch" not in last:
            return None, value, left
        epoch = last["epoch"]
        self.first_epoch = epoch if self.first_epoch is None else self.first_epoch
        done, total = epoch - self.first_epoch, OmegaConf.select(self.config, "trainer.max_epochs")
        if done > 0 and total not in (None, -1):
            left = (time.monotonic() - self.started) / done * (total - epoch)
        return epoch, value, left


def read_journal(folder: Path) -> list[dict]:
    """All events of a sweep, in order; a line that a kill has torn is left out with a warning."""
    path, events = folder / JOURNAL, []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            event = json.loads(line)
            event["event"]
        except (ValueError, TypeError, KeyError):
            log.warning("%s: line %d is torn, going on without it", path, number)
        else:
            events.append(event)
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
