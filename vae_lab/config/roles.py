"""What each key of a config is for: the only place that says which keys are a job's identity, may change, or compare.

A key that is not listed, and lies in none that is, is part of a job's identity, stays when a run continues, is a
difference between two runs, and stays out of an export.
"""

from enum import Flag, auto
from typing import Any

from vae_lab.config.nested import ABSENT, Settings


class Role(Flag):
    """What is special about a key and all below it."""

    START = auto()  # of one start: may change, is no identity, is no difference
    FREE = auto()  # the trained model does not depend on it: is no identity, is no difference
    CHANGEABLE = auto()  # when a run continues, because the numbers up to there do not depend on it
    ASIDE = auto()  # changes neither the model nor what is measured: is no difference
    UNMEASURED = auto()  # of the dataset, but does not decide which images are measured
    WEIGHT = auto()  # of a term of the loss
    SHARED = auto()  # in an export, with all below it


ROLES = {
    "seed": Role.SHARED | Role.ASIDE,
    "latent_dim": Role.SHARED,
    "data_root": Role.FREE | Role.CHANGEABLE,
    "resume": Role.START,
    "run_dir": Role.START,
    "run_name": Role.START,
    "sweep": Role.FREE | Role.CHANGEABLE,
    "hydra": Role.FREE,
    "dataset": Role.SHARED,
    "dataset.root": Role.CHANGEABLE | Role.UNMEASURED | Role.ASIDE,  # which images lie there tells their fingerprint
    "dataset.source.root": Role.UNMEASURED | Role.ASIDE,
    "dataset.source.cache_dir": Role.UNMEASURED | Role.ASIDE,
    "dataset.on_bad": Role.UNMEASURED | Role.ASIDE,
    "dataset.source.on_bad": Role.UNMEASURED | Role.ASIDE,
    "dataset.batch_size": Role.UNMEASURED,
    "dataset.flip": Role.UNMEASURED,
    "dataset.num_classes": Role.UNMEASURED,
    "dataset.num_workers": Role.FREE | Role.CHANGEABLE | Role.UNMEASURED,
    "model": Role.SHARED,
    "posterior": Role.SHARED,
    "prior": Role.SHARED,
    "loss": Role.SHARED,
    "loss.measure": Role.FREE,  # only says what the likelihood's log is of
    "loss.KLD_weight": Role.WEIGHT,
    "loss.free_bits": Role.WEIGHT,
    "loss.warmup_steps": Role.WEIGHT,
    "objective": Role.SHARED | Role.WEIGHT,
    "metrics": Role.SHARED | Role.CHANGEABLE | Role.ASIDE,
    "trainer.max_epochs": Role.CHANGEABLE,
    "trainer.max_steps": Role.CHANGEABLE,
    "trainer.max_time": Role.CHANGEABLE,
    "trainer.log_every_n_steps": Role.FREE | Role.CHANGEABLE,
    "trainer.steps_per_execution": Role.FREE | Role.CHANGEABLE,
    "trainer.accelerator": Role.ASIDE,
    "trainer.enable_model_summary": Role.ASIDE,
    "trainer.profiler": Role.ASIDE,
    "logger": Role.FREE | Role.CHANGEABLE,
    "callbacks": Role.CHANGEABLE,
    "callbacks.gallery": Role.ASIDE,
    "callbacks.summary": Role.ASIDE,
    "callbacks.progress": Role.ASIDE,
    "callbacks.pruning": Role.ASIDE,  # holds the number of a search's trial
    "callbacks.checkpoints.every_n_minutes": Role.ASIDE,
    "callbacks.checkpoints.every_n_epochs": Role.FREE,
    "callbacks.checkpoints.keep": Role.FREE,
}
# Where things are on one machine: null in an export, and these defaults of conf/ where one is read.
PLACES = {
    "data_root": "${oc.env:VAE_LAB_DATA,data}",
    "dataset.root": "${data_root}",
    "dataset.source.root": "${dataset.root}",
    "dataset.source.cache_dir": None,
}
# They stand for themselves where configs are compared: a data folder or a run that has moved is the same.
HERE = {"data_root": "data_root", "run_dir": "run_dir"}


def differences(one: Settings, other: Settings) -> dict[str, tuple[Any, Any]]:
    """The settings in which two configs differ, with both values, of which one may be ABSENT.

    This says whether they are the same experiment: for a sweep if no key of these `is_identity`, for a run that
    continues if all `may_change`, for a comparison if all are `is_aside`.

    Args:
        one: the settings of a config, completed with the defaults of keys that it lacks; see `vae_lab.config.defaults`.
        other: those of the other one.
    """
    pairs = {key: (one.get(key, ABSENT), other.get(key, ABSENT)) for key in {**one, **other}}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def keys(role: Role) -> tuple[str, ...]:
    """The listed keys that have a role."""
    return tuple(key for key, roles in ROLES.items() if role in roles)


def has(key: str, roles: Role) -> bool:
    """Whether a key, or the choice of a group (`hydra/launcher`), or one that it lies in, has one of the roles."""
    parts = key.replace("/", ".").split(".")
    return any(ROLES.get(".".join(parts[:end]), Role(0)) & roles for end in range(1, len(parts) + 1))


def is_identity(key: str) -> bool:
    """Whether the trained model may depend on a key, so that jobs that differ in it are two."""
    return not has(key, Role.FREE | Role.START)


def may_change(key: str) -> bool:
    """Whether a key may change when a run continues."""
    return has(key, Role.CHANGEABLE | Role.START)


def is_aside(key: str) -> bool:
    """Whether a comparison passes over a key: the seed, the machine's, a start's or a logger's."""
    return has(key, Role.ASIDE | Role.FREE | Role.START)


def is_of_images(key: str) -> bool:
    """Whether a key decides which images are measured."""
    return key.startswith("dataset.") and not has(key, Role.UNMEASURED)


def is_weight(key: str) -> bool:
    """Whether a key weighs the terms of the loss, whose values then compare only where it is the same."""
    return has(key, Role.WEIGHT)
