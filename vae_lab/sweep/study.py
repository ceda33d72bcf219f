"""An Optuna study: where it is stored, and what it draws from. Optuna is imported only when a search is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, Transformer

from vae_lab.config.secrets import redact
from vae_lab.errors import RunError

STORAGE = "VAE_LAB_STUDY"  # the variable in which a trial finds its study; a URL may hold a password
IN_FOLDER = (None, "journal", "sqlite")  # storages that are files in the sweep's folder
JOURNAL = "journal://"  # how the URL of a file begins that is not a database


def open_storage(url: str) -> Any:
    """Open what `storage_url` names; raises what `storage_errors` raises."""
    import optuna

    with storage_errors(url):
        if url.startswith(JOURNAL):
            from optuna.storages.journal import JournalFileBackend

            return optuna.storages.JournalStorage(JournalFileBackend(url.removeprefix(JOURNAL)))
        return optuna.storages.RDBStorage(url)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Say which storage it was that could not be opened or read, without its password.

    Raises:
        ValueError: if the URL is wrong.
        RunError: if what it names is damaged, or does not answer.
    """
    try:
        yield
    except OSError:  # names its file
        raise
    except Exception as error:  # SQLAlchemy's; of a damaged journal all kinds
        from sqlalchemy.exc import ArgumentError

        reason = redact(next(iter(str(error).splitlines()), type(error).__name__))
        if not url.startswith(JOURNAL) and isinstance(error, ArgumentError | ImportError | ValueError):
            raise ValueError(
                f"hydra.sweeper.storage must be journal, sqlite or a URL such as sqlite:///FILE, got {redact(url)}: "
                f"{reason}"
            ) from error
        raise RunError(
            f"cannot read the study in {redact(url.removeprefix(JOURNAL).removeprefix('sqlite:///'))}: {reason}; "
            "put a copy in its place, or begin another with another sweep.name or hydra.sweeper.storage"
        ) from error


def storage_url(storage: str | None, folder: Path) -> str:
    """The URL of a study's storage: a journal or an sqlite database in the sweep's folder, or what the user says."""
    if storage not in IN_FOLDER:
        return storage
    return f"sqlite:///{folder / 'optuna.db'}" if storage == "sqlite" else f"{JOURNAL}{folder / 'optuna.journal'}"


def check_aims(study: Any, directions: list[str], metrics: list[str]) -> None:
    """Note in a study what it searches for, and refuse one that has found out about something else.

    Args:
        study: an `optuna.Study`.
        directions: "minimize" or "maximize" for each metric.
        metrics: the names of what is searched for.

    Raises:
        ValueError: naming the old aims and the new ones.
    """
    from optuna.trial import TrialState

    told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    old_metrics = study.user_attrs.get("metrics", metrics) if told else metrics
    old = [direction.name.lower() for direction in study.directions], old_metrics
    if old != (directions, metrics):
        was, now = (", ".join(map(" ".join, zip(*aims, strict=False))) for aims in (old, (directions, metrics)))
        raise ValueError(
            f"the study {study.study_name} is there, to {was}, and cannot go on to {now}: "
            "begin another with another sweep.name or hydra.sweeper.study_name"
        )
    study.set_user_attr("metrics", metrics)


def build_part(module: str, settings: dict, key: str, **more: Any) -> Any:
    """Build a sampler or a pruner of Optuna by the name in its config.

    Args:
        module: "samplers" or "pruners".
        settings: `_target_` and arguments.
        key: of the settings, for messages.
        more: arguments that take the place of those in the settings.

    Raises:
        ValueError: if there is no such class, or it takes other arguments.
    """
    import optuna

    package = getattr(optuna, module)
    prefix, _, name = str(settings.get("_target_")).rpartition(".")
    if prefix != package.__name__ or name not in package.__all__:
        raise ValueError(f"{key}._target_ must be a class of {package.__name__}, got {settings.get('_target_')!r}")
    arguments = {argument: value for argument, value in settings.items() if argument != "_target_"} | more
    try:
        return getattr(package, name)(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


def distribution(override: Override) -> Any:
    """What Optuna draws an override from, as Hydra's own Optuna plugin reads it; None if its value is fixed.

    `choice` and a plain list are categories, `range(a, b, step)` includes both ends, `interval(a, b)` is continuous,
    whole numbers with `int(interval(a, b))`, and logarithmic with `tag(log, ...)`.

    Raises:
        ValueError: if nothing can be drawn from it, naming the key.
    """
    if not override.is_sweep_override():
        return None
    try:
        return _distribution(override)
    except ValueError as error:
        raise ValueError(f"{override.get_key_element()}: {error}") from error


def check_space(study: Any, space: dict[str, Any]) -> None:
    """Refuse a space that a study cannot go on with, before it draws a trial that would never run.

    Args:
        study: an `optuna.Study`.
        space: key -> distribution.

    Raises:
        ValueError: naming the key.
    """
    from optuna.distributions import check_distribution_compatibility

    for trial in study.get_trials(deepcopy=False):
        for key in trial.distributions.keys() & space.keys():
            try:
                check_distribution_compatibility(trial.distributions[key], space[key])
            except ValueError as error:
                raise ValueError(
                    f"{key}: {error} The study {study.study_name} has drawn it from {trial.distributions[key]}, not "
                    f"from {space[key]}: begin another with another sweep.name or hydra.sweeper.study_name"
                ) from error


def _distribution(override: Override) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if override.is_interval_sweep():
        kind = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if override.is_range_sweep() and not value.shuffle:
        kind = (
            IntDistribution
            if all(isinstance(x, int) for x in (value.start, value.stop, value.step))
            else FloatDistribution
        )
        return kind(value.start, value.stop, step=value.step)
    choices = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)
