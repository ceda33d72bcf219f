"""Hydra's sweeper `optuna`: a search in which each trial is a job of the sweep. Optuna is imported only when it begins.

vae-lab -m hydra/sweeper=optuna 'latent_dim=int(interval(2,64))'
"""

import math
import os
import re
import sys
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.explain import quote
from vae_lab.config.secrets import redact
from vae_lab.errors import RunError, SweepError
from vae_lab.metrics.catalogue import find
from vae_lab.runs.files import durable_open, read_json
from vae_lab.sweep.table import format_value, next_command

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

STORAGE = "VAE_LAB_STUDY"  # the variable in which a trial finds its study; a URL may hold a password
OWNER = ".search"  # in the sweep's folder: by which its trials are known in a study that several searches share
JOURNAL_URL = "journal://"  # how the URL of a file begins that is not a database
IN_FOLDER = (None, "journal", "sqlite")  # storages that are files in the sweep's folder
TRIES = 20  # to open a storage whose tables another process makes
OTHER = "begin another with another sweep.name or hydra.sweeper.study_name"


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
        storage: None or "journal" is a file in the sweep's folder, "sqlite" a database there; or a URL of Optuna's,
            or journal:///PATH.
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
        self.metrics = list(metrics) if metrics else None
        if wrong := [d for d in self.directions if d not in ("minimize", "maximize")]:
            raise ValueError(f"hydra.sweeper.direction must be minimize or maximize, got {wrong[0]!r}")
        if len(self.directions) != len(self.metrics or [None]):
            wanted = "must have an entry for each of hydra.sweeper.metrics"
            raise ValueError(f"hydra.sweeper.direction {wanted}, got {direction}")
        if pruner and len(self.directions) > 1:
            raise ValueError("hydra/sweeper/pruner must be none where there are several metrics")
        if not (isinstance(n_trials, int) and n_trials >= 1):
            raise ValueError(f"hydra.sweeper.n_trials must be a whole number >= 1, got {n_trials!r}")
        self.sampler, self.pruner, self.params = sampler, pruner, params or {}
        self.n_trials, self.max_failure_rate = n_trials, max_failure_rate
        self.n_jobs: Any = n_jobs
        self.storage, self.study_name = storage, study_name

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and build the launcher."""
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
        """Search with the overrides of the command; `SweepError` if too many trials failed, or none was completed."""
        if self.config.sweep.longer:
            raise ValueError(
                "a search cannot go on to other limits of training: its study holds what its trials came to"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.folder / "multirun.yaml")
        owner = self.folder / OWNER
        if not owner.exists():
            owner.write_text(uuid.uuid4().hex)
        self.owner = owner.read_text()
        given = self.parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        overrides = {override.get_key_element(): override for override in given}  # the command has the last word
        space = {key: distribution(override) for key, override in overrides.items() if override.is_sweep_override()}
        if not space:
            examples = "hydra.sweeper.params, or key=interval(0,1) and the like"
            raise ValueError(f"a search needs something to vary: {examples}")
        self._check_metrics()
        study = self._open_study()
        check_space(study, space)
        fixed = [override.input_line for key, override in overrides.items() if key not in space]
        if self.pruner:  # it looks at a trial while that trains
            monitor = OmegaConf.select(self.config, "callbacks.checkpoints.monitor")
            pruning = {"_target_": "vae_lab.sweep.pruning.Pruning", "study_name": quote(study.study_name)}
            fixed += [f"+callbacks.pruning.{key}={value}" for key, value in (pruning | {"monitor": monitor}).items()]
        with getattr(self.launcher, "table", nullcontext()):  # one for all batches
            while batch := self._next_trials(study, space):
                jobs = []
                for trial in batch:
                    drawn = trial.params | ({"+callbacks.pruning.trial": trial.number} if self.pruner else {})
                    jobs.append([*fixed, *(f"{key}={value}" for key, value in drawn.items())])
                self.launcher.numbers = [trial.number for trial in batch]  # several searches may share a study
                returns = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
                ended = [
                    pair for pair in zip(batch, returns, strict=True) if pair[1].cfg is not None
                ]  # the others wait
                failed = [self._tell(study, trial, returned) for trial, returned in ended].count(False)
                if failed and self.config.sweep.on_failure == "stop":
                    raise SweepError("a trial failed, and sweep.on_failure=stop; the same command goes on")
                if failed > self.max_failure_rate * len(batch):
                    limit = f"hydra.sweeper.max_failure_rate={self.max_failure_rate}"
                    raise SweepError(f"{failed} of {len(batch)} trials of a batch failed, more than {limit} allows")
        self._report(study)

    def _check_metrics(self) -> None:
        """Refuse to look for what no trial will measure, and for the worst of what has a better side.

        Raises:
            ValueError: naming the metric.
        """
        monitor = OmegaConf.select(self.config, "callbacks.checkpoints.monitor") or "val/loss"
        for metric, direction in zip(self.metrics or [monitor], self.directions, strict=True):
            better = {"lower": "minimize", "higher": "maximize"}.get(str(find(metric).better), direction)
            if better != direction:
                raise ValueError(f"hydra.sweeper.direction must be {better} for {metric}, got {direction}")
        ask = getattr(getattr(self.launcher, "pool", None), "names_of_metrics", None)  # which only this machine's has
        known = ask(self.config) if self.metrics and ask else set()
        facts = [
            m for m in self.metrics or () if "/" not in m and (m.startswith("best_") or find(m).comparable == "always")
        ]
        wrong = [metric for metric in self.metrics or () if metric not in {*known, *facts}]
        if known and wrong:
            shown = ", ".join(sorted(name for name in known if name.startswith("val/")))
            raise ValueError(f"hydra.sweeper.metrics: no trial will measure {wrong[0]}, only {shown} and the like")

    def _open_study(self) -> "Study":
        """Make the study, or go on with it; one that has other aims is refused, which Optuna would keep silently."""
        import optuna
        from optuna.trial import TrialState

        pruner = OmegaConf.to_container(self.pruner) if self.pruner else {}
        pruner = build_part("pruners", pruner, "hydra.sweeper.pruner") if pruner else optuna.pruners.NopPruner()
        try:
            study = optuna.create_study(
                study_name=self.study_name,
                storage=open_storage(os.environ[STORAGE]),
                directions=self.directions,
                load_if_exists=True,
                pruner=pruner,
            )
            trials = study.get_trials(deepcopy=False)
        except OSError:  # names its file
            raise
        except Exception as error:  # SQLAlchemy's; of a damaged journal all kinds
            raise unreadable(os.environ[STORAGE], error) from error
        metrics = self.metrics or [f"best_value of {OmegaConf.select(self.config, 'callbacks.checkpoints.monitor')}"]
        told = any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        before = study.user_attrs.get("metrics", metrics) if told else metrics
        was = ", ".join(f"{d.name.lower()} {metric}" for d, metric in zip(study.directions, before, strict=False))
        now = ", ".join(f"{d} {metric}" for d, metric in zip(self.directions, metrics, strict=True))
        if was != now:
            raise ValueError(f"the study {study.study_name} is there, to {was}, and cannot go on to {now}: {OTHER}")
        study.set_user_attr("metrics", metrics)
        self._move_sampler(study, len(trials))
        return study

    def _move_sampler(self, study: "Study", trials: int) -> None:
        """Give the study a sampler whose seed moves on with the trials that there are."""
        sampler = OmegaConf.to_container(self.sampler) if self.sampler else {}
        moved = {} if sampler.get("seed") is None else {"seed": sampler["seed"] + trials}
        study.sampler = build_part("samplers", sampler | moved, "hydra.sweeper.sampler")

    def _next_trials(self, study: "Study", space: "dict[str, BaseDistribution]") -> "list[Trial]":
        """Those that a kill has interrupted, then new ones."""
        import optuna

        with nullcontext() if self.owns_storage else drawing(os.environ[STORAGE]):
            trials = study.get_trials(deepcopy=False)
            mine = [trial for trial in trials if self.owns_storage or trial.user_attrs.get("owner") == self.owner]
            unfinished = [optuna.Trial(study, trial._trial_id) for trial in mine if not trial.state.is_finished()]
            batch = unfinished[: self.n_jobs]
            if not self.owns_storage:  # others have drawn since, with the same seed
                self._move_sampler(study, len(trials))
            for _ in range(min(self.n_jobs - len(batch), self.n_trials - len(trials))):
                trial = study.ask(space)
                trial.set_user_attr("owner", self.owner)
                batch.append(trial)
        return batch

    def _tell(self, study: "Study", trial: "Trial", returned: JobReturn) -> bool:
        """Record how a trial ended; whether it did well."""
        from optuna.trial import TrialState

        values = None
        if returned.status == JobStatus.COMPLETED:
            result = read_json(Path(returned.hydra_cfg.hydra.runtime.output_dir) / "result.json")
            metrics = self.metrics or ["best_value"]
            if missing := [metric for metric in metrics if metric not in result]:
                raise ValueError(f"hydra.sweeper.metrics: result.json has no {missing[0]}, only {', '.join(result)}")
            values = [result[metric] for metric in metrics]
            values = values if all(value is not None and math.isfinite(value) for value in values) else None
        if study.get_trials(deepcopy=False)[trial.number].user_attrs.get("pruned"):
            study.tell(trial.number, state=TrialState.PRUNED)
        else:
            study.tell(trial.number, values, state=TrialState.FAIL if values is None else None)
        return values is not None

    def _report(self, study: "Study") -> None:
        """Write `optimization_results.yaml`, as Hydra's own plugin does: the best trial, or the Pareto set."""
        from optuna.trial import TrialState

        counts = {state: len(study.get_trials(deepcopy=False, states=(state,))) for state in TrialState}
        told = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
        if not counts[TrialState.COMPLETE] and counts[TrialState.RUNNING]:
            print(f"all trials are at work elsewhere: {told}", file=sys.stderr)
            return
        if not counts[TrialState.COMPLETE]:
            raise SweepError(f"no trial was completed: {told}")
        if len(self.directions) == 1:
            params, value = study.best_params, study.best_value
            content = {"name": "optuna", "best_params": params, "best_value": value}
            shown = (f"{k}={format_value(v) if isinstance(v, float) else v}" for k, v in params.items())
            line = f"best of {told}: trial {study.best_trial.number}, {value:.6g}, {' '.join(shown)}"
        else:
            solutions = [{"params": trial.params, "values": trial.values} for trial in study.best_trials]
            content = {"name": "optuna", "solutions": solutions}
            line = f"{len(solutions)} trials on the Pareto front, of {told}"
        path = self.folder / "optimization_results.yaml"
        with durable_open(path) as file:
            file.write(OmegaConf.to_yaml(OmegaConf.create(content)).encode())
        print(f"{line} ({path})\n{next_command(self.folder)}", file=sys.stderr)


def storage_url(storage: str | None, folder: Path) -> str:
    """The URL of a study's storage: in the sweep's folder, or what the user says."""
    if storage not in IN_FOLDER:
        return str(storage)
    return f"sqlite:///{folder / 'optuna.db'}" if storage == "sqlite" else f"{JOURNAL_URL}{folder / 'optuna.journal'}"


def open_storage(url: str) -> "BaseStorage":
    """Open what `storage_url` names, also while another search makes its tables."""
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    if url.startswith(JOURNAL_URL):
        return optuna.storages.JournalStorage(JournalFileBackend(url.removeprefix(JOURNAL_URL)))
    for _ in range(TRIES):
        try:
            return optuna.storages.RDBStorage(url)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if not re.search("already exists|locked|UNIQUE|duplicate", str(error)):
                raise
        time.sleep(0.5)
    return optuna.storages.RDBStorage(url)


def drawing(url: str) -> AbstractContextManager:
    """Hold a lock beside a study's file, so that no other search draws meanwhile; a server of databases has none."""
    file = re.match(r"(?:journal://|sqlite[^/]*:///)([^?]+)", url)
    return FileLock(f"{file[1]}.drawing") if file else nullcontext()


def unreadable(url: str, error: Exception) -> Exception:
    """What to raise where a study cannot be opened or read: which storage it was, without its password."""
    from sqlalchemy.exc import ArgumentError

    reason = redact(next(iter(str(error).splitlines()), type(error).__name__))
    if not url.startswith(JOURNAL_URL) and isinstance(error, ArgumentError | ImportError | ValueError):
        wanted = "hydra.sweeper.storage must be journal, sqlite or a URL such as sqlite:///FILE"
        return ValueError(f"{wanted}, got {redact(url)}: {reason}")
    place = redact(url.removeprefix(JOURNAL_URL).removeprefix("sqlite:///"))
    remedy = "put a copy in its place, or begin another with another sweep.name or hydra.sweeper.storage"
    return RunError(f"cannot read the study in {place}: {reason}; {remedy}")


def build_part(module: str, settings: dict, key: str) -> Any:
    """Build one of Optuna's `samplers` or `pruners` by the name in its config; the key is for messages."""
    import optuna

    package, arguments = getattr(optuna, module), dict(settings)
    target = arguments.pop("_target_", None)
    prefix, _, name = str(target).rpartition(".")
    if prefix != package.__name__ or name not in package.__all__:
        raise ValueError(f"{key}._target_ must be a class of {package.__name__}, got {target!r}")
    try:
        return getattr(package, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def distribution(override: Override) -> "BaseDistribution":
    """What Optuna draws an override from, as Hydra's own Optuna plugin reads it.

    `choice` and a plain list are categories, `range(a, b, step)` includes both ends, `interval(a, b)` is continuous,
    whole numbers with `int(interval(a, b))`, and logarithmic with `tag(log, ...)`.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if override.is_interval_sweep():
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = IntDistribution if whole else FloatDistribution
            return kind(value.start, value.end, log="log" in value.tags)
        if override.is_range_sweep() and not value.shuffle:
            whole = all(isinstance(x, int) for x in (value.start, value.stop, value.step))
            return (IntDistribution if whole else FloatDistribution)(value.start, value.stop, step=value.step)
        return CategoricalDistribution(list(override.sweep_iterator(transformer=Transformer.encode)))
    except ValueError as error:
        raise ValueError(f"{override.get_key_element()}: {error}") from error


def check_space(study: "Study", space: "dict[str, BaseDistribution]") -> None:
    """Refuse a space that a study cannot go on with, before it draws a trial that would never run."""
    from optuna.distributions import check_distribution_compatibility

    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & space.keys():
            before, now = trial.distributions[key], space[key]
            try:
                check_distribution_compatibility(before, now)
            except ValueError as error:
                drawn = f"The study {study.study_name} has drawn it from {before}, not from {now}"
                raise ValueError(f"{key}: {error} {drawn}: {OTHER}") from error
