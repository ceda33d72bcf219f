"""Hydra's sweeper `optuna`: a search in which each trial is a job of the sweep.

It is here because Hydra takes plugins from the package `hydra_plugins` only.
"""

import math
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vae_lab.errors import SweepError
from vae_lab.runs.files import durable_open, read_json
from vae_lab.runs.resume import quote


class OptunaSweeper(Sweeper):
    """Draws the jobs of a sweep from an Optuna study, until it has so many trials.

    The study is kept in the sweep's folder. The same command goes on where it was: trials that a kill has interrupted
    continue in their folders, and the rest up to `n_trials` is drawn.

    Args:
        sampler: config of a class of `optuna.samplers`; its seed moves on with the trials that there are.
        pruner: config of a class of `optuna.pruners`; None ends no trial early.
        direction: "minimize" or "maximize", or one of them for each metric.
        metrics: keys of `result.json`; None is the monitored metric's best value.
        n_trials: in all, >= 1.
        n_jobs: at a time; None is as many as the launcher runs.
        max_failure_rate: of a batch; a larger share of failed trials ends the search.
        storage: see `vae_lab.sweep.study.storage_url`.
        study_name: None is the name of the sweep, or "search" where the storage is in the sweep's folder.
        params: overrides to draw from, as a dict.

    Raises:
        ValueError: if one of these is something else, or Optuna is not installed.
    """

    def __init__(
        self,
        sampler: DictConfig,
        pruner: DictConfig | None,
        direction: str | list[str],
        metrics: list[str] | None,
        n_trials: int,
        n_jobs: int | None,
        max_failure_rate: float,
        storage: str | None,
        study_name: str | None,
        params: DictConfig | None,
    ):
        try:
            import optuna
        except ImportError as error:
            raise ValueError(f"hydra/sweeper=optuna needs the package optuna ({error}): pip install optuna") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.directions = [direction] if isinstance(direction, str) else list(direction)
        if wrong := [d for d in self.directions if d not in ("minimize", "maximize")]:
            raise ValueError(f"hydra.sweeper.direction must be minimize or maximize, got {wrong[0]!r}")
        self.metrics = list(metrics) if metrics else None
        if len(self.directions) != len(self.metrics or [None]):
            raise ValueError(
                f"hydra.sweeper.direction must have an entry for each of hydra.sweeper.metrics, got {direction}"
            )
        if pruner and len(self.directions) > 1:
            raise ValueError("hydra/sweeper/pruner must be none where there are several metrics")
        if not (isinstance(n_trials, int) and n_trials >= 1):
            raise ValueError(f"hydra.sweeper.n_trials must be a whole number >= 1, got {n_trials!r}")
        self.sampler, self.pruner = sampler, pruner
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.max_failure_rate = max_failure_rate
        self.storage, self.study_name = storage, study_name
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and build the launcher."""
        from vae_lab.sweep.study import IN_FOLDER, STORAGE, storage_url

        self.config = config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.folder = Path(config.hydra.sweep.dir).resolve()
        self.owns_storage = self.storage in IN_FOLDER
        self.study_name = self.study_name or ("search" if self.owns_storage else self.folder.name)
        os.environ[STORAGE] = storage_url(self.storage, self.folder)  # before the launcher starts processes
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.n_jobs = self.n_jobs or getattr(self.launcher, "room", 1)

    def sweep(self, arguments: list[str]) -> None:
        """Search.

        Args:
            arguments: of the command, fixed ones and those to draw from.

        Raises:
            SweepError: if too many trials of a batch failed, or none was completed.
        """
        from vae_lab.sweep.study import check_space, distribution

        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        given = self.parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        overrides = {override.get_key_element(): override for override in given}  # the command has the last word
        space = {key: found for key, override in overrides.items() if (found := distribution(override)) is not None}
        fixed = [override.input_line for key, override in overrides.items() if key not in space]
        if not space:
            raise ValueError(
                "a search needs something to vary: hydra.sweeper.params, or key=interval(0,1) and the like"
            )
        study = self._open_study()
        check_space(study, space)
        while batch := self._next_trials(study, space):
            jobs = [[*fixed, *drawn(trial.params), *self._watched(trial)] for trial in batch]
            returns = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            ended = [pair for pair in zip(batch, returns, strict=True) if pair[1].cfg is not None]  # the others wait
            succeeded = [self._tell(study, trial, returned) for trial, returned in ended]
            if False in succeeded and self.config.sweep.on_failure == "stop":
                raise SweepError("a trial failed, and sweep.on_failure=stop; the same command goes on")
            if succeeded.count(False) > self.max_failure_rate * len(batch):
                raise SweepError(
                    f"{succeeded.count(False)} of {len(batch)} trials of a batch failed, more than "
                    f"hydra.sweeper.max_failure_rate={self.max_failure_rate} allows"
                )
        self._report(study)

    def _open_study(self) -> Any:
        """Make the study, or go on with it.

        Raises:
            ValueError: if its storage is no URL, or it is there with other directions or metrics, which Optuna would
                keep without a word.
            RunError: if its storage is damaged.
        """
        import optuna

        from vae_lab.sweep.study import STORAGE, build_part, check_aims, open_storage, storage_errors

        sampler, pruner = (OmegaConf.to_container(part) if part else {} for part in (self.sampler, self.pruner))
        pruner = build_part("pruners", pruner, "hydra.sweeper.pruner") if pruner else optuna.pruners.NopPruner()
        storage = open_storage(os.environ[STORAGE])
        with storage_errors(os.environ[STORAGE]):
            study = optuna.create_study(
                study_name=self.study_name,
                storage=storage,
                directions=self.directions,
                load_if_exists=True,
                pruner=pruner,
            )
            num_trials = len(study.get_trials(deepcopy=False))
        monitor = OmegaConf.select(self.config, "callbacks.checkpoints.monitor")
        check_aims(study, self.directions, self.metrics or [f"best_value of {monitor}"])
        seed = sampler.get("seed")
        moved = {} if seed is None else {"seed": seed + num_trials}
        study.sampler = build_part("samplers", sampler, "hydra.sweeper.sampler", **moved)
        return study

    def _next_trials(self, study: Any, space: dict[str, Any]) -> list[Any]:
        """Those that a kill has interrupted, then new ones."""
        import optuna

        trials = study.get_trials(deepcopy=False)
        unfinished = [trial for trial in trials if not trial.state.is_finished()]
        name = self.folder.name
        mine = [trial for trial in unfinished if self.owns_storage or trial.user_attrs.get("sweep") == name]
        batch = [optuna.Trial(study, trial._trial_id) for trial in mine[: self.n_jobs]]
        for _ in range(min(self.n_jobs - len(batch), self.n_trials - len(trials))):
            trial = study.ask(space)
            trial.set_user_attr("sweep", name)
            batch.append(trial)
        return batch

    def _watched(self, trial: Any) -> list[str]:
        if not self.pruner:
            return []
        monitor = self.config.callbacks.checkpoints.monitor
        node = "+callbacks.pruning."
        return [f"{node}_target_=vae_lab.sweep.pruning.Pruning", f"{node}trial={trial.number}",
                f"{node}study_name={quote(self.study_name)}", f"{node}monitor={monitor}"]  # fmt: skip

    def _tell(self, study: Any, trial: Any, returned: JobReturn) -> bool:
        """Record how a trial ended; whether it did well."""
        from optuna.trial import TrialState

        values = self._values(returned)
        if study.get_trials(deepcopy=False)[trial.number].user_attrs.get("pruned"):
            study.tell(trial.number, state=TrialState.PRUNED)
        elif values is None:
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            study.tell(trial.number, values)
        return values is not None

    def _values(self, returned: JobReturn) -> list[float] | None:
        if returned.status != JobStatus.COMPLETED:
            return None
        result = read_json(Path(returned.hydra_cfg.hydra.runtime.output_dir) / "result.json")
        metrics = self.metrics or ["best_value"]
        if missing := [metric for metric in metrics if metric not in result]:
            raise ValueError(f"hydra.sweeper.metrics: result.json has no {missing[0]}, only {', '.join(result)}")
        values = [result[metric] for metric in metrics]
        return values if all(value is not None and math.isfinite(value) for value in values) else None

    def _report(self, study: Any) -> None:
        """Write `optimization_results.yaml`, as Hydra's own plugin does: the best trial, or the Pareto set."""
        from optuna.trial import TrialState

        counts = {state.name.lower(): len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState}
        told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        if not counts["complete"]:
            raise SweepError(f"no trial was completed: {told}")
        if len(self.directions) == 1:
            content = {"name": "optuna", "best_params": study.best_params, "best_value": study.best_value}
            log_line = f"best of {told}: trial {study.best_trial.number}, {study.best_value:.6g}, {study.best_params}"
        else:
            solutions = [{"params": trial.params, "values": trial.values} for trial in study.best_trials]
            content = {"name": "optuna", "solutions": solutions}
            log_line = f"{len(solutions)} trials on the Pareto front, of {told}"
        with durable_open(self.folder / "optimization_results.yaml") as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(content)).encode())
        print(f"{log_line} ({self.folder / 'optimization_results.yaml'})", file=sys.stderr)


def drawn(params: dict[str, Any]) -> list[str]:
    """What Optuna has drawn, as overrides."""
    return [f"{key}={value}" for key, value in params.items()]
