"""When a run saves, and the exact place in training that each checkpoint stands for."""

import logging
import math
import signal
import time
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from vae_lab.config.nested import walk
from vae_lab.errors import NumericsError, Preempted, RunError, one_line
from vae_lab.runs.files import durable_link, durable_open
from vae_lab.runs.signals import Preemption

log = logging.getLogger(__name__)

# --- when


def is_safe_point(trainer: Trainer) -> bool:
    """Whether all that belongs to the batches so far is done when an execution ends.

    It is not between two accumulated gradients, nor where a validation or the end of the epoch is still to come.
    """
    done = trainer.fit_loop.epoch_loop.batch_idx + 1
    if done == trainer.num_training_batches or done % trainer.lightning_module.accumulate:
        return False
    if isinstance(trainer.val_check_batch, int):
        batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1 if trainer.check_val_every_n_epoch is None else done
        return batches % trainer.val_check_batch != 0
    return True


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, to resume from, and `best.ckpt`, to use.

    `last.ckpt` is written after every validation and epoch and every few minutes in between; `previous.ckpt` is the
    one before, in case the last one is damaged; `best.ckpt` is the one with the best monitored value. They lie in
    `checkpoints/` in the run folder, and beside them, where it is asked for, `epoch_0010.ckpt` and so on.

    Args:
        monitor: key of the validation metric that decides which is best; without validation the last one is.
        mode: `min`, `max`, or `last` for the last one validated.
        every_n_minutes: how often to save within an epoch, > 0.
        every_n_epochs: also keep one every so many epochs, >= 1; None keeps none, or where `keep` is set one of each.
        keep: how many of these at most, >= 1: the best, by `mode`, or the last without a validation; None is all.

    Raises:
        ValueError: if an argument is not valid.
    """

    def __init__(
        self,
        monitor: str,
        mode: str,
        every_n_minutes: float,
        every_n_epochs: int | None = None,
        keep: int | None = None,
    ):
        if mode not in ("min", "max", "last"):
            raise ValueError(f"callbacks.checkpoints.mode must be min, max or last, got {mode!r}")
        if not monitor.startswith("val/"):
            raise ValueError(f"callbacks.checkpoints.monitor must be a validation metric, val/..., got {monitor!r}")
        if not every_n_minutes > 0:
            raise ValueError(f"callbacks.checkpoints.every_n_minutes must be > 0, got {every_n_minutes}")
        for key, number in (("every_n_epochs", every_n_epochs), ("keep", keep)):
            if number is not None and number < 1:
                raise ValueError(f"callbacks.checkpoints.{key} must be >= 1, got {number}")
        self.monitor = monitor
        self.mode = mode
        self.seconds = 60 * every_n_minutes
        self.every_n_epochs = every_n_epochs or (1 if keep else None)
        self.keep = keep
        self.best: dict = {}  # step, epoch and metrics of the best validation
        self.saved_at: float | None = None
        self.value = math.nan  # that was monitored last
        self.kept: dict[int, float] = {}  # the values of the epochs that are kept

    def state_dict(self) -> dict:
        return {"best": self.best} | ({"kept": self.kept, "value": self.value} if self.every_n_epochs else {})

    def load_state_dict(self, state: dict) -> None:
        self.best, self.kept, self.value = state["best"], state.get("kept", {}), state.get("value", math.nan)

    def on_train_start(self, trainer: Trainer, lit: LightningModule) -> None:
        self.saved_at = time.monotonic()
        if trainer.global_step == 0:
            save_last(trainer, lit)  # so that a run that diverges at once leaves finite weights too
        elif trainer.ckpt_path:  # a kill just after its save left this undone
            self._link(trainer, lit, Path(trainer.ckpt_path))

    def on_train_batch_end(self, trainer: Trainer, lit: LightningModule, *_: Any) -> None:
        if time.monotonic() - (self.saved_at or 0) > self.seconds and is_safe_point(trainer):
            self._save(trainer, lit)

    def on_validation_end(self, trainer: Trainer, lit: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._update_best(trainer, lit)
        closes_run = trainer.state.fn != "fit"  # one that stopped part-way through an epoch
        if closes_run or lit.batches_seen % trainer.num_training_batches:
            self._save(trainer, lit)
        # else the epoch ends here: on_train_epoch_end saves, after the epoch's metrics are recorded

    def on_train_epoch_end(self, trainer: Trainer, lit: LightningModule) -> None:
        if self.every_n_epochs and lit.epochs_begun % self.every_n_epochs == 0:
            self._choose(trainer, lit.epochs_begun)
        self._save(trainer, lit)

    def on_run_end(self, trainer: Trainer, lit: LightningModule) -> None:
        if self.saved_at is None and trainer.ckpt_path:  # the last save, after which there is no training any more
            self._link(trainer, lit, Path(trainer.ckpt_path))

    def on_train_end(self, trainer: Trainer, lit: LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        if not self.best and trainer.global_step and trainer.is_global_zero:
            durable_link(folder / "last.ckpt", folder / "best.ckpt")

    def _update_best(self, trainer: Trainer, lit: LightningModule) -> None:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        if self.monitor not in metrics:
            known = ", ".join(sorted(metrics))
            raise ValueError(f"callbacks.checkpoints.monitor must be one of {known}, got {self.monitor!r}")
        self.value = value = metrics[self.monitor]
        is_better = {"min": lambda best: value < best, "max": lambda best: value > best, "last": lambda best: True}
        if not self.best or is_better[self.mode](self.best["value"]):
            place = {"step": trainer.global_step, "epoch": lit.epochs_begun}
            self.best = {"value": value, **place, "metrics": metrics}

    def _save(self, trainer: Trainer, lit: LightningModule) -> None:
        save_last(trainer, lit)
        self.saved_at = time.monotonic()
        self._link(trainer, lit, Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")

    def _link(self, trainer: Trainer, lit: LightningModule, source: Path) -> None:
        """Give the checkpoint of this step its other names."""
        names = ["best.ckpt"] if self.best.get("step") == trainer.global_step else []
        if lit.epochs_begun in self.kept and lit.batches_seen % trainer.num_training_batches == 0:
            names.append(name_of_epoch(lit.epochs_begun))
            if len(self.kept) == 1 and trainer.is_global_zero:
                bound = f"at most {self.keep}" if self.keep else f"one every {self.every_n_epochs} epochs"
                log.info("keeping checkpoints of %.1f MB, %s", source.stat().st_size / 1e6, bound)
        for name in names if trainer.is_global_zero else ():
            durable_link(source, Path(trainer.default_root_dir) / "checkpoints" / name)

    def _choose(self, trainer: Trainer, epoch: int) -> None:
        """Keep this epoch, and none that is not one of the best any more.

        What goes is deleted before the checkpoint that says so is saved: after a kill in between it goes once more.
        """
        self.kept = {**self.kept, epoch: self.value}
        if self.mode == "last" or math.isnan(self.value):
            ranked = sorted(self.kept, reverse=True)
        else:
            sign = -1 if self.mode == "max" else 1
            ranked = sorted(self.kept, key=lambda each: (sign * self.kept[each], each))
        for dropped in ranked[self.keep :] if self.keep else ():
            del self.kept[dropped]
            if trainer.is_global_zero:
                path = Path(trainer.default_root_dir) / "checkpoints" / name_of_epoch(dropped)
                path.unlink(missing_ok=True)


def name_of_epoch(epoch: int) -> str:
    """The file of the checkpoint at the end of an epoch, from 1."""
    return f"epoch_{epoch:04d}.ckpt"


class StopAtSignal(Checkpoint):
    """Stops the training where a signal asked for it: after an execution, or after the validation that is due there.

    Args:
        preemption: hears the signals.
    """

    def __init__(self, preemption: Preemption):
        self.preemption = preemption

    def on_train_start(self, trainer: Trainer, lit: LightningModule) -> None:
        self.preemption.listen()
        self.preemption.training = True
        self.preemption.end_if_asked()  # by a signal whose exception was swallowed

    def on_train_batch_end(self, trainer: Trainer, lit: LightningModule, *_: Any) -> None:
        if is_safe_point(trainer):
            self._stop_if_asked(trainer, lit)

    def on_validation_end(self, trainer: Trainer, lit: LightningModule) -> None:
        if trainer.state.fn == "fit" and lit.batches_seen % trainer.num_training_batches:
            self._stop_if_asked(trainer, lit)

    def on_train_epoch_end(self, trainer: Trainer, lit: LightningModule) -> None:
        self._stop_if_asked(trainer, lit)

    def on_train_end(self, trainer: Trainer, lit: LightningModule) -> None:
        self.preemption.training = False
        self.preemption.end_if_asked()  # after the last save, while the final pictures were drawn

    def _stop_if_asked(self, trainer: Trainer, lit: LightningModule) -> None:
        asked = self.preemption.signum is not None
        if trainer.world_size > 1:  # a signal to one process stops all of them, at the same batch
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            save_last(trainer, lit)
            raise Preempted(128 + (self.preemption.signum or signal.SIGTERM))


# --- what


def set_position(checkpoint: dict, epoch: int, batch: int, batches_seen: int) -> None:
    """Rewrite Lightning's progress counters to "`epoch` epochs and then `batch` batches are complete".

    Lightning's own counters depend on the hook a checkpoint was saved from, and some of those states skip a validation
    or repeat one when they are resumed. This one form means the same wherever it was saved.

    Args:
        checkpoint: as Lightning has put it together.
        epoch: how many are complete, >= 0.
        batch: how many of the next one, >= 0.
        batches_seen: how many of all epochs, >= 0.
    """
    loop = checkpoint["loops"]["fit_loop"]
    begun = epoch + 1 if batch else epoch
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    for name, total, current in (("batch_progress", batches_seen, batch), ("val_loop.batch_progress", 0, 0)):
        counts = {"total": dict.fromkeys(epochs, total), "current": dict.fromkeys(epochs, current)}
        loop[f"epoch_loop.{name}"] = {**counts, "is_last_batch": False}


def first_broken(weights: dict[str, Tensor]) -> str | None:
    """The name of the first weight that is not finite, if there is one."""
    return next((name for name, value in weights.items() if not value.isfinite().all()), None)


def check_finite(trainer: Trainer, lit: LightningModule) -> None:
    """Refuse weights that are not finite.

    Raises:
        NumericsError: naming the first one.
    """
    if broken := first_broken(lit.state_dict()):
        raise NumericsError(
            f"{broken} is not finite at step {trainer.global_step}; no checkpoint holds it. "
            "In a new run lower optimizer.lr or set trainer.gradient_clip_val=1.0"
        )


def save_last(trainer: Trainer, lit: LightningModule) -> None:
    """Write `checkpoints/last.ckpt` in the run folder; the one before becomes `previous.ckpt`.

    Raises:
        NumericsError: if a parameter is not finite; the previous checkpoint stays.
    """
    check_finite(trainer, lit)
    path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if trainer.is_global_zero and path.exists():
        durable_link(path, path.with_name("previous.ckpt"))
    trainer.save_checkpoint(path, weights_only=False)


# --- the file


class DamagedError(RunError):
    """A checkpoint is not what was written: an older one may do."""


class DurableCheckpointIO(CheckpointIO):
    """Writes checkpoints with `durable_open` and reads them without executing anything they contain."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: if it cannot be written; the previous one is then intact.
        """
        size = sum(part.nbytes for _, part in walk(checkpoint) if isinstance(part, Tensor))  # about what it needs
        with durable_open(Path(path), size) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides what the file said behind an assertion of its own
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise RunError(f"cannot write {path}: {str(error).splitlines()[0]}; is the disk full?") from error

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        """Read a checkpoint; see `load_checkpoint`."""
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def load_checkpoint(path: Path, map_location: str = "cpu") -> dict:
    """Read a checkpoint that holds tensors and plain containers only; anything else is refused unexecuted.

    Args:
        path: of the file.
        map_location: the device for its tensors.

    Raises:
        DamagedError: if its bytes are not those that were written.
        RunError: if the file is missing or holds other objects.
    """
    if not path.is_file():
        raise RunError(f"no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself would load flipped bits silently
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        raise RunError(f"cannot load {path}: it holds more than tensors and plain containers") from error
    except Exception as error:  # what is damaged, or no checkpoint at all, raises nearly anything
        raise DamagedError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise RunError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that is not damaged; None if nothing was saved yet.

    Raises:
        RunError: if all are damaged, or one holds more than a checkpoint does.
    """
    # By age: the best one is the last one or an older one, and so are those that were kept.
    damage = []
    kept = sorted(folder.glob("epoch_*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in (*(folder / f"{name}.ckpt" for name in ("last", "previous", "best")), *kept):
        if not path.is_file():
            continue
        try:
            step = load_checkpoint(path).get("global_step")
        except DamagedError as error:
            damage.append(str(error))
            continue
        for message in damage:
            log.warning("%s; using %s of step %d", message, path.name, step)
        return path
    if damage:
        raise RunError(f"no checkpoint can be read: {'; '.join(damage)}; start a new run")
    return None
