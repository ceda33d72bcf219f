"""What failures inside torch mean for the user: the setting to change instead of the operation that failed."""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from vae_lab.errors import OutOfMemoryError, RunError, one_line

# Allocators have no exception type in common: CUDA, CPU, cuBLAS, MPS, and the kernel's words.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Say what needs less memory, where the block finds that there is not enough.

    Raises:
        OutOfMemoryError: with the advice; other exceptions pass as they are.
    """
    try:
        yield
    except Exception as error:
        says_so = isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
        if not says_so and not isinstance(error, MemoryError):
            raise
        raise OutOfMemoryError(f"out of memory ({one_line(error)}): {advice}") from error


@contextmanager
def diagnosed(cfg: DictConfig) -> Iterator[None]:
    """Raise failures of the block in the user's terms, where there is something to add.

    Raises:
        OutOfMemoryError: naming the settings that need less memory.
        RunError: if a data worker died; with the command that continues.
        ValueError: if Lightning calls a setting misconfigured.
    """
    size, accumulated = cfg.dataset.batch_size, cfg.trainer.accumulate_grad_batches
    smaller = (
        f"in a new run try dataset.batch_size={size // 2} trainer.accumulate_grad_batches={2 * accumulated}, "
        f"which has the same gradients as dataset.batch_size={size}, or a smaller model"
    )
    if size == 1:
        smaller = "dataset.batch_size is 1 already; choose a smaller model or dataset.image_size"
    try:
        with memory_advice(smaller):
            yield
    except Exception as error:
        if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises wherever a dead worker is noticed
        lost_contact = isinstance(error, ConnectionError | EOFError) and cfg.dataset.num_workers > 0
        if lost_contact or "DataLoader worker" in str(error):
            raise RunError(
                f"a worker of dataset.num_workers={cfg.dataset.num_workers} died ({one_line(error)}), often for want "
                f"of memory; continue with: vae-lab resume={cfg.run_dir} dataset.num_workers=0"
            ) from error
        if isinstance(error, MisconfigurationException):  # Lightning's word for a setting
            raise ValueError(re.sub(r"`(?=(limit|val_check|max|min)_)", "`trainer.", str(error))) from error
        raise
