"""Batches of resident images: which come next, and the gather of them.

Shapes: N images, M of a split, B batch, C channels, H height, W width.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_lab.seeds import ORDER, derive_seed


class Pixels(Dataset):
    """One split of the images.

    Args:
        pixels: uint8 (N, C, H, W), shared by all splits.
        index: int64 (M,), which of the N images belong to this split.
    """

    def __init__(self, pixels: Tensor, index: Tensor):
        self.pixels = pixels
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[self.index[i]]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Gather a batch, uint8 (B, C, H, W)."""
        return self.pixels.index_select(0, self.index[torch.as_tensor(indices)])  # copies whole rows


class EpochSampler(Sampler):
    """A fresh order for every epoch that depends on (seed, epoch) only, and that can start part-way through.

    Every process takes every `world_size`-th image; the few images that do not divide are left out of that epoch.

    Args:
        total: number of images.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        epoch: to start with.
        start: images of the first epoch, on this process, that were already used.
    """

    def __init__(self, total: int, seed: int, rank: int, world_size: int, epoch: int, start: int):
        self.total = total
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        """Images of a whole epoch on this process."""
        return self.total // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; a new epoch starts at its beginning. Lightning calls this before every epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, self.epoch))
        order = torch.randperm(self.total, generator=generator)[self.rank :: self.world_size]
        return iter(order[self.start : len(self)].tolist())


def as_batch(batch: Tensor) -> Tensor:
    """The collate function: `__getitems__` has built the batch already."""
    return batch


class Batches(DataLoader):
    """Loads batches of `Pixels`; its workers end when the run ends them, not by a SIGTERM that others send them.

    torch's own handler in a worker dies of any SIGTERM, as schedulers send to all processes, and the run, which would
    save and stop, dies of its dead worker. Where the system does not tell who sends a signal (macOS), that remains.
    """

    def __init__(self, pixels: Pixels, batch_size: int, sampler, num_workers: int):
        super().__init__(
            pixels,
            batch_size,
            sampler=sampler,
            collate_fn=as_batch,
            num_workers=num_workers,
            worker_init_fn=watch_for_sigterm if hasattr(signal, "sigwaitinfo") else None,
        )

    def __iter__(self):
        if not self.worker_init_fn:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which the workers inherit
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def watch_for_sigterm(worker: int) -> None:
    """Let the run alone end this worker, in which SIGTERM is blocked."""

    def watch():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
