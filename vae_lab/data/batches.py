"""Resident images: one uint8 tensor, split once, shuffled by seed and epoch, gathered and served in batches.

Shapes: N images, M of a split, B batch, C channels, H height, W width, F label columns.
"""

import hashlib
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_lab.data.decoding import Images
from vae_lab.data.seeds import BINARIZE, EXAMPLES, ORDER, SPLIT, derive_seed
from vae_lab.errors import DataError

BINARIZE_MODES = ("none", "threshold", "dynamic", "static")
CHUNK = 4096  # images
MOST_MAPPED = 2**26  # bytes of a mapped file that are gathered before its memory is given back


class Batch(NamedTuple):
    """Some images and their labels.

    Attributes:
        x: (B, C, H, W): bytes as they are loaded, floats in [0, 1] as a model sees them.
        y: int64 (B, F); None where the data set has no labels.
    """

    x: Tensor
    y: Tensor | None = None

    def split(self, size: int) -> "list[Batch]":
        """Batches of `size` images; the last one may be smaller."""
        xs = self.x.split(size)
        ys = self.y.split(size) if self.y is not None else [None] * len(xs)
        return [Batch(x, y) for x, y in zip(xs, ys, strict=True)]


@dataclass(eq=False)
class Split(Dataset):
    """One split of the images.

    Args:
        pixels: uint8 (N, C, H, W), shared by all splits.
        labels: int64 (N, F), shared by all splits.
        index: int64 (M,), which of the N images belong to this split.
        release: gives back the memory that reading pixels took, if it is to be called from time to time.
        target: the device that batches are gathered for, ahead of their time; None for when they are asked for.
    """

    pixels: Tensor
    labels: Tensor
    index: Tensor
    release: Callable[[], None] | None = None
    target: torch.device | None = None

    def __post_init__(self):
        self.taken = 0  # bytes gathered since the last release

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "release": None}  # a worker that does not fork has the pixels in memory of its own

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: Any) -> Batch:
        """A slice or a choice of the images, as `[:64]`, `[[3, 5]]` or a mask (M,), in bytes, with their labels."""
        return self.__getitems__(torch.arange(len(self))[key].reshape(-1))

    def __getitems__(self, indices: Sequence[int] | Tensor, pinned: bool = False) -> Batch:
        """Gather a batch, in pinned memory or not: bytes (B, C, H, W), labels (B, F) if there are any."""
        chosen = self.index[torch.as_tensor(indices)]
        if pinned:
            x = torch.empty(len(chosen), *self.pixels.shape[1:], dtype=torch.uint8, pin_memory=True)
            torch.index_select(self.pixels, 0, chosen, out=x)
        else:
            x = self.pixels.index_select(0, chosen.to(self.pixels.device))  # copies whole rows
        self.taken += x.nbytes
        if self.release and self.taken > MOST_MAPPED:
            self.release()
            self.taken = 0
        return Batch(x, self.labels[chosen] if self.labels.shape[1] else None)


@dataclass(eq=False)
class EpochSampler(Sampler):
    """A fresh order for every epoch that depends on (seed, epoch) only, and that can start part-way through.

    Every process takes every `world_size`-th of `total` images, from its `start`-th in the first epoch; the few images
    that do not divide are left out of that epoch.
    """

    total: int
    seed: int
    rank: int
    world_size: int
    epoch: int
    start: int

    def __len__(self) -> int:
        """Images of a whole epoch on this process."""
        return self.total // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; a new epoch starts at its beginning. Lightning calls this before every epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def order(self) -> Tensor:
        """The images of this epoch that are still to come, int64."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, ORDER, self.epoch))
        order = torch.randperm(self.total, generator=generator)[self.rank :: self.world_size]
        return order[self.start : len(self)]


@dataclass(eq=False)
class InOrder(Sampler):
    """Every `world_size`-th of `total` images, from the `rank`-th on, in a fixed order."""

    total: int
    rank: int
    world_size: int
    start = 0

    def __len__(self) -> int:
        return len(self.order())

    def order(self) -> Tensor:
        """The images, int64."""
        return torch.arange(self.rank, self.total, self.world_size)


@dataclass(eq=False)
class Executions(Sampler):
    """The batches of an epoch, several at a time, because gathering them one by one costs more than training.

    Args:
        sampler: the order of the images.
        batch_size: images in a batch, >= 1.
        batches_at_once: how many to gather from the given batch of the epoch on, >= 0; with none the epoch ends.
    """

    sampler: EpochSampler | InOrder
    batch_size: int
    batches_at_once: Callable[[int], int]

    def __len__(self) -> int:
        """Batches of a whole epoch on this process."""
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order, batch = self.sampler.order(), self.sampler.start // self.batch_size
        while len(order) and (number := self.batches_at_once(batch)):
            yield order[: number * self.batch_size]
            order, batch = order[number * self.batch_size :], batch + number


class Batches(DataLoader):
    """Loads batches of a `Split`; its workers end when the run ends them, not by a SIGTERM that others send them.

    torch's own handler in a worker dies of any SIGTERM, as schedulers send to all processes, and the run, which would
    save and stop, dies of its dead worker. Where the system does not tell who sends a signal (macOS), that remains.
    """

    def __iter__(self):
        split: Any = self.dataset
        if split.target is not None:
            return self._ahead(split)
        if not self.worker_init_fn:
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which the workers inherit
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _ahead(self, split: Split) -> Iterator[Batch]:
        """Batches on a device; while it computes, a thread gathers as many again, into pinned memory if it is a GPU."""
        sampler: Any = self.batch_sampler
        device: Any = split.target
        parts, pool = iter(sampler.sampler.order().split(sampler.batch_size)), ThreadPoolExecutor(1)
        gathered: deque[Future[Batch]] = deque()

        def have(number: int) -> None:
            for part in islice(parts, max(0, number - len(gathered))):
                gathered.append(pool.submit(split.__getitems__, part, device.type == "cuda"))

        try:
            for indices in sampler:
                number = math.ceil(len(indices) / sampler.batch_size)
                have(number)
                batches = [gathered.popleft().result() for _ in range(number)]
                have(number)
                x = torch.cat([batch.x.to(device, non_blocking=True) for batch in batches])
                ys = [batch.y for batch in batches if batch.y is not None]
                yield Batch(x, torch.cat(ys) if ys else None)
        finally:
            pool.shutdown(cancel_futures=True)


def watch_for_sigterm(worker: int) -> None:
    """Let the run alone end this worker, in which SIGTERM is blocked."""

    def watch():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def as_batch(batch: Any) -> Batch:
    """The collate function: `Split` has built the batch already."""
    return batch


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
        seed: of the run, for the order of the training images.
        num_classes: of each label column, which its labels must be below; None where that is not known.

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
        num_classes: Sequence[int] | None = None,
    ):
        super().__init__()
        least = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0), "split_seed": (split_seed, 0)}
        for key, (value, bound) in least.items():
            if value < bound:
                raise ValueError(f"dataset.{key} must be a whole number >= {bound}, got {value!r}")
        if binarize not in BINARIZE_MODES:
            raise ValueError(f"dataset.binarize must be one of {', '.join(BINARIZE_MODES)}, got {binarize!r}")
        for key, size in (("val_size", val_size), ("test_size", test_size)):
            if not 0 <= size < (math.inf if isinstance(size, int) else 1):
                raise ValueError(f"dataset.{key} must be a whole number >= 0 or a fraction in [0, 1), got {size!r}")
        self.source, self.image_shape, self.batch_size = source, tuple(image_shape), batch_size
        self.binarize, self.flip, self.val_size, self.test_size = binarize, flip, val_size, test_size
        self.split_seed, self.num_workers, self.seed = split_seed, num_workers, seed
        self.num_classes = num_classes
        self.epoch, self.start = 0, 0
        self.num_skipped = 0  # pictures that could not be used
        self.test_split = "test"  # what a test loop reads
        self.batches_at_once: Callable[[int], int] = lambda batch: 1  # of training, from a batch of the epoch on
        self.batches_validated_at_once: Callable[[int], int] = lambda batch: 1
        self.splits: dict[str, Split] = {}

    def prepare_data(self) -> None:
        """Read the images in one process first, so that a download or a cache is written once."""
        self.setup("prepare")

    def setup(self, stage: str) -> None:
        """Read and split the images, once; `fingerprint` is equal if and only if the images and their splits are.

        Raises:
            DataError: if the source gives no images or images of another shape.
            ValueError: if a split would be empty.
        """
        if self.splits:
            return
        images: Images = self.source.read()
        check(images, self.image_shape, self.num_classes)
        self.factors, self.class_names, self.num_skipped = images.factors, images.class_names, images.num_skipped
        pixels = images.pixels
        if self.binarize == "threshold":
            pixels = (pixels > 127).to(torch.uint8) * 255
        elif self.binarize == "static":
            generator = torch.Generator().manual_seed(derive_seed(self.split_seed, BINARIZE))
            drawn = [(chunk / 255).bernoulli(generator=generator).to(torch.uint8) for chunk in pixels.split(CHUNK)]
            pixels = torch.cat(drawn) * 255
        release = images.release if pixels is images.pixels else None
        indices = self._split(images)
        self.splits = {name: Split(pixels, images.labels, index, release) for name, index in indices.items()}
        digest = hashlib.blake2b(digest_size=16)  # at about 1 GB/s
        for split in self.splits.values():
            digest.update(split.index.numpy().data)
        for chunk in pixels.split(CHUNK):
            digest.update(chunk.flatten().numpy().data)
            if release:
                release()
        self.fingerprint = digest.hexdigest()

    def _split(self, images: Images) -> dict[str, Tensor]:
        """Disjoint int64 indices of the train, val and test images: the source's own splits where it has them."""
        total, first_test = len(images.pixels), len(images.pixels) - images.num_test
        first_val = first_test - images.num_val
        splits = {"val": torch.arange(first_val, first_test), "test": torch.arange(first_test, total)}
        generator = torch.Generator().manual_seed(derive_seed(self.split_seed, SPLIT))
        train = torch.randperm(first_val, generator=generator)
        for name, size in (("test", self.test_size), ("val", self.val_size)):
            if not len(splits[name]):
                number = size if isinstance(size, int) else round(size * len(train))
                if number >= len(train) or isinstance(size, float) and size * first_val >= len(train):  # an overlap
                    raise ValueError(f"dataset.{name}_size must leave at least one of {len(train)} images, got {size}")
                train, splits[name] = train[number:], train[:number]
        return {name: index.sort().values for name, index in {"train": train, **splits}.items()}

    def keep_on(self, device: torch.device) -> None:
        """Keep the images on a GPU, if they take at most a quarter of the memory that is free there.

        Where they take more, a thread gathers batches ahead and sends them from pinned memory.
        """
        pixels, target = self.splits["train"].pixels, None
        if device.type == "cuda" and not self.num_workers and pixels.device != device:
            if 4 * pixels.nbytes <= torch.cuda.mem_get_info(device)[0]:
                pixels = pixels.to(device)
            else:
                target = device
        for split in self.splits.values():
            split.pixels, split.target = pixels, target
            if pixels.device.type == "cuda":
                split.release = None

    def start_at(self, epoch: int, batch: int) -> None:
        """Continue training at a batch of an epoch."""
        self.epoch, self.start = epoch, batch * self.batch_size

    def train_dataloader(self) -> Batches:
        """Shuffled batches of bytes."""
        rank, world_size = self._process()
        total = len(self.splits["train"])
        if total < world_size:
            raise ValueError(f"trainer.devices must be at most the {total} training images, got {world_size}")
        sampler = EpochSampler(total, self.seed, rank, world_size, self.epoch, self.start)
        return self._loader("train", sampler, self.batches_at_once)

    def val_dataloader(self) -> Batches:
        """Batches of bytes in a fixed order."""
        return self._in_order("val", self.batches_validated_at_once)

    def test_dataloader(self) -> Batches:
        """Batches of bytes in a fixed order."""
        return self._in_order(self.test_split, lambda batch: 1)

    def _process(self) -> tuple[int, int]:
        """The rank of this process, and the number of processes."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _in_order(self, split: str, at_once: Callable[[int], int]) -> Batches:
        rank, world_size = self._process()
        total = len(self.splits[split])
        if 0 < total < world_size:
            # A process without images would not take part in the sums that the others wait for.
            few = f"{total} images of the {split} split are too few for {world_size} processes"
            raise ValueError(f"{few}: raise dataset.{split}_size or lower trainer.devices")
        return self._loader(split, InOrder(total, rank, world_size), at_once)

    def _loader(self, split: str, sampler: EpochSampler | InOrder, at_once: Callable[[int], int]) -> Batches:
        return Batches(
            self.splits[split],
            batch_sampler=Executions(sampler, self.batch_size, at_once),
            collate_fn=as_batch,
            num_workers=self.num_workers,
            worker_init_fn=watch_for_sigterm if hasattr(signal, "sigwaitinfo") else None,
        )

    def to_pixels(self, batch: Batch, training: bool = False) -> Batch:
        """Turn bytes (B, C, H, W) into what the model sees: floats in [0, 1], flipped, binarized, on their device."""
        x = batch.x
        if training and self.flip:
            mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        x = x.float().div_(255)
        return Batch(x.bernoulli() if self.binarize == "dynamic" else x, batch.y)

    def examples(self, split: str, num: int) -> tuple[Tensor, Tensor]:
        """Draw `num` images of a split, the same at every call, without flips, and their labels.

        They come from the whole split, as a folder may be sorted by class. Under dynamic binarization they are
        thresholded, so that they are the same at every call. Where the split is empty, they are training images.

        Returns:
            Floats in [0, 1], (num, C, H, W), and int64 labels, (num, F).
        """
        chosen = self.splits[split] if len(self.splits[split]) else self.splits["train"]
        generator = torch.Generator().manual_seed(derive_seed(self.split_seed, EXAMPLES))
        index = chosen.index[torch.randperm(len(chosen), generator=generator)[:num]]
        x = chosen.pixels[index.to(chosen.pixels.device)].cpu().float().div_(255)
        return (x.round() if self.binarize == "dynamic" else x), chosen.labels[index]


def check(images: Images, image_shape: tuple[int, ...], num_classes: Sequence[int] | None) -> None:
    """Refuse what a source has read where pixels, labels, splits and the config do not fit together."""
    total, shape = len(images.pixels), tuple(images.labels.shape)
    if total == 0 or tuple(images.pixels.shape[1:]) != image_shape:
        raise DataError(f"expected images of shape {image_shape}, got {tuple(images.pixels.shape)}")
    if images.pixels.dtype != torch.uint8:
        raise DataError(f"expected images of bytes (torch.uint8), got {images.pixels.dtype}")
    if shape != (total, len(images.factors)):
        expected = f"{total} images and {len(images.factors)} factors"
        raise DataError(f"expected labels for {expected}, got the shape {shape}")
    if images.num_val + images.num_test >= total:
        taken = f"{images.num_val} are for validation and {images.num_test} for the test"
        raise DataError(f"no training images: of {total}, {taken}")
    found = (images.labels.amax(0) + 1).tolist() if images.labels.shape[1] else []
    said = found if num_classes is None else list(num_classes)
    if len(found) != len(said) or any(there > most for there, most in zip(found, said, strict=True)):
        there = f"labels with {found} classes" if found else "no labels"
        raise DataError(f"dataset.num_classes={said}, but the images have {there}")
