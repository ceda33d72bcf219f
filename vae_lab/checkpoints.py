"""When a run saves, and the exact place in training that each checkpoint stands for."""

import time
from pathlib import Path

from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from vae_lab.durable import durable_link
from vae_lab.errors import NumericsError


def set_position(checkpoint: dict, epoch: int, batch: int, batches_seen: int) -> None:
    """Rewrite Lightning's progress counters to "`epoch` epochs and then `batch` batches are complete".

    Lightning's own counters depend on the hook a checkpoint was saved from, and some of those states skip a validation
    or repeat one when they are resumed. This one form means the same wherever it was saved.
    """
    loop = checkpoint["loops"]["fit_loop"]
    begun = epoch + 1 if batch else epoch
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    loop["epoch_loop.batch_progress"] = {
        "total": same_count(batches_seen),
        "current": same_count(batch),
        "is_last_batch": False,
    }
    loop["epoch_loop.val_loop.batch_progress"] = {
        "total": same_count(0),
        "current": same_count(0),
        "is_last_batch": False,
    }


def same_count(number: int) -> dict[str, int]:
    """Progress in which everything begun is complete."""
    return dict.fromkeys(("ready", "started", "processed", "completed"), number)


def is_safe_point(trainer, batch_idx: int) -> bool:
    """Whether all that belongs to the batches so far is done when a training batch ends.

    It is not between two accumulated gradients, nor where a validation or the end of the epoch is still to come.
    """
    done = batch_idx + 1
    if done == trainer.num_training_batches or done % trainer.accumulate_grad_batches:
        return False
    if isinstance(trainer.val_check_batch, int):
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else done
        return batches % trainer.val_check_batch != 0
    return True


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, to use.

    `last.ckpt` is written after every validation and epoch and every few minutes in between; `previous.ckpt` is the
    one before, in case the last one is damaged; `best.ckpt` is the one with the best monitored value. They lie in
    `checkpoints/` in the run folder.

    Args:
        monitor: key of the validation metric that decides which is best; without validation the last one is.
        mode: `min` or `max`.
        every_n_minutes: how often to save within an epoch, > 0.

    Raises:
        ValueError: if an argument is not valid.
    """

    def __init__(self, monitor: str, mode: str, every_n_minutes: float):
        if mode not in ("min", "max"):
            raise ValueError(f"callbacks.checkpoints.mode must be min or max, got {mode!r}")
        if not monitor.startswith("val/"):
            raise ValueError(f"callbacks.checkpoints.monitor must be a validation metric, val/..., got {monitor!r}")
        if not every_n_minutes > 0:
            raise ValueError(f"callbacks.checkpoints.every_n_minutes must be > 0, got {every_n_minutes}")
        self.monitor = monitor
        self.mode = mode
        self.seconds = 60 * every_n_minutes
        self.best: dict = {}  # step, epoch and metrics of the best validation

    def state_dict(self) -> dict:
        """The best validation so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""
        self.best = state["best"]

    def on_train_start(self, trainer, lit) -> None:
        self.saved_at = time.monotonic()
        if trainer.global_step == 0:
            save_last(trainer, lit)  # so that a run that diverges at once leaves finite weights too

    def on_train_batch_end(self, trainer, lit, outputs, batch, batch_idx) -> None:
        if time.monotonic() - self.saved_at > self.seconds and is_safe_point(trainer, batch_idx):
            self._save(trainer, lit)

    def on_validation_end(self, trainer, lit) -> None:
        if trainer.sanity_checking:
            return
        self._update_best(trainer)
        closes_run = trainer.state.fn != "fit"  # one that stopped part-way through an epoch
        if closes_run or lit.batches_seen % trainer.num_training_batches:
            self._save(trainer, lit)
        # else the epoch ends here: on_train_epoch_end saves, after the epoch's metrics are recorded

    def on_train_epoch_end(self, trainer, lit) -> None:
        self._save(trainer, lit)

    def on_train_end(self, trainer, lit) -> None:
        if not self.best and trainer.global_step:
            self._link_best(trainer)

    def _update_best(self, trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(key for key in trainer.callback_metrics if key.startswith("val/")))
            raise ValueError(f"callbacks.checkpoints.monitor must be one of {known}, got {self.monitor!r}")
        value = float(trainer.callback_metrics[self.monitor])
        if self.best and not (value < self.best["value"] if self.mode == "min" else value > self.best["value"]):
            return
        metrics = {key: float(number) for key, number in trainer.callback_metrics.items() if key.startswith("val/")}
        self.best = {
            "value": value,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "metrics": metrics,
        }

    def _save(self, trainer, lit) -> None:
        save_last(trainer, lit)
        self.saved_at = time.monotonic()
        if self.best.get("step") == trainer.global_step:
            self._link_best(trainer)

    def _link_best(self, trainer) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "checkpoints"
            durable_link(folder / "last.ckpt", folder / "best.ckpt")


def first_broken(weights: dict[str, Tensor]) -> str | None:
    """The name of the first weight that is not finite, if there is one."""
    return next((name for name, value in weights.items() if not value.isfinite().all()), None)


def check_finite(trainer, lit) -> None:
    """Refuse weights that are not finite.

    Raises:
        NumericsError: naming the first one.
    """
    broken = first_broken(lit.state_dict())
    if broken is not None:
        raise NumericsError(
            f"{broken} is not finite at step {trainer.global_step}; no checkpoint holds it. "
            "In a new run lower optimizer.lr or set trainer.gradient_clip_val=1.0"
        )


def save_last(trainer, lit) -> None:
    """Write `checkpoints/last.ckpt` in the run folder; the one before becomes `previous.ckpt`.

    Raises:
        NumericsError: if a parameter is not finite; the previous checkpoint stays.
    """
    check_finite(trainer, lit)
    path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if trainer.is_global_zero and path.exists():
        durable_link(path, path.with_name("previous.ckpt"))
    trainer.save_checkpoint(path, weights_only=False)
