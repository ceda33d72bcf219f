"""The run folder: what it holds, and who writes it. No torch: the start of a command is to be quick.

.hydra/ (the composed config), status.json, metrics.jsonl, result.json, checkpoints/ (last, previous, best), pictures/,
train.log (what was printed, and the traceback of a failure). They are the record of truth; W&B and others hold copies.
"""

import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from vae_lab.config.secrets import RedactSecrets, redact
from vae_lab.errors import Preempted, RunError
from vae_lab.runs.files import durable_open, locked, read_json, remove_leftovers, write_json

log = logging.getLogger(__name__)


class RunFolder:
    """The record of one run.

    Args:
        folder: the run folder; made if it does not exist.
    """

    def __init__(self, folder: str | Path):
        from lightning.pytorch.utilities import rank_zero_only

        self.folder = Path(folder)
        self.is_first = not rank_zero_only.rank

    @property
    def status(self) -> dict:
        """What `status.json` says; empty before the first start.

        Raises:
            RunError: if it is damaged.
        """
        path = self.folder / "status.json"
        status = read_json(path)
        times = status.get("times", [])
        if not isinstance(times, list) or not all(isinstance(start, dict) for start in times):
            raise RunError(f"{path} is damaged (times is not a list of objects): delete it to go on without it")
        return status

    @property
    def result(self) -> dict:
        """What `result.json` says; empty before the end."""
        return read_json(self.folder / "result.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder, and clear away what killed ones left in it.

        Raises:
            RunError: if another process works there, or the folder cannot be written.
        """
        if not self.is_first:  # the first process of the run holds the lock for all of them
            yield
            return
        with locked(self.folder / ".lock"):
            remove_leftovers(self.folder)
            for path in self.folder.glob(".lr_find_*.ckpt"):  # of a search for a learning rate that was killed
                path.unlink(missing_ok=True)
            yield

    def check_start(self, resumes: bool) -> None:
        """Refuse what could not be recorded at the end, and what would overwrite another run.

        Raises:
            RunError: if there is a run that did not fail at once, or a file of the record is damaged.
        """
        state, result = self.status.get("state"), self.result
        has_run = result or any((self.folder / "checkpoints").glob("*.ckpt"))
        if has_run and not resumes and self.is_first:
            raise RunError(
                f"{self.folder} already holds a run ({state}): continue it with resume={self.folder}, "
                "or choose another hydra.run.dir"
            )

    def check_start_again(self, saves: bool) -> None:
        """Refuse to begin a run again that is complete, or whose checkpoints are gone.

        Args:
            saves: whether the run saves checkpoints; the first one is older than its first metrics.

        Raises:
            RunError: naming what would be overwritten.
        """
        metrics = self.folder / "metrics.jsonl"
        has_metrics = saves and metrics.exists() and metrics.stat().st_size > 0
        if (self.result or self.status.get("state") == "completed" or has_metrics) and self.is_first:
            raise RunError(
                f"{self.folder / 'checkpoints'} has no checkpoint to continue from, and from the beginning the run's "
                "record would be overwritten; bring last.ckpt back, or start a new run in another hydra.run.dir"
            )

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep `status.json` while the run goes on, however it ends."""
        self._write_status("running")
        try:
            yield
        except Preempted as stop:
            self._end("preempted", f"signal {int(stop.code or 0) - 128}")
            if any((self.folder / "checkpoints").glob("*.ckpt")):
                log.warning("stopped by a signal; continue with: vae-lab resume=%s", self.folder)
            else:
                log.warning("stopped by a signal before its first step")
            raise
        except BaseException as error:
            logging.getLogger("train.log").error("failed", exc_info=error)
            self._end("failed", f"{type(error).__name__}: {error}")
            raise
        else:
            self._write_status("completed")

    def _end(self, state: str, reason: str) -> None:
        """Say how a run ended; where even that cannot be written, the reason itself must still be told."""
        try:
            self._write_status(state, reason=redact(reason))
        except RunError as error:
            log.error("%s", error)

    def _write_status(self, state: str, **reason: str) -> None:
        if not self.is_first:
            return
        now, before = datetime.now(UTC).isoformat(timespec="seconds"), self.status
        times, started = before.get("times", []), {"started": now, "command": command_line(), "commit": commit()}
        machine = {"host": platform.node(), "hardware": hardware()}
        times = [*times, started | machine] if state == "running" else [*times[:-1], {**times[-1], "ended": now}]
        images = {key: before[key] for key in ("images",) if key in before}
        content = {"state": state, "pid": os.getpid(), "times": times, "versions": versions(), **images, **reason}
        write_json(self.folder / "status.json", content)

    def record_images(self, fingerprint: str) -> None:
        """Add to `status.json` which images the run is of; two runs with the same can be compared."""
        if self.is_first:
            write_json(self.folder / "status.json", {**self.status, "images": fingerprint})

    @contextmanager
    def train_log(self) -> Iterator[None]:
        """Send log records to the terminal, short, and to `train.log`, with time and traceback."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stream = sys.stdout if Console().is_jupyter else sys.stderr  # which a notebook marks red
        console, file = logging.StreamHandler(stream), LogFile(self.folder / "train.log", encoding="utf-8")
        console.addFilter(lambda record: record.name != "train.log" and self.is_first)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        level = root.level
        root.setLevel(logging.INFO)
        for handler in (console, file):
            handler.addFilter(RedactSecrets())
            root.addHandler(handler)
        try:
            yield
        finally:
            root.setLevel(level)
            for handler in (console, file):
                root.removeHandler(handler)
                handler.close()

    def write_config(self, **files: DictConfig | ListConfig) -> None:
        """Write composed configs to `.hydra/NAME.yaml`, interpolations as they are, secrets replaced."""
        for name, config in files.items() if self.is_first else ():
            plain = OmegaConf.to_container(config)
            safe = redact(plain)
            with durable_open(self.folder / ".hydra" / f"{name}.yaml") as file:
                file.write(OmegaConf.to_yaml(config if safe == plain else OmegaConf.create(safe)).encode())

    def write_result(self, result: dict) -> None:
        """Write `result.json`, adding to what it holds; values of weights that were replaced since are dropped."""
        if self.is_first:
            before, places = self.result, [("last", result.get("steps")), *weights_of(result).values()]
            now = {name: step for name, step in places if step is not None}
            old = tuple(key for key, (name, step) in weights_of(before).items() if now.get(name, step) != step)
            kept = {key: value for key, value in before.items() if not key.startswith(old)}
            write_json(self.folder / "result.json", {**kept, **result})


def weights_of(result: dict) -> dict[str, tuple]:
    """By the beginning of a key in a result: the checkpoint of its weights, and the step that they were saved at."""
    best, tested = ("best", result.get("best_step")), (result.get("test/checkpoint"), result.get("test/step"))
    return {"test/": tested, "val/": best, "best_": best}


@contextmanager
def aside_if_unbegun(folder: str | Path) -> Iterator[None]:
    """Move a run that ends before its first step to `outputs/failed/`, where it does not pass for the latest one."""
    folder = Path(folder)
    try:
        yield
    except BaseException:
        if not any((folder / "checkpoints").glob("*.ckpt")) and not any(folder.glob("metrics.jsonl")):
            failed = folder.parent.parent / "failed"
            with suppress(OSError):  # then it stays where it is
                if any(folder.iterdir()):
                    failed.mkdir(exist_ok=True)
                    folder.rename(failed / f"{folder.parent.name}_{folder.name}")
                else:
                    folder.rmdir()
                folder.parent.rmdir()  # unless it holds other runs
                folder.parent.parent.rmdir()
        raise


def command_line() -> str:
    """What was typed to start this process, without secrets."""
    if Console().is_jupyter:
        return "a notebook"
    return redact(shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "vae-lab"), *sys.argv[1:]]))


@cache
def commit() -> str | None:
    """The git commit of the code, with `-dirty` where files differ from it; None where it lies in no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):  # there is no git, or it hangs
        return None
    return done.stdout.strip() or None


@cache
def versions() -> dict[str, str]:
    """Of what decides a run's numbers; torch's with the build, such as +cu130."""
    import torch

    names = ("vae_lab", "torchvision", "lightning", "hydra-core", "wandb")
    return {"python": platform.python_version(), "torch": torch.__version__} | {name: version(name) for name in names}


@cache
def hardware() -> dict[str, Any]:
    """What this machine is: its processor, cores, memory and GPUs. Of the GPUs the driver's files, which wake none."""
    from joblib import cpu_count  # knows of affinities and of a container's share; only here, it takes a while

    found: dict[str, list[str]] = {}
    for files, key in (("cpuinfo", "model name"), ("driver/nvidia/gpus/*/information", "Model")):
        with suppress(OSError):  # Linux has these files, others none
            texts = [path.read_text(errors="replace") for path in sorted(Path("/proc").glob(files))]
            found[key] = [named[1].strip() for text in texts if (named := re.search(rf"{key}\s*:(.*)", text))]
    cpu = (found.get("model name") or [platform.processor() or platform.machine()])[0]
    memory = round(psutil.virtual_memory().total / 2**30)
    return {"cpu": cpu, "cores": cpu_count(), "memory_gb": memory, "gpus": found.get("Model", [])}


class LogFile(logging.FileHandler):
    """A log file that, where it cannot be written, says so once instead of printing a traceback for every record."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        logging.getLogger().removeHandler(self)
        log.warning("cannot write %s any more: %s", self.baseFilename, sys.exc_info()[1])


MAX_BYTES = 100
_ALLOWED = re.compile(r"[^\W_][\w.,+=@ -]*")


def folder_name(name: object, otherwise: str, key: str = "run_name") -> str:
    """The part of a run folder's name that says what it is.

    Args:
        name: what the user called the run, or None.
        otherwise: what to call it then; group options in sub-folders bring slashes.
        key: under which the name was given, for messages.

    Raises:
        ValueError: if the name could lead out of its folder, or is not fit for a file system.
    """
    if name is None:
        return re.sub(r"[^\w.,+=@-]", "-", otherwise).lstrip(".-")
    text = str(name)
    if not _ALLOWED.fullmatch(text) or len(text.encode()) > MAX_BYTES:
        raise ValueError(
            f"{key} must begin with a letter or digit, go on with those, spaces and _.,+=@- only, "
            f"and have at most {MAX_BYTES} bytes, got {text[:200]!r}"
        )
    if redact(text) != text:
        raise ValueError(f"{key} holds a secret, and would be the name of a folder")
    return text


# A suffix for folder names: two runs that start in the same second must not share one.
OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
