"""Resident images: one uint8 tensor, split once, shuffled by seed and epoch, gathered and served in batches.

Shapes: N images, M of a split, B batch, C channels, H height, W width, F label columns.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_lab.data.decoding import Images, check_images
from vae_lab.data.seeds import BINARIZE, ORDER, SPLIT, derive_seed

CHUNK = 4096  # images


def fingerprint(splits: dict) -> str:
    """Hash what a run trains, validates and tests on, at about 1 GB/s.

    Args:
        splits: each `Split` by its name; they share their pixels.

    Returns:
        32 hexadecimal digits: equal if and only if the images and their splits are.
    """
    digest = hashlib.blake2b(digest_size=16)
    for split in splits.values():
        digest.update(split.index.numpy().tobytes())
    for chunk in next(iter(splits.values())).pixels.split(CHUNK):
        digest.update(chunk.flatten().numpy())
    return digest.hexdigest()


class Batch(NamedTuple):
    """Some images and their labels.

    Attributes:
        x: (B, C, H, W): bytes as they are loaded, floats in [0, 1] as a model sees them.
        y: int64 (B, F); None where the data set has no labels.
    """

    x: Tensor
    y: Tensor | None = None


class Split(Dataset):
    """One split of the images.

    Args:
        pixels: uint8 (N, C, H, W), shared by all splits.
        labels: int64 (N, F), shared by all splits.
        index: int64 (M,), which of the N images belong to this split.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, index: Tensor):
        self.pixels = pixels
        self.labels = labels
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Gather a batch: bytes (B, C, H, W), labels (B, F) if there are any."""
        chosen = self.index[torch.as_tensor(indices)]
        x = self.pixels.index_select(0, chosen)  # copies whole rows
        return Batch(x, self.labels[chosen] if self.labels.shape[1] else None)


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


def as_batch(batch: Batch) -> Batch:
    """The collate function: `__getitems__` has built the batch already."""
    return batch


class Batches(DataLoader):
    """Loads batches of a `Split`; its workers end when the run ends them, not by a SIGTERM that others send them.

    torch's own handler in a worker dies of any SIGTERM, as schedulers send to all processes, and the run, which would
    save and stop, dies of its dead worker. Where the system does not tell who sends a signal (macOS), that remains.
    """

    def __init__(self, split: Split, batch_size: int, sampler, num_workers: int):
        super().__init__(
            split,
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


BINARIZE_MODES = ("none", "threshold", "dynamic", "static")


def count(key: str, size: float, total: int) -> int:
    """Turn a number (int) or a fraction (float) of `total` images into a number.

    Raises:
        ValueError: if it is negative, or leaves nothing.
    """
    number = size if isinstance(size, int) else round(size * total)
    if not 0 <= number < total:
        raise ValueError(f"dataset.{key} must leave at least one of {total} images, got {size}")
    return number


class ImageData(LightningDataModule):
    """Reads a source once, splits it and serves batches of bytes; `to_pixels` turns those into what a model sees.

    Args:
        source: has `read() -> Images`.
        image_shape: (C, H, W).
        batch_size: images in a batch on each process, >= 1.
        binarize: `none`; `threshold` (at one half); `dynamic` (a Bernoulli sample at every visit); `static` (one
            Bernoulli sample, drawn once).
        flip: whether training images are mirrored left to right with probability 1/2.
        val_size: validation images, taken from the training images where the source has no validation split of its
            own: a number or a fraction.
        test_size: test images, where the source has no test split of its own: a number or a fraction.
        split_seed: of the split and of static binarization. It is not the run's seed, so that runs with different
            seeds are validated on the same images.
        num_workers: processes that gather batches; the images are in memory, so 0 is fastest.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        source: Any,
        image_shape: tuple[int, int, int],
        batch_size: int,
        binarize: str,
        flip: bool,
        val_size: float,
        test_size: float,
        split_seed: int,
        num_workers: int,
        seed: int,
    ):
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("split_seed", split_seed, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"dataset.{key} must be a whole number >= {least}, got {value!r}")
        if binarize not in BINARIZE_MODES:
            raise ValueError(f"dataset.binarize must be one of {', '.join(BINARIZE_MODES)}, got {binarize!r}")
        for key, size in (("val_size", val_size), ("test_size", test_size)):
            if not (isinstance(size, int) and size >= 0 or isinstance(size, float) and 0 <= size < 1):
                raise ValueError(f"dataset.{key} must be a whole number >= 0 or a fraction in [0, 1), got {size!r}")
        self.source = source
        self.image_shape = tuple(image_shape)
        self.batch_size = batch_size
        self.binarize = binarize
        self.flip = flip
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.seed = seed
        self.epoch, self.start = 0, 0
        self.num_skipped = 0  # pictures that could not be used
        self.test_split = "test"  # what a test loop reads
        self.splits: dict[str, Split] = {}

    def prepare_data(self) -> None:
        """Read the images in one process first, so that a download or a cache is written once."""
        self.setup("prepare")

    def setup(self, stage: str) -> None:
        """Read and split the images, once.

        Raises:
            DataError: if the source gives no images or images of another shape.
            ValueError: if a split would be empty.
        """
        if self.splits:
            return
        images: Images = self.source.read()
        check_images(images, self.image_shape)
        self.factors, self.num_skipped = images.factors, images.num_skipped
        pixels = binarized(images.pixels, self.binarize, self.split_seed)
        self.splits = {name: Split(pixels, images.labels, index) for name, index in self._split(images).items()}
        self.fingerprint = fingerprint(self.splits)

    def _split(self, images: Images) -> dict[str, Tensor]:
        """Disjoint int64 indices of the train, val and test images: the source's own splits where it has them."""
        total = len(images.pixels)
        own = total - images.num_test - images.num_val  # training images, before what is taken from them
        val = torch.arange(own, own + images.num_val)
        test = torch.arange(own + images.num_val, total)
        generator = torch.Generator().manual_seed(derive_seed(self.split_seed, SPLIT))
        train = torch.randperm(own, generator=generator)
        if not images.num_test:
            num_test = count("test_size", self.test_size, len(train))
            train, test = train[num_test:], train[:num_test]
        if not images.num_val:
            num_val = count("val_size", self.val_size, len(train))
            train, val = train[num_val:], train[:num_val]
        return {"train": train.sort().values, "val": val.sort().values, "test": test.sort().values}

    def start_at(self, epoch: int, batch: int) -> None:
        """Continue training at a batch of an epoch."""
        self.epoch, self.start = epoch, batch * self.batch_size

    def train_dataloader(self) -> Batches:
        """Shuffled batches of bytes."""
        rank, world_size = self._process()
        total = len(self.splits["train"])
        if total < world_size:
            raise ValueError(f"trainer.devices must be at most the {total} training images, got {world_size}")
        return self._loader("train", EpochSampler(total, self.seed, rank, world_size, self.epoch, self.start))

    def val_dataloader(self) -> Batches:
        """Batches of bytes in a fixed order."""
        return self._loader("val", self._in_order("val"))

    def test_dataloader(self) -> Batches:
        """Batches of bytes in a fixed order."""
        return self._loader(self.test_split, self._in_order(self.test_split))

    def _process(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _in_order(self, split: str) -> range:
        rank, world_size = self._process()
        total = len(self.splits[split])
        if 0 < total < world_size:
            # A process without images would not take part in the sums that the others wait for.
            few = f"{total} images of the {split} split are too few for {world_size} processes"
            raise ValueError(f"{few}: raise dataset.{split}_size or lower trainer.devices")
        return range(rank, total, world_size)

    def _loader(self, split: str, sampler) -> Batches:
        return Batches(self.splits[split], self.batch_size, sampler=sampler, num_workers=self.num_workers)

    def to_pixels(self, batch: Batch, training: bool) -> Batch:
        """Turn bytes (B, C, H, W) into what the model sees: floats in [0, 1], flipped, binarized, on their device."""
        x = batch.x
        if training and self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        x = x.float().div_(255)
        return Batch(x.bernoulli() if self.binarize == "dynamic" else x, batch.y)

    def examples(self, split: str, num: int) -> tuple[Tensor, Tensor]:
        """The first `num` images of a split in a fixed order, without flips, and their labels.

        Under dynamic binarization the images are thresholded, so that they are the same at every call. Where the
        split is empty, they are training images.

        Returns:
            Floats in [0, 1], (num, C, H, W), and int64 labels, (num, F).
        """
        chosen = self.splits[split] if len(self.splits[split]) else self.splits["train"]
        index = chosen.index[:num]
        x = chosen.pixels[index].float() / 255
        return (x.round() if self.binarize == "dynamic" else x), chosen.labels[index]


def binarized(pixels: Tensor, mode: str, seed: int) -> Tensor:
    """Apply the binarizations that are the same at every visit to uint8 (N, C, H, W); zeros and 255s, or unchanged."""
    if mode == "threshold":
        return (pixels > 127).to(torch.uint8) * 255
    if mode == "static":
        generator = torch.Generator().manual_seed(derive_seed(seed, BINARIZE))
        chunks = [(c / 255).bernoulli(generator=generator).to(torch.uint8) * 255 for c in pixels.split(4096)]
        return torch.cat(chunks)
    return pixels
