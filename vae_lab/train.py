"""From a config to a trained model, top to bottom: record, build, fit, result."""

import logging
import warnings
from pathlib import Path

from lightning.pytorch.tuner import Tuner
from omegaconf import DictConfig, OmegaConf

from vae_lab.build import Experiment, build
from vae_lab.checkpoints import Checkpoints, load_checkpoint
from vae_lab.preemption import Preemption
from vae_lab.result import print_result
from vae_lab.runs import Run
from vae_lab.trackers import WandbTracker

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Run one experiment in its folder, or continue it there.

    Args:
        cfg: the composed config.

    Returns:
        The monitored metric's best value, for a sweeper to optimise; None if nothing was validated.

    Raises:
        ValueError: if a setting is wrong; nothing was downloaded or logged then.
        DataError, NumericsError, RunError, Preempted: see `vae_lab.errors`.
    """
    quiet_lightning()
    run = Run(cfg.run_dir)
    checkpoint = run.last_checkpoint if cfg.resume else None
    if checkpoint is not None:
        check_goes_on(cfg, checkpoint)
    with Preemption() as preemption, run.recording():
        experiment = build(cfg, preemption)
        if cfg.resume:
            run.write_config(cfg)
            if checkpoint is None:
                log.warning("%s has no checkpoint yet: starting from the beginning", cfg.resume)
                experiment.record.metrics.truncate(0)
        trackers = [logger for logger in experiment.trainer.loggers if isinstance(logger, WandbTracker)]
        exit_code = 1
        try:
            for tracker in trackers:
                tracker.log_config(OmegaConf.to_container(cfg, resolve=True))
            fit(cfg, experiment, checkpoint)
            result = collect_result(experiment)
            run.write_result(result)
            for tracker in trackers:
                tracker.summarize(result)
            exit_code = 0
        finally:
            for tracker in trackers:
                tracker.finish(exit_code)
    if experiment.trainer.is_global_zero:
        print_result(run.folder, result)
    return result.get("best_value")


def check_goes_on(cfg: DictConfig, checkpoint: Path) -> None:
    """Refuse to continue to a point that a run has passed already.

    Raises:
        ValueError: naming the limit and how far the run is.
    """
    done = load_checkpoint(checkpoint)
    for key, reached in (("max_epochs", done["vae_lab"]["epoch"]), ("max_steps", done["global_step"])):
        limit = cfg.trainer[key]
        if limit not in (None, -1) and limit < reached:
            raise ValueError(f"trainer.{key} must be >= {reached}, where this run is already, got {limit}")


def fit(cfg: DictConfig, experiment: Experiment, checkpoint: Path | None) -> None:
    """Train, from a checkpoint if there is one, and make sure that the last weights are validated."""
    data, lit, trainer, _ = experiment
    if cfg.find_lr and checkpoint is None:
        found = Tuner(trainer).lr_find(lit, datamodule=data, update_attr=False).suggestion()
        if found is None:
            raise ValueError("find_lr found nothing: it needs about 100 batches; raise trainer.max_epochs")
        lit.lr = found
        log.info("learning rate found: %.3g", lit.lr)
    trainer.fit(lit, data, ckpt_path=checkpoint, weights_only=True)
    has_validation = len(data.splits["val"]) > 0 and cfg.trainer.limit_val_batches != 0
    if has_validation and 0 < trainer.global_step != lit.validated_at:
        trainer.validate(lit, data, verbose=False)


def collect_result(experiment: Experiment) -> dict:
    """Final values: the metrics of the best checkpoint, or the last ones where none was kept."""
    trainer = experiment.trainer
    result = experiment.record.result(trainer, experiment.lit)
    best = next((c.best for c in trainer.callbacks if isinstance(c, Checkpoints)), {})
    if best:
        result |= {"best_value": best["value"], "best_step": best["step"], "best_epoch": best["epoch"]}
    metrics = best.get("metrics") or {key: float(value) for key, value in trainer.callback_metrics.items()}
    return {**metrics, **result, "lr": experiment.lit.lr}


def quiet_lightning() -> None:
    """Silence advice that does not hold here; everything else still speaks."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec",  # torch speaking to Lightning
        ".*is not supported by the model summary",  # its size in MB is only an estimate
        ".*sync_dist=True",  # the means are summed over processes before they are logged
        ".*across ranks is zero",  # dataset.val_size=0 is a choice
        ".*does not have many workers",  # images are in memory
        ".*your dataloader is not resumable",  # the sampler starts at the right place itself
        ".*Set a lower value for log_every_n_steps",  # epoch means are logged in any case
    ):
        warnings.filterwarnings("ignore", message=message)
