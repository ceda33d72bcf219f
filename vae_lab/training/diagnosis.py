"""What failures inside torch mean for the user: the setting to change instead of the operation that failed."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from vae_lab.errors import OutOfMemoryError, RunError

# Allocators have no exception type in common: CUDA, CPU, cuBLAS, MPS, and the kernel's words.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "ALLOC_FAILED")


@contextmanager
def diagnosed(cfg: DictConfig) -> Iterator[None]:
    """Raise failures of the block in the user's terms.

    Raises:
        OutOfMemoryError, RunError, ValueError: see `diagnose`; other exceptions pass as they are.
    """
    try:
        yield
    except Exception as error:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises wherever a dead worker is noticed
        found = diagnose(error, cfg)
        if found is error:
            raise
        raise found from error


def diagnose(error: Exception, cfg: DictConfig) -> Exception:
    """The failure in the user's terms, or the exception itself where there is nothing to add."""
    text = str(error)
    if is_out_of_memory(error):
        return OutOfMemoryError(f"out of memory ({first_line(error)}): {smaller_batch(cfg)}")
    lost_contact = isinstance(error, ConnectionError | EOFError) and cfg.dataset.num_workers > 0
    if lost_contact or "DataLoader worker" in text:
        return RunError(
            f"a worker of dataset.num_workers={cfg.dataset.num_workers} died ({first_line(error)}), often for want of "
            f"memory; continue with: vae-lab resume={cfg.run_dir} dataset.num_workers=0"
        )
    if isinstance(error, MisconfigurationException):  # Lightning's word for a setting
        return ValueError(re.sub(r"`(?=(limit|val_check|max|min)_)", "`trainer.", text))
    return error


def is_out_of_memory(error: Exception) -> bool:
    """Whether that is what an exception says, in one of the many ways."""
    says_so = any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and says_so


def smaller_batch(cfg: DictConfig) -> str:
    """Which settings need less memory, the best first."""
    size, accumulated = cfg.dataset.batch_size, cfg.trainer.accumulate_grad_batches
    if size == 1:
        return "dataset.batch_size is 1 already; choose a smaller model or dataset.image_size"
    return (
        f"in a new run try dataset.batch_size={size // 2} trainer.accumulate_grad_batches={2 * accumulated}, "
        f"which has the same gradients as dataset.batch_size={size}, or a smaller model"
    )


def first_line(error: Exception) -> str:
    """The first line of a message, or the exception's name where there is none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
