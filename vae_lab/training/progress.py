"""What is shown of a run in a terminal or a notebook: a bar, the latest validation, one lasting line for each epoch."""

import logging
import sys
import time
from datetime import timedelta
from html import escape
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from vae_lab.metrics.catalogue import CATALOGUE, HEADLINE

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.5
CELL_WIDTH = 100  # of the line below the bar in a notebook


def show(metrics: dict, stage: str, keys=tuple(CATALOGUE), width: float = float("inf")) -> str:
    """The metrics of one stage on a line, as many whole ones as fit: 'val  loss 104.2  kl 25.1'; empty if none."""
    line = stage
    for key in keys:
        if f"{stage}/{key}" in metrics:
            item = f"  {key} {short(float(metrics[f'{stage}/{key}']))}"
            line += item if len(line) + len(item) <= width else ""
    return line if line != stage else ""


def short(value: float) -> str:
    """A value with four digits, or all those before the point."""
    if value.is_integer() or 1e4 <= abs(value) < 1e7:
        return f"{value:.0f}" if abs(value) < 1e7 else f"{value:.4g}"
    return f"{value:#.4g}".rstrip(".")


def max_epochs(trainer: Trainer) -> float:
    """At most so many epochs; infinite where something else ends the training."""
    return trainer.max_epochs if trainer.max_epochs not in (None, -1) else float("inf")


def of_epochs(trainer: Trainer, epoch: int) -> str:
    """The number of an epoch, and of all if that is known."""
    return f"epoch {epoch}/{trainer.max_epochs}" if max_epochs(trainer) < float("inf") else f"epoch {epoch}"


class Cell:
    """The bar in the output of a notebook's cell, where a line of it stays."""

    def __init__(self) -> None:
        from IPython.display import HTML, display  # which is where there is a notebook

        self.html, self.output = HTML, display(HTML(""), display_id=True)

    def update(self, task: Task, text: str) -> None:
        """Show where the task is, and text below."""
        value = "" if task.total is None else f' value="{task.completed:.0f}" max="{task.total:.0f}"'
        left = "" if task.time_remaining is None else f" < {timedelta(seconds=round(task.time_remaining))}"
        bar = f'<progress{value} style="width: 50%"></progress> {self._done(task)}{left}'
        self.output.update(self.html(f"<div>{bar}<pre>{escape(text)}</pre></div>"))

    def stop(self, task: Task) -> None:
        """Take the bar away."""
        self.output.update(self.html(f"<div>{self._done(task)}</div>"))

    @staticmethod
    def _done(task: Task) -> str:
        return (
            f"{escape(task.description)}, {task.completed:,.0f} batches, {timedelta(seconds=round(task.elapsed or 0))}"
        )


class Progress(Checkpoint):  # Lightning calls checkpoints last, when the means of the epoch are logged
    """Shows epoch, time left and metrics on stderr; the log gets one line for each epoch.

    A value is shown with the step or the epoch that it was measured at: an epoch without a validation shows the means
    of its training.
    """

    def __init__(self):
        self.live: Live | Cell | None = None
        self.latest = ""

    def on_train_start(self, trainer: Trainer, lit: LightningModule) -> None:
        console = Console(stderr=True)
        if not trainer.is_global_zero or not (console.is_terminal or console.is_jupyter):
            return
        steps = trainer.max_steps * lit.accumulate if trainer.max_steps != -1 else float("inf")
        total = min(max_epochs(trainer) * trainer.num_training_batches, steps)
        left = (TimeElapsedColumn(), TextColumn("<"), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("batches"))
        self.bar = Bar(*columns, *left, expand=True)
        self.bar.add_task("", total=total if total < float("inf") else None, completed=lit.batches_seen)
        self.refreshed_at = 0.0
        if console.is_jupyter:
            self.live = Cell()
            return
        self.live = Live(console=console, auto_refresh=False, transient=True)
        ours = (h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler))
        self.handlers = [handler for handler in ours if handler.stream is sys.stderr]
        self.live.start()
        for handler in self.handlers:
            handler.setStream(sys.stderr)  # now one that writes above the bar

    def on_train_batch_end(self, trainer: Trainer, lit: LightningModule, _: Any, batch: Any, batch_idx: int) -> None:
        if self.live is not None and time.monotonic() - self.refreshed_at > REFRESH_SECONDS:
            self._refresh(trainer, lit)

    def on_validation_end(self, trainer: Trainer, lit: LightningModule) -> None:
        if self.live is not None and not trainer.sanity_checking:
            width = CELL_WIDTH if isinstance(self.live, Cell) else self.live.console.width
            self.latest = show(trainer.callback_metrics, "val", width=width - 15)
            self.latest = f"step {trainer.global_step}  {self.latest}"[:width]
            self._refresh(trainer, lit)
        elif trainer.state.fn == "validate":  # of a run that ended within an epoch, whose line came before
            self._log_epoch(trainer, lit.epochs_begun, "val")

    def on_train_epoch_end(self, trainer: Trainer, lit: LightningModule) -> None:
        is_validated = lit.validated_at == trainer.global_step
        self._log_epoch(trainer, trainer.current_epoch + 1, "val" if is_validated else "train")
        if self.live is not None:
            self._refresh(trainer, lit)

    def on_train_end(self, trainer: Trainer, lit: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, lit: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _log_epoch(self, trainer: Trainer, epoch: int, stage: str) -> None:
        if trainer.is_global_zero:
            metrics = show(trainer.callback_metrics, stage, HEADLINE)
            log.info("%s  step %d  %s", of_epochs(trainer, epoch), trainer.global_step, metrics)

    def _refresh(self, trainer: Trainer, lit: LightningModule) -> None:
        assert self.live is not None
        self.refreshed_at = time.monotonic()
        description = of_epochs(trainer, min(trainer.current_epoch + 1, max_epochs(trainer)))
        self.bar.update(self.bar.task_ids[0], completed=lit.batches_seen, description=description)
        if isinstance(self.live, Cell):
            self.live.update(self.bar.tasks[0], self.latest)
        else:
            self.live.update(Group(self.bar, Text(self.latest, no_wrap=True)), refresh=True)

    def _stop(self) -> None:
        if isinstance(self.live, Cell):
            self.live.stop(self.bar.tasks[0])
        elif self.live is not None:
            self.live.stop()
            for handler in self.handlers:
                handler.setStream(sys.stderr)
        self.live = None
