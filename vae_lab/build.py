"""From a config to objects: everything is built and cross-checked before data is read or a tracker is started."""

import os
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from omegaconf import DictConfig, OmegaConf

from vae_lab.checkpoints import DurableCheckpointIO
from vae_lab.data import ImageData
from vae_lab.instantiate import instantiate
from vae_lab.module import LitVAE
from vae_lab.preemption import Preemption
from vae_lab.record import Record
from vae_lab.runs import MetricsFile
from vae_lab.trackers import WandbTracker
from vae_lab.vae import VAE

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "mixed")


class Experiment(NamedTuple):
    """Everything a run needs, built but not started."""

    data: ImageData
    lit: LitVAE
    trainer: Trainer
    record: Record


def build(cfg: DictConfig, preemption: Preemption) -> Experiment:
    """Build and cross-check every object; no data is read, no tracker started.

    Raises:
        ValueError: naming the setting that is wrong.
    """
    if not torch.cuda.is_available():
        # Lightning's import sets this to 1, and every step of a fused optimizer then looks for the GPU's driver anew.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    if not isinstance(cfg.seed, int) or not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be a whole number in [0, 2**32), got {cfg.seed!r}")
    check_trainer(cfg.trainer)
    check_model_keys(cfg.model)
    trainer_cfg = cfg.trainer.copy()
    trainer_cfg.precision = choose_precision(cfg.trainer)
    check_fused(cfg, trainer_cfg.precision)
    data = build_data(cfg)
    seed_everything(cfg.seed, verbose=False)  # the initial weights
    vae = build_vae(cfg)
    if cfg.compile:
        vae.encoder.compile()
        vae.decoder.compile()
    objective = instantiate(cfg.objective, "objective")
    schedule = instantiate(cfg.optimizer.schedule, "optimizer.schedule") or None
    settings = [key for key in cfg.optimizer if key != "schedule"]
    optimizer = instantiate(OmegaConf.masked_copy(cfg.optimizer, settings), "optimizer")
    lit = LitVAE(vae, objective, optimizer, schedule, cfg.optimizer.lr, cfg.seed)
    metrics = MetricsFile(cfg.run_dir)
    record = Record(metrics)
    callbacks = build_all(cfg.callbacks, "callbacks")
    loggers = build_all(cfg.logger, "logger")
    if data.val_size == 0 and any(isinstance(callback, EarlyStopping) for callback in callbacks):
        raise ValueError("dataset.val_size must be > 0 with callbacks=early_stopping, got 0")
    for tracker in (logger for logger in loggers if isinstance(logger, WandbTracker)):
        tracker.check()
    trainer = instantiate(
        trainer_cfg,
        "trainer",
        default_root_dir=cfg.run_dir,
        callbacks=[record, *callbacks, preemption],
        logger=[metrics, *loggers],
        plugins=[DurableCheckpointIO()],
        enable_checkpointing=True,
        enable_progress_bar=False,
    )
    return Experiment(data, lit, trainer, record)


def build_vae(cfg: DictConfig) -> VAE:
    """Build the model a config describes.

    Raises:
        ValueError: if the parts do not fit each other or the images.
    """
    if not isinstance(cfg.latent_dim, int) or cfg.latent_dim < 1:
        raise ValueError(f"latent_dim must be a whole number >= 1, got {cfg.latent_dim!r}")
    channels, height, width = cfg.dataset.image_shape
    posterior = instantiate(cfg.posterior, "posterior")
    likelihood = instantiate(cfg.loss.likelihood, "loss.likelihood")
    encoder = instantiate(
        cfg.model.encoder,
        "model.encoder",
        image_shape=(channels, height, width),
        out_features=cfg.latent_dim * posterior.params_per_latent,
    )
    decoder = instantiate(
        cfg.model.decoder,
        "model.decoder",
        latent_dim=cfg.latent_dim,
        image_shape=(channels * likelihood.params_per_channel, height, width),
    )
    return VAE(encoder, decoder, posterior, likelihood, cfg.latent_dim, (channels, height, width))


def build_data(cfg: DictConfig) -> ImageData:
    """Build the data module a config describes; nothing is read yet.

    Raises:
        ValueError: if a setting is out of range.
    """
    source = instantiate(cfg.dataset.source, "dataset.source")
    keys = ("image_shape", "batch_size", "binarize", "flip", "val_size", "test_size", "split_seed", "num_workers")
    return ImageData(source, **{key: cfg.dataset[key] for key in keys}, seed=cfg.seed)


def build_all(group: DictConfig, key: str) -> list:
    """Build every member of a group that is not null.

    Raises:
        ValueError: if a member has settings but no class, as when an experiment changes what the option lacks.
    """
    members = {name: member for name, member in instantiate(group, key).items() if member is not None}
    for name, member in members.items():
        if isinstance(member, dict):
            raise ValueError(f"{key}.{name} has settings, but the chosen {key}= option has no {name}; remove them")
    return list(members.values())


def check_trainer(trainer: DictConfig) -> None:
    """Refuse what Lightning accepts but this program cannot do.

    Raises:
        ValueError: naming the key and the value.
    """
    for key, least in (("max_epochs", 1), ("max_steps", 1), ("log_every_n_steps", 1), ("accumulate_grad_batches", 1)):
        value = trainer[key]
        if value in (None, -1) and key.startswith("max_"):
            continue
        if not isinstance(value, int) or value < least:
            raise ValueError(f"trainer.{key} must be a whole number >= {least}, got {value!r}")
    if trainer.precision not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {trainer.precision!r}")
    if trainer.overfit_batches:
        raise ValueError("trainer.overfit_batches is not supported; use trainer.limit_train_batches")
    if trainer.limit_train_batches == 0:
        raise ValueError("trainer.limit_train_batches must be > 0, got 0")


def check_model_keys(model: DictConfig) -> None:
    """Refuse keys that neither network reads, such as those that an experiment sets for another model.

    Raises:
        ValueError: naming the keys.
    """
    read = OmegaConf.to_yaml(OmegaConf.masked_copy(model, ["encoder", "decoder"]))
    unread = [f"model.{key}" for key in model if key not in ("encoder", "decoder") and f"${{model.{key}}}" not in read]
    if unread:
        raise ValueError(f"{', '.join(unread)} mean nothing to this model; they may belong to another model= option")


def choose_precision(trainer: DictConfig) -> str:
    """Translate `mixed` into the best precision the device has, and refuse what it cannot do.

    Raises:
        ValueError: if 16-mixed is asked for without a GPU.
    """
    on_gpu = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if trainer.precision == "mixed":
        if not on_gpu:
            return "32-true"
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if trainer.precision == "16-mixed" and not on_gpu:
        raise ValueError("trainer.precision=16-mixed needs a GPU; use bf16-mixed, 32-true or mixed")
    return trainer.precision


def check_fused(cfg: DictConfig, precision: str) -> None:
    """Refuse the one combination in which a fused optimizer cannot clip gradients.

    Raises:
        ValueError: if gradients are both scaled for float16 and clipped.
    """
    if cfg.optimizer.get("fused") and precision == "16-mixed" and cfg.trainer.gradient_clip_val:
        raise ValueError("trainer.gradient_clip_val with precision 16-mixed needs optimizer.fused=false")
