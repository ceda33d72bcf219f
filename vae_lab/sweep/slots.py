"""How a machine is shared out among the jobs that run at the same time."""

import os
from typing import NamedTuple

from omegaconf import DictConfig


class Slot(NamedTuple):
    """Room for one job: CPU threads, and GPUs as for CUDA_VISIBLE_DEVICES (None: none, or all of them)."""

    threads: int
    device: str | None


def share_out(trainer: DictConfig, n_jobs: int | None, jobs_per_device: int) -> list[Slot]:
    """The slots of this machine.

    Without GPUs there is one for each core that this process may use, or as many as a job's processes allow. With GPUs
    there is one for each group of as many of them as a job wants.

    Args:
        trainer: that the command sets: its devices and accelerator.
        n_jobs: how many slots, >= 1; None is as above.
        jobs_per_device: how many slots there are for the same GPUs, >= 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else None
    gpus = visible_gpus() if trainer.accelerator in ("auto", "gpu", "cuda") else []
    if gpus:
        size = wanted or len(gpus)
        groups = [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)] or [",".join(gpus)]
        devices = groups * jobs_per_device if n_jobs is None else [groups[i % len(groups)] for i in range(n_jobs)]
    else:
        devices = [None] * (n_jobs or max(1, cores // (wanted or 1)))
    threads = max(1, cores // (len(devices) * (1 if gpus else wanted or 1)))
    return [Slot(threads, device) for device in devices]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES would name them."""
    import torch  # only here, a second or two

    if not torch.cuda.device_count():  # asks the driver's library, starts nothing
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
