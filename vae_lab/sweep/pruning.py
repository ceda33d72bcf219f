"""Ends a trial of a search early; beside `search.py`, which every command imports, because Lightning takes seconds."""

import logging
import os

from lightning.pytorch import Callback, LightningModule, Trainer

from vae_lab.sweep.search import STORAGE, open_storage

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Tells the study of a search how a trial goes, and ends it where the study's pruner says so.

    A trial that is continued outside of its search is never ended.

    Args:
        trial: its number in the study.
        study_name: of the study.
        monitor: the metric.
    """

    def __init__(self, trial: int, study_name: str, monitor: str):
        self.number, self.study_name, self.monitor = trial, study_name, monitor
        self.trial = None

    def on_fit_start(self, trainer: Trainer, lit: LightningModule) -> None:
        if STORAGE not in os.environ or not trainer.is_global_zero:
            return
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(study_name=self.study_name, storage=open_storage(os.environ[STORAGE]))
        frozen = study.get_trials(deepcopy=False)[self.number]
        self.trial = optuna.Trial(study, frozen._trial_id) if not frozen.state.is_finished() else None

    def on_validation_end(self, trainer: Trainer, lit: LightningModule) -> None:
        value, epoch = trainer.callback_metrics.get(self.monitor), lit.epochs_begun
        if self.trial is None or value is None or trainer.sanity_checking:
            return
        self.trial.report(float(value), epoch - 1)  # Optuna counts from 0
        if self.trial.should_prune():
            log.info("pruned: %s=%.4g at epoch %d is no match for other trials", self.monitor, value, epoch)
            self.trial.set_user_attr("pruned", True)
            trainer.should_stop = True
