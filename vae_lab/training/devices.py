"""What the arguments of Lightning's Trainer may be here, together and on this machine: limits, device, precision."""

import os
import re

import torch
from lightning.pytorch.accelerators import MPSAccelerator
from omegaconf import DictConfig, OmegaConf

# Not those that spawn or fork, whose first process has no result to record, nor those that take a model to pieces.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "mixed")


def check_trainer(trainer: DictConfig) -> None:
    """Refuse what Lightning accepts but this program cannot do.

    Raises:
        ValueError: naming the key and the value.
    """
    for unit in ("epochs", "steps"):
        least, most = trainer[f"min_{unit}"] or 0, trainer[f"max_{unit}"]
        if most in (None, -1):
            continue
        if most < 1:
            raise ValueError(f"trainer.max_{unit} must be a whole number >= 1, or -1 for no limit, got {most}")
        if least > most:
            raise ValueError(f"trainer.min_{unit} must be <= trainer.max_{unit}={most}, got {least}")
    if trainer.overfit_batches:
        raise ValueError(f"trainer.overfit_batches={trainer.overfit_batches}: use trainer.limit_train_batches instead")
    if trainer.fast_dev_run:
        raise ValueError(f"trainer.fast_dev_run={trainer.fast_dev_run} has no record; use trainer=debug")
    if trainer.use_distributed_sampler:
        raise ValueError("trainer.use_distributed_sampler must be false, got true: the data shards its own epochs")
    if isinstance(trainer.max_time, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", trainer.max_time.strip()):
        raise ValueError(f"trainer.max_time must be DD:HH:MM:SS, got {trainer.max_time!r}")
    for key in ("limit_train_batches", "val_check_interval"):
        if isinstance(trainer[key], int | float) and trainer[key] <= 0:
            raise ValueError(f"trainer.{key} must be > 0, got {trainer[key]}")


def check_devices(trainer: DictConfig) -> None:
    """Refuse devices that this machine does not have, and processes that nobody asked for.

    Raises:
        ValueError: naming the key, the value and what is available.
    """
    available, on_gpu = accelerators(), uses_cuda(trainer)
    if trainer.accelerator not in available:
        names = ", ".join(available)
        raise ValueError(f"trainer.accelerator must be one of {names} on this machine, got {trainer.accelerator!r}")
    if trainer.strategy not in STRATEGIES:
        raise ValueError(f"trainer.strategy must be one of {', '.join(STRATEGIES)}, got {trainer.strategy!r}")
    if trainer.num_nodes != 1:
        raise ValueError(f"trainer.num_nodes must be 1: a run stays on one machine, got {trainer.num_nodes}")
    if trainer.sync_batchnorm and not on_gpu:
        raise ValueError("trainer.sync_batchnorm=true needs GPUs")
    devices = OmegaConf.to_container(trainer, resolve=True)["devices"]
    if isinstance(devices, str) and re.fullmatch(r"-?\d+(,\d+)*", devices):  # "2" or "0,1"
        numbers = [int(number) for number in devices.split(",")]
        devices = numbers if len(numbers) > 1 else numbers[0]
    if devices == "auto":
        return
    if on_gpu:
        number = torch.cuda.device_count()
        is_choice = isinstance(devices, list) and len(set(devices)) == len(devices) > 0
        if not (is_choice and set(devices) <= set(range(number)) or devices in (-1, *range(1, number + 1))):
            raise ValueError(
                f"trainer.devices must be a number of GPUs, at most {number}, or a list of different indices "
                f"from 0 to {number - 1}, got {devices!r}"
            )
        return
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got {devices!r}")
    if devices > 1 and not trainer.strategy.startswith("ddp"):
        raise ValueError(
            f"trainer.devices={devices} on a CPU means {devices} processes; use trainer.devices=1, "
            "or add trainer.strategy=ddp if that is what you want"
        )
    if devices > (most := max(2, os.cpu_count() or 1)):  # two, so that ddp can be tried anywhere
        raise ValueError(f"trainer.devices must be at most {most}, the CPUs of this machine, got {devices}")


def accelerators() -> list[str]:
    """What `trainer.accelerator` may be on this machine."""
    gpus = ["gpu", "cuda"] if torch.cuda.is_available() else ["gpu", "mps"] if MPSAccelerator.is_available() else []
    return ["auto", "cpu", *gpus]


def uses_cuda(trainer: DictConfig) -> bool:
    """Whether the run will be on a GPU of CUDA."""
    return trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def choose_precision(cfg: DictConfig) -> str:
    """Translate `mixed` into the best precision the device has, and refuse what it cannot do.

    Raises:
        ValueError: if the precision is unknown, or 16-mixed is asked for without a GPU.
    """
    precision, on_gpu = cfg.trainer.precision, uses_cuda(cfg.trainer)
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "mixed":
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if has_bf16 else "16-mixed" if on_gpu else "32-true"
    if precision == "16-mixed" and not on_gpu:
        raise ValueError("trainer.precision=16-mixed needs a GPU; use bf16-mixed, 32-true or mixed")
    return precision
