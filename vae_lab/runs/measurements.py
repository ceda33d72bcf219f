"""What a run measures of itself: speed, memory, its parameters' hash; and the way of its metrics to their file."""

import hashlib
import time
from typing import Any

import psutil
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from vae_lab.runs.metrics_file import MetricsFile


class MetricsLogger(Logger):
    """Hands every log event to `metrics.jsonl`.

    Args:
        metrics: the file.
    """

    name, version = "metrics", ""

    def __init__(self, metrics: MetricsFile):
        super().__init__()
        self.metrics = metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        self.metrics.append(metrics, step)


class Stopwatch(Callback):
    """Counts images and seconds of training, without validation and pictures.

    A checkpoint remembers how long `metrics.jsonl` was; loading it drops the lines logged after it, so a resumed run
    has every step once.

    Args:
        metrics: the file.
    """

    def __init__(self, metrics: MetricsFile):
        self.metrics = metrics
        self.images = 0
        self.seconds = 0.0
        self.since: float | None = None  # when the clock was started; None while it stands

    def state_dict(self) -> dict:
        return {"metrics_bytes": self.metrics.sync(), "images": self.images, "seconds": self._seconds()}

    def load_state_dict(self, state: dict) -> None:
        self.truncate(state["metrics_bytes"])
        self.images, self.seconds = state["images"], state["seconds"]

    @rank_zero_only
    def truncate(self, size: int) -> None:
        """Drop what the metrics file holds after its first `size` bytes."""
        self.metrics.truncate(size)

    def on_train_batch_start(self, *args: Any) -> None:
        if self.since is None:
            self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, lit: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.images += len(batch.x) * trainer.world_size

    def on_validation_start(self, *args: Any) -> None:
        self.seconds, self.since = self._seconds(), None

    on_train_epoch_end = on_validation_start

    def _seconds(self) -> float:
        return self.seconds + (time.perf_counter() - self.since if self.since is not None else 0.0)

    def result(self, trainer: Trainer, lit: LightningModule) -> dict:
        """What `result.json` says besides the metrics."""
        return {
            "epochs": lit.epochs_begun,
            "steps": trainer.global_step,
            "images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
            "train_seconds": round(self.seconds, 3),
            "parameters": sum(p.numel() for p in lit.parameters()),
            "parameters_sha256": parameters_sha256(lit.vae),
            "peak_memory_mb": peak_memory_mb(),
        }


def parameters_sha256(module: nn.Module) -> str:
    """Hash of all parameters and buffers: two runs with the same hash are the same model."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def peak_memory_mb() -> int:
    """Largest resident size of this process so far."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which tells it by psutil; elsewhere psutil knows only the size now
        memory = psutil.Process().memory_info()
        return round(getattr(memory, "peak_wset", memory.rss) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if psutil.MACOS else 2**10))
