"""What the parts of an experiment must be to each other, found out before data is read."""

import math
import sys
from collections.abc import Callable

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, Timer
from omegaconf import DictConfig, OmegaConf

from vae_lab.vae import VAE


def names_of_metrics(vae: VAE, objective: Callable) -> set[str]:
    """The keys of what an epoch logs, found by evaluating the untrained model on two black images.

    Raises:
        ValueError: if that fails, because the parts do not fit each other.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            terms = objective(vae.eval(), torch.zeros(2, *vae.image_shape), None)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        parts = (objective, vae.posterior, vae.likelihood, vae.encoder, vae.decoder)
        names = ", ".join(type(part).__name__ for part in parts)
        message = " ".join(str(error).split())
        raise ValueError(f"the model of {names} cannot be evaluated: {message}") from error
    vae.train()
    evaluation = ("mse", "active_units") if vae.posterior.is_stochastic else ("mse",)  # what LitVAE adds
    return {f"{stage}/{key}" for stage in ("train", "val") for key in terms} | {f"val/{key}" for key in evaluation}


def check_monitors(cfg: DictConfig, callbacks: dict[str, Callback], metrics: set[str]) -> None:
    """Refuse to monitor what will not be logged.

    Raises:
        ValueError: naming the callback and what there is.
    """
    for name, callback in callbacks.items():
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in metrics and not are_foreign(callbacks):
            known = ", ".join(sorted(metric for metric in metrics if metric.startswith("val/")))
            raise ValueError(f"callbacks.{name}.monitor must be one of {known}, got {monitor!r}")
        if isinstance(callback, EarlyStopping) and monitor.startswith("val/"):
            check_validates(cfg, f"callbacks.{name}", monitor)


def check_validates(cfg: DictConfig, key: str, monitor: str) -> None:
    """Refuse early stopping where no validation would tell it anything.

    Raises:
        ValueError: naming the setting.
    """
    for size in ("dataset.val_size", "trainer.limit_val_batches"):
        if OmegaConf.select(cfg, size) == 0:
            raise ValueError(f"{size} must be > 0 with {key}, which watches {monitor}, got 0")
    at_epoch_end = OmegaConf.select(cfg, f"{key}.check_on_train_epoch_end")
    if at_epoch_end is not False and cfg.resume in (None, "auto"):  # trainer.max_steps may end an epoch without one
        raise ValueError(f"{key}.check_on_train_epoch_end must be false to watch {monitor}, got {at_epoch_end}")


def check_end(trainer: DictConfig, callbacks: dict[str, Callback], schedule: Callable | None) -> None:
    """Refuse training that nothing would end, and a schedule that needs to know the end where nothing tells.

    Raises:
        ValueError: naming what can end it.
    """
    if any(trainer[key] not in (None, -1) for key in ("max_epochs", "max_steps")):
        return
    has_ender = any(isinstance(callback, EarlyStopping | Timer) for callback in callbacks.values())
    if trainer.max_time is None and not has_ender and not are_foreign(callbacks):
        raise ValueError(
            f"nothing ends the training, got trainer.max_epochs={trainer.max_epochs} and trainer.max_steps="
            f"{trainer.max_steps}; set one of them, or trainer.max_time, or callbacks=early_stopping"
        )
    if schedule is not None:
        schedule(sys.maxsize, math.inf)  # refuses, if it needs an end


def are_foreign(callbacks: dict[str, Callback]) -> bool:
    """Whether some are a user's own, which may log metrics and end the training themselves."""
    return any(not type(callback).__module__.startswith(("vae_lab.", "lightning.")) for callback in callbacks.values())
