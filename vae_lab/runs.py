"""The run folder: what it holds, who writes it, and how to get a model back out of it.

    .hydra/           the composed config, as Hydra writes it
    status.json       state, reason, times, pid, versions
    metrics.jsonl     one JSON object for each log event: step, epoch, time and metrics
    result.json       final values
    checkpoints/      last.ckpt, best.ckpt
    pictures/         PNG files and training.gif
    train.log         what was printed, and the traceback of a failure

The files are the record of truth; W&B and TensorBoard hold copies.
"""

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from vae_lab.checkpoints import load_checkpoint
from vae_lab.durable import durable_open
from vae_lab.errors import Preempted, RunError
from vae_lab.secrets import RedactSecrets

log = logging.getLogger(__name__)


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file whole or not at all."""
    with durable_open(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict:
    """Read a JSON file of a run folder; a missing one is empty.

    Raises:
        RunError: if the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from error


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    packages = ("vae_lab", "torchvision", "lightning", "hydra-core", "wandb")
    own = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, such as +cu130
    return own | {package: version(package) for package in packages}


class Run:
    """The record of one run.

    Args:
        folder: the run folder; made if it does not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def status(self) -> dict:
        """What `status.json` says; empty before the first start."""
        return read_json(self.folder / "status.json")

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, if there is one."""
        path = self.folder / "checkpoints" / "last.ckpt"
        return path if path.exists() else None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep `status.json` and `train.log` while the run goes on, however it ends."""
        handlers = self._start_logging()
        self._write_status("running")
        try:
            yield
        except Preempted as stop:
            self._write_status("preempted", reason=f"signal {stop.code - 128}")
            log.warning("stopped by a signal; continue with: vae-lab resume=%s", self.folder)
            raise
        except BaseException as error:
            logging.getLogger("train.log").error("failed", exc_info=error)
            self._write_status("failed", reason=f"{type(error).__name__}: {error}")
            raise
        else:
            self._write_status("completed")
        finally:
            for handler in handlers:
                logging.getLogger().removeHandler(handler)
                handler.close()

    @rank_zero_only
    def _write_status(self, state: str, **fields) -> None:
        times = self.status.get("times", [])
        times = [*times, {"started": now()}] if state == "running" else [*times[:-1], {**times[-1], "ended": now()}]
        content = {"state": state, "pid": os.getpid(), "times": times, "versions": versions(), **fields}
        write_json(self.folder / "status.json", content)

    def _start_logging(self) -> list[logging.Handler]:
        """Send log records to the terminal, short, and to `train.log`, with time and traceback."""
        self.folder.mkdir(parents=True, exist_ok=True)
        console, file = logging.StreamHandler(sys.stderr), logging.FileHandler(self.folder / "train.log")
        console.addFilter(lambda record: record.name != "train.log" and rank_zero_only.rank == 0)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        root.setLevel(logging.INFO)
        for handler in (console, file):
            handler.addFilter(RedactSecrets())
            root.addHandler(handler)
        return [console, file]

    @rank_zero_only
    def write_config(self, cfg: DictConfig) -> None:
        """Keep what a resume changed, such as the number of epochs, for the next one."""
        saved = cfg.copy()
        saved.resume = None
        with durable_open(self.folder / ".hydra" / "config.yaml") as file:
            file.write(OmegaConf.to_yaml(saved).encode())

    @rank_zero_only
    def write_result(self, result: dict) -> None:
        """Write `result.json`, adding to what it holds."""
        path = self.folder / "result.json"
        write_json(path, {**read_json(path), **result})


class MetricsFile(Logger):
    """Appends every log event to `metrics.jsonl`, flushed.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args, **kwargs) -> None:
        """The config is in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step, **metrics, "time": round(time.time(), 3)}) + "\n")

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @rank_zero_only
    def truncate(self, size: int) -> None:
        """Drop what was logged after a checkpoint; the continued run logs it again."""
        if size > self.size():
            raise RunError(f"{self.path} is shorter than when the checkpoint was saved ({self.size()} < {size} bytes)")
        if self.path.exists():
            os.truncate(self.path, size)


class TrainedRun(NamedTuple):
    """A trained model with the config it was built from."""

    vae: "vae_lab.vae.VAE"  # noqa: F821
    cfg: DictConfig


def load_config(run_dir: str | Path) -> DictConfig:
    """The config a run was started with.

    Raises:
        RunError: if the folder is not a run folder.
    """
    path = Path(run_dir) / ".hydra" / "config.yaml"
    if not path.is_file():
        raise RunError(f"{run_dir} is not a run folder: there is no {path}")
    cfg = OmegaConf.load(path)
    cfg.run_dir = str(run_dir)  # where it is now; it may have been moved, and there is no Hydra to ask
    return cfg


def load_run(run_dir: str | Path, checkpoint: str = "best") -> TrainedRun:
    """Load a trained model and its config.

    Args:
        run_dir: the run folder.
        checkpoint: `best` or `last`.

    Returns:
        The model on the CPU, in evaluation mode and without gradients, and its config.

    Raises:
        RunError: if the folder or the checkpoint is missing or damaged.
        ValueError: if the config names a class that is not trusted.
    """
    from vae_lab.build import build_vae  # build builds on this module

    cfg = load_config(run_dir)
    vae = build_vae(cfg)
    state = load_checkpoint(Path(run_dir) / "checkpoints" / f"{checkpoint}.ckpt")["state_dict"]
    vae.load_state_dict({name.removeprefix("vae."): value for name, value in state.items()})
    return TrainedRun(vae.eval().requires_grad_(False), cfg)
