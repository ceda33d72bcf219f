"""What a terminal shows of a run: a bar, the latest validation below it, and one lasting line for each epoch above."""

import logging
import sys
import time

from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from vae_lab.metrics.catalogue import CATALOGUE, HEADLINE

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.2


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


def max_epochs(trainer) -> float:
    """At most so many epochs; infinite where something else ends the training."""
    return trainer.max_epochs if trainer.max_epochs not in (None, -1) else float("inf")


def of_epochs(trainer, epoch: int) -> str:
    """The number of an epoch, and of all if that is known."""
    return f"epoch {epoch}/{trainer.max_epochs}" if max_epochs(trainer) < float("inf") else f"epoch {epoch}"


class Progress(Checkpoint):  # Lightning calls checkpoints last, when the means of the epoch are logged
    """Shows epoch, time left and metrics on stderr; the log gets one line for each epoch.

    A value is shown with the step or the epoch that it was measured at: an epoch without a validation shows the means
    of its training.
    """

    def __init__(self):
        self.live: Live | None = None
        self.latest = ""

    def on_train_start(self, trainer, lit) -> None:
        console = Console(stderr=True)
        if not trainer.is_global_zero or not console.is_terminal:
            return
        steps = trainer.max_steps * lit.accumulate if trainer.max_steps != -1 else float("inf")
        total = min(max_epochs(trainer) * trainer.num_training_batches, steps)
        left = (TimeElapsedColumn(), TextColumn("<"), TimeRemainingColumn())
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TextColumn("batches"))
        self.bar = Bar(*columns, *left, expand=True)
        self.bar.add_task("", total=total if total < float("inf") else None, completed=lit.batches_seen)
        self.refreshed_at = 0.0
        self.live = Live(console=console, auto_refresh=False, transient=True)
        ours = (h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler))
        self.handlers = [handler for handler in ours if handler.stream is sys.stderr]
        self.live.start()
        for handler in self.handlers:
            handler.setStream(sys.stderr)  # now one that writes above the bar

    def on_train_batch_end(self, trainer, lit, outputs, batch, batch_idx) -> None:
        if self.live is not None and time.monotonic() - self.refreshed_at > REFRESH_SECONDS:
            self._refresh(trainer, lit)

    def on_validation_end(self, trainer, lit) -> None:
        if self.live is not None and not trainer.sanity_checking:
            width = self.live.console.width
            self.latest = show(trainer.callback_metrics, "val", width=width - 15)
            self.latest = f"step {trainer.global_step}  {self.latest}"[:width]
            self._refresh(trainer, lit)
        elif trainer.state.fn == "validate":  # of a run that ended within an epoch, whose line came before
            self._log_epoch(trainer, lit.epochs_begun, "val")

    def on_train_epoch_end(self, trainer, lit) -> None:
        is_validated = lit.validated_at == trainer.global_step
        self._log_epoch(trainer, trainer.current_epoch + 1, "val" if is_validated else "train")
        if self.live is not None:
            self._refresh(trainer, lit)

    def on_train_end(self, trainer, lit) -> None:
        self._stop()

    def on_exception(self, trainer, lit, exception) -> None:
        self._stop()

    def _log_epoch(self, trainer, epoch: int, stage: str) -> None:
        if trainer.is_global_zero:
            metrics = show(trainer.callback_metrics, stage, HEADLINE)
            log.info("%s  step %d  %s", of_epochs(trainer, epoch), trainer.global_step, metrics)

    def _refresh(self, trainer, lit) -> None:
        assert self.live is not None
        self.refreshed_at = time.monotonic()
        description = of_epochs(trainer, min(trainer.current_epoch + 1, max_epochs(trainer)))
        self.bar.update(self.bar.task_ids[0], completed=lit.batches_seen, description=description)
        self.live.update(Group(self.bar, Text(self.latest, no_wrap=True)), refresh=True)

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            for handler in self.handlers:
                handler.setStream(sys.stderr)
            self.live = None
