"""A callback for runs in a process of their own: a signal to the first process at a certain batch."""

import os

from lightning.pytorch import Callback


class SignalAt(Callback):
    """Sends `number` to this process, if it is the first of the run, in the n-th batch, counted from 0."""

    def __init__(self, batch: int, number: int):
        self.batch, self.number = batch, number

    def on_train_batch_start(self, trainer, lit, batch, batch_idx) -> None:
        if trainer.is_global_zero and lit.batches_seen == self.batch:
            os.kill(os.getpid(), self.number)
