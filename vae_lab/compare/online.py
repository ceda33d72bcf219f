"""Runs that are online in W&B, read through its public API into the same values as those of run folders.

What is read is what vae-lab sent: the config with its interpolations resolved, `result.json` as the summary, and the
lines of `metrics.jsonl` as the history.
"""

import json
from collections.abc import Iterable
from typing import Any

from vae_lab.compare.found import Entry, numbers, visible
from vae_lab.config.secrets import redact
from vae_lab.errors import RunError
from vae_lab.loggers.wandb_process import obstacle
from vae_lab.runs.resume import leaves

KEY_SECONDS = 15.0  # to look for an API key

STATES = {"finished": "completed", "running": "running", "pending": "running", "preempting": "preempted",
          "preempted": "preempted", "failed": "failed", "crashed": "interrupted", "killed": "interrupted"}  # fmt: skip
REASONS = {"crashed": "W&B has not heard of it for some time", "killed": "it was killed"}


def online_runs(place: str, api: Any = None) -> list[Entry]:
    """Read the runs of a project.

    Args:
        place: ENTITY/PROJECT, or ENTITY/PROJECT/GROUP for one group of them.
        api: a `wandb.Api`; None makes one, which needs an API key.

    Raises:
        ValueError: if the place is none.
        RunError: if W&B does not answer, or has no such run.
    """
    entity, project, group = split_place("wandb", place)
    try:
        if api is None:
            api = connect()
        filters = {"group": group} if group else {}
        entries = [read_online(run, place) for run in api.runs(f"{entity}/{project}", filters=filters)]
    except Exception as error:  # W&B raises all kinds
        raise RunError(f"cannot read {place} from W&B: {visible(redact(' '.join(str(error).split())))}") from error
    if not entries:
        raise RunError(f"{place} has no runs in W&B")
    return entries


def split_place(key: str, place: str) -> tuple[str, str, str | None]:
    """The entity, the project and, where one is named, the group.

    Args:
        key: the setting that names them.
        place: its value.

    Raises:
        ValueError: if it has fewer parts or empty ones.
    """
    entity, project, *group = [*place.strip("/").split("/", 2), ""][:3]
    if not (entity and project):
        raise ValueError(f"{key} must be ENTITY/PROJECT or ENTITY/PROJECT/GROUP, got {place!r}")
    return entity, project, group[0] or None


def connect() -> Any:
    """A `wandb.Api`, which would ask on the terminal where there is no API key.

    Raises:
        RunError: if there is none.
    """
    if reason := obstacle(KEY_SECONDS):
        raise RunError(reason.removesuffix(" or use logger.wandb.mode=auto"))  # which is of training
    import wandb

    return wandb.Api()


def read_online(run: Any, source: str) -> Entry:
    """Read one run, a `wandb.apis.public.Run`."""
    state = STATES.get(run.state, "interrupted")
    config = json.loads(run.config) if isinstance(run.config, str) else dict(run.config)
    rows = list(run.scan_history())
    history = read_history(rows)
    epochs = [row["epoch"] for row in rows if isinstance(row.get("epoch"), int | float)]
    last = {key: points[-1][1] for key, points in history.items()}
    metrics = numbers(dict(run.summary)) if state == "completed" else last
    metrics = {key: value for key, value in metrics.items() if not key.startswith("_")}
    reason = "" if state == "completed" else REASONS.get(run.state, "")
    settings = visible(leaves({key: value for key, value in config.items() if not key.startswith("_")}))
    epoch = int(epochs[-1]) + 1 if epochs else None
    name, address = visible(str(run.name)), visible(str(run.url))
    return Entry(name, source, address, state, reason, settings, metrics, history, epoch)


def read_history(rows: Iterable[dict]) -> dict[str, list[tuple[int, float]]]:
    """Every `val/` metric by its step, from the rows of a history."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        step = row.get("step", row.get("_step"))
        if isinstance(step, int | float):
            for key, value in numbers(row).items():
                if key.startswith("val/"):
                    found.setdefault(key, {})[int(step)] = value
    return {key: sorted(points.items()) for key, points in found.items()}
