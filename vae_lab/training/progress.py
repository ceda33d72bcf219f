"""One progress bar for the whole run; where there is no terminal, one line for each epoch."""

import logging
import time

from lightning.pytorch import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.2
SHOWN = ("loss", "elbo", "reconstruction", "kl", "mse", "active_units")


def show(metrics: dict, stage: str) -> str:
    """Format the metrics of one stage: 'val  loss 104.2  kl 25.1'."""
    values = [f"{key} {float(metrics[f'{stage}/{key}']):.4g}" for key in SHOWN if f"{stage}/{key}" in metrics]
    return "  ".join([stage, *values]) if values else ""


class Progress(Callback):
    """Shows epoch, step, time left and the latest validation metrics on stderr."""

    def on_train_start(self, trainer, lit) -> None:
        self.bar = None
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"))
        times = (TimeElapsedColumn(), TextColumn("<"), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}"))
        self.bar = Bar(*columns, *times, console=console, auto_refresh=False)
        epochs = trainer.max_epochs if trainer.max_epochs not in (None, -1) else float("inf")
        total = min(epochs * trainer.num_training_batches, self._limit_by_steps(trainer))
        self.task = self.bar.add_task("", total=total if total < float("inf") else None, metrics="")
        self.shown_at = 0.0
        self.bar.start()

    def on_train_batch_end(self, trainer, lit, outputs, batch, batch_idx) -> None:
        if self.bar is None or time.monotonic() - self.shown_at < REFRESH_SECONDS:
            return
        self.shown_at = time.monotonic()
        self._refresh(trainer, lit)

    def on_train_epoch_end(self, trainer, lit) -> None:
        metrics = show(trainer.callback_metrics, "val") or show(trainer.callback_metrics, "train")
        if self.bar is not None:
            self.bar.update(self.task, metrics=metrics)
            self._refresh(trainer, lit)
        elif trainer.is_global_zero:
            log.info("epoch %d  step %d  %s", trainer.current_epoch + 1, trainer.global_step, metrics)

    def on_train_end(self, trainer, lit) -> None:
        self._stop()

    def on_exception(self, trainer, lit, exception) -> None:
        self._stop()

    def _refresh(self, trainer, lit) -> None:
        self.bar.update(self.task, completed=lit.batches_seen, description=f"epoch {trainer.current_epoch + 1}")
        self.bar.refresh()

    def _stop(self) -> None:
        if getattr(self, "bar", None) is not None:
            self.bar.stop()
            self.bar = None

    @staticmethod
    def _limit_by_steps(trainer) -> float:
        return trainer.max_steps * trainer.lightning_module.accumulate if trainer.max_steps != -1 else float("inf")
