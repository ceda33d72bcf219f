"""Stopping on a signal: finish the batch, save, say so in the exit code."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.callbacks import Checkpoint

from vae_lab.errors import Preempted
from vae_lab.runs.checkpoints import is_safe_point, save_last
from vae_lab.runs.signals import heeded

log = logging.getLogger(__name__)
# Schedulers and `timeout` send the same signal to a process and to its group: within so many seconds it is one request.
SAME_REQUEST = 0.5


class Preemption(Checkpoint):
    """Turns the signals that announce an end into a checkpoint and a `Preempted` exception.

    During training the first signal takes effect at the next place from which a run continues exactly: the end of the
    batch or, where a validation is due, the end of that. A second signal half a second later, or one outside training,
    stops at once.
    Use it as a context manager around everything, and as a Lightning callback.
    """

    def __init__(self):
        self.signum: int | None = None
        self.training = False
        self.interrupted = False

    def __enter__(self):
        self.process = os.getpid()
        self.signals = heeded()
        self.previous = {number: signal.signal(number, self._handle) for number in self.signals}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _handle(self, signum: int, frame) -> None:
        if os.getpid() != self.process:
            return  # a worker, to which a signal to the whole group came too: the main process ends it
        again, now = self.signum is not None, time.monotonic()
        if again and now - self.asked_at < SAME_REQUEST:
            return
        self.signum, self.asked_at = signum, now
        if again or not self.training:
            self.interrupted = True
            raise Preempted(128 + signum)
        log.warning("%s: saving a checkpoint, then stopping", signal.Signals(signum).name)

    @contextmanager
    def first(self) -> Iterator[None]:
        """Raise `Preempted` for whatever the block raises after a signal interrupted it.

        An interruption may come anywhere, and many a library makes an error of its own of what passes through it.
        """
        try:
            yield
        except Exception as error:
            if not self.interrupted:
                raise
            raise Preempted(128 + self.signum) from error

    def on_train_start(self, trainer, lit) -> None:
        # Lightning has put a handler of its own in front, which would end the run with exit code 0.
        for number in self.signals:
            signal.signal(number, self._handle)
        self.training = True
        self._end_if_asked()  # by a signal whose exception was swallowed

    def on_train_batch_end(self, trainer, lit, outputs, batch, batch_idx) -> None:
        if is_safe_point(trainer, batch_idx):
            self._stop_if_asked(trainer, lit)

    def on_validation_end(self, trainer, lit) -> None:
        if trainer.state.fn == "fit" and lit.batches_seen % trainer.num_training_batches:
            self._stop_if_asked(trainer, lit)

    def on_train_epoch_end(self, trainer, lit) -> None:
        self._stop_if_asked(trainer, lit)

    def on_train_end(self, trainer, lit) -> None:
        self.training = False
        self._end_if_asked()  # after the last save, while the final pictures were drawn

    def _end_if_asked(self) -> None:
        if self.signum is not None:
            raise Preempted(128 + self.signum)

    def _stop_if_asked(self, trainer, lit) -> None:
        asked = self.signum is not None
        if trainer.world_size > 1:  # a signal to one process stops all of them, at the same batch
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            save_last(trainer, lit)
            raise Preempted(128 + (self.signum or signal.SIGTERM))
