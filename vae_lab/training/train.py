"""From a config to a trained model, top to bottom: record, build, fit, result."""

import logging
import math
import warnings
from datetime import timedelta
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.tuner import Tuner
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.check import check_settings
from vae_lab.config.instantiate import targets
from vae_lab.config.nested import lookup
from vae_lab.config.saved import load_saved
from vae_lab.config.secrets import refuse_written_secrets
from vae_lab.loggers.wandb import WandbLogger
from vae_lab.runs.checkpoints import Checkpoints, check_finite, load_checkpoint, newest_checkpoint
from vae_lab.runs.continuation import check_continuation
from vae_lab.runs.folder import RunFolder
from vae_lab.runs.resume import answer_if_complete, continues_run
from vae_lab.runs.signals import Preemption
from vae_lab.runs.trained import initialize, split_checkpoint
from vae_lab.training.build import OURS, READERS, Experiment, build
from vae_lab.training.devices import check_trainer
from vae_lab.training.diagnosis import diagnosed
from vae_lab.training.health import Health
from vae_lab.training.result import next_commands, print_result

log = logging.getLogger(__name__)


def train(cfg: DictConfig, tells: bool = True) -> float | None:
    """Run one experiment in its folder, or continue it there.

    Args:
        cfg: the composed config.
        tells: whether to print the result and what to type next.

    Returns:
        The monitored metric's best value, for a sweeper to optimise; None if nothing was validated.

    Raises:
        ValueError: if a setting is wrong; nothing was downloaded or logged then.
        DataError, NumericsError, RunError, Preempted: see `vae_lab.errors`.
    """
    quiet_lightning()
    refuse_written_secrets(OmegaConf.to_container(cfg))
    if (done := answer_if_complete(cfg)) is not None:
        return done.get("best_value")
    continues = continues_run(cfg)
    run = RunFolder(cfg.run_dir)
    with run.locked(), run.train_log(), Preemption() as preemption, preemption.first():
        run.check_start(continues)
        checkpoint = find_checkpoint(run, cfg) if continues else None
        if checkpoint is None and cfg.resume:
            log.warning("%s has no checkpoint yet: starting from the beginning", run.folder)
        with run.recording(), preemption.first(), diagnosed(cfg):
            saved = {"config": cfg.copy()}
            saved["config"].resume = None
            if HydraConfig.initialized() and not continues:
                saved |= {"overrides": HydraConfig.get().overrides.task, "hydra": HydraConfig.instance().cfg}
                saved["choices"] = HydraConfig.get().runtime.choices  # the option of every group, for comparisons
            run.write_config(**saved)
            experiment = build(cfg, preemption)
            if checkpoint is None:
                experiment.stopwatch.truncate(0)
                if cfg.get("init"):  # which a run from before that key does not have
                    log.info(initialize(experiment.lit.vae, cfg.init))
            else:
                check_continuation(experiment.lit, experiment.trainer, checkpoint)
            experiment.data.setup("fit")  # before W&B hears of a run that has no images
            run.record_images(experiment.data.fingerprint)
            trackers = [logger for logger in experiment.trainer.loggers if isinstance(logger, WandbLogger)]
            exit_code = 1
            try:
                for tracker in trackers:
                    told = OmegaConf.to_container(cfg, resolve=True) | {"images": experiment.data.fingerprint}
                    if "choices" in saved:
                        told["choices"] = OmegaConf.to_container(saved["choices"])
                    tracker.log_config(told)
                    tracker.summarize(dict.fromkeys(run.result))  # of an end that is no longer the end
                fit(cfg, experiment, checkpoint)
                result = collect_result(experiment)
                run.write_result(result)
                for tracker in trackers:
                    tracker.summarize(result)
                exit_code = 0
            finally:
                for tracker in trackers:
                    tracker.finish(exit_code)
    if tells and experiment.trainer.is_global_zero:
        print_result(run.folder, result, next_commands(run.folder, cfg.trainer))
    return result.get("best_value")


def find_checkpoint(run: RunFolder, cfg: DictConfig) -> Path | None:
    """Where to continue; None for the beginning, where a run was killed before it saved anything.

    Raises:
        ValueError: naming a setting that is wrong, or a limit that the run has passed already.
        RunError: if the checkpoints are damaged or gone.
    """
    check_settings(cfg, READERS)
    check_trainer(cfg.trainer)
    checkpoint = newest_checkpoint(run.folder / "checkpoints")
    if checkpoint is None:
        saves = any(target.endswith(".Checkpoints") for _, target in targets(OmegaConf.to_container(cfg.callbacks)))
        run.check_start_again(saves)
        return None
    done = load_checkpoint(checkpoint)
    _, facts = split_checkpoint(done, checkpoint)
    for key, reached in (("max_epochs", facts["epoch"]), ("max_steps", done["global_step"])):
        limit = cfg.trainer[key]
        if limit not in (None, -1) and limit < reached:
            raise ValueError(f"trainer.{key} must be >= {reached}, where this run is already, got {limit}")
    took = lookup(done, "callbacks.Timer.time_elapsed.train")
    has_changed = cfg.trainer.max_time != load_saved(run.folder).trainer.get("max_time")  # else it has ended there
    if has_changed and isinstance(took, float) and seconds_of(cfg.trainer.max_time) < took:
        raise ValueError(
            f"trainer.max_time must be >= {math.ceil(took)} s, which this run took so far, got {cfg.trainer.max_time}"
        )
    return checkpoint


def seconds_of(max_time: str | DictConfig | None) -> float:
    """The seconds of `trainer.max_time`."""
    if isinstance(max_time, str):
        max_time = dict(zip(("days", "hours", "minutes", "seconds"), map(int, max_time.split(":")), strict=True))
    return timedelta(**max_time).total_seconds() if max_time else math.inf


def fit(cfg: DictConfig, experiment: Experiment, checkpoint: Path | None) -> None:
    """Train, from a checkpoint if there is one, validate the last weights, and let every callback close the run.

    Raises:
        ValueError: if `find_lr` finds nothing.
        NumericsError: if a weight is not finite.
    """
    data, lit, trainer, _ = experiment
    if cfg.find_lr and checkpoint is None:
        # Lightning searches only where it optimizes by itself.
        lit.automatic_optimization = True
        vars(trainer).update({key: cfg.trainer[key] for key in OURS})
        try:
            found = Tuner(trainer).lr_find(lit, datamodule=data, update_attr=False).suggestion()
        finally:
            lit.automatic_optimization = False
            vars(trainer).update(OURS)
        if found is None:
            raise ValueError("find_lr found nothing: it needs about 100 batches; raise trainer.max_epochs")
        lit.lr = found
        log.info("learning rate found: %.3g", lit.lr)
    trainer.fit(lit, data, ckpt_path=checkpoint, weights_only=True)
    has_validation = len(data.splits["val"]) > 0 and cfg.trainer.limit_val_batches != 0
    if has_validation and 0 < trainer.global_step != lit.validated_at:  # it ended within an epoch
        trainer.validate(lit, data, verbose=False)
    check_finite(trainer, lit)  # where nothing was saved or validated, nobody has looked
    lit.to(trainer.strategy.root_device)  # which Lightning has left
    for callback in trainer.callbacks:  # also of a run that was killed here and has no more batches: not on_train_end
        if hasattr(callback, "on_run_end"):
            callback.on_run_end(trainer, lit)


def collect_result(experiment: Experiment) -> dict:
    """Final values: the metrics of the best checkpoint, or the last ones where none was kept."""
    trainer = experiment.trainer
    result = experiment.stopwatch.result(trainer, experiment.lit)
    best = next((c.best for c in trainer.callbacks if isinstance(c, Checkpoints)), {})
    if best:
        result |= {"best_value": best["value"], "best_step": best["step"], "best_epoch": best["epoch"]}
    metrics = best.get("metrics") or {key: float(value) for key, value in trainer.callback_metrics.items()}
    told = [text for c in trainer.callbacks if isinstance(c, Health) for text in c.warnings.values()]
    result |= {"warnings": told} if told else {}
    return {**metrics, **result, "lr": experiment.lit.lr, "skipped_files": experiment.data.num_skipped}


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
