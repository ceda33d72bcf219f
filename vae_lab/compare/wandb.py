"""W&B: the runs that are online, as values like those of run folders; and a view that shows there what is shown here.

What is read is what vae-lab sent: the config with its interpolations resolved, `result.json` as the summary, and the
lines of `metrics.jsonl` as the history.
"""

import json
from importlib.util import find_spec
from typing import Any

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.figures import distortions
from vae_lab.compare.groups import as_text
from vae_lab.compare.runs import Entry, history_of, numbers, own_choices, settings_of, visible
from vae_lab.config.secrets import redact
from vae_lab.errors import RunError, one_line
from vae_lab.metrics.catalogue import key_of

STATES = {"finished": "completed", "running": "running", "pending": "running", "preempting": "preempted",
          "preempted": "preempted", "failed": "failed", "crashed": "interrupted", "killed": "interrupted"}  # fmt: skip
REASONS = {"crashed": "W&B has not heard of it for some time", "killed": "it was killed"}


def online_runs(place: str, api: Any = None) -> list[Entry]:
    """Read the runs of ENTITY/PROJECT or ENTITY/PROJECT/GROUP; without an `api` one is made, which needs an API key.

    Raises:
        ValueError: if the place is none.
        RunError: if W&B does not answer, or has no such run.
    """
    entity, project, group = split_place("wandb", place)
    try:
        runs = (api or connect()).runs(f"{entity}/{project}", filters={"group": group} if group else {})
        entries = [read_online(run, place) for run in runs]
    except Exception as error:  # W&B raises all kinds
        raise RunError(f"cannot read {place} from W&B: {visible(redact(one_line(error)))}") from error
    if not entries:
        raise RunError(f"{place} has no runs in W&B")
    return entries


def split_place(key: str, place: str) -> tuple[str, str, str | None]:
    """The entity, the project and, where one is named, the group that a setting names."""
    entity, project, *group = [*place.strip("/").split("/", 2), ""][:3]
    if not (entity and project):
        raise ValueError(f"{key} must be ENTITY/PROJECT or ENTITY/PROJECT/GROUP, got {place!r}")
    return entity, project, group[0] or None


def connect() -> Any:
    """A `wandb.Api`, which would ask on the terminal where there is no API key."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if not wandb.login(prompt=False, verify=False):
        raise RunError("no API key; set WANDB_API_KEY or run `wandb login`")
    return wandb.Api()


def read_online(run: Any, source: str) -> Entry:
    """Read one run, a `wandb.apis.public.Run`."""
    state = STATES.get(run.state, "interrupted")
    config = json.loads(run.config) if isinstance(run.config, str) else dict(run.config)
    choices, images = config.pop("choices", {}), config.pop("images", "")
    rows = [{"time": row.get("_timestamp"), "step": row.get("_step"), **row} for row in run.scan_history()]
    epoch, history = history_of(rows)
    metrics = numbers(dict(run.summary)) if state == "completed" else history.last
    return Entry(
        *(visible(str(run.name)), source, visible(str(run.url)), state),
        reason="" if state == "completed" else REASONS.get(run.state, ""),
        settings=settings_of({key: value for key, value in config.items() if not key.startswith("_")}),
        metrics={key: value for key, value in metrics.items() if not key.startswith("_")},
        history=history,
        epoch=epoch,
        choices=own_choices(choices) if isinstance(choices, dict) else {},
        images=visible(str(images)),
        seconds=numbers(dict(run.summary)).get("_runtime"),
    )


def save_view(comparison: Comparison, place: str) -> str:
    """Save a new view and return its address: the settings that differ as columns beside the metrics, parallel
    coordinates, the planes of the report and learning curves. W&B draws them itself, from runs as they come.

    Raises:
        ValueError: if the place is none.
        RunError: if W&B does not take it, or the library that speaks to it is missing.
    """
    entity, project, group = split_place("wandb_view", place)
    if not find_spec("wandb_workspaces"):
        raise RunError("wandb_view needs the package wandb-workspaces: pip install 'vae_lab[workspaces]'")
    try:
        connect()  # refuses before the library would ask for a key
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces

        metrics, settings = comparison.metrics, known_settings(comparison)
        axes = [*map(panels.Config, settings), *map(panels.SummaryMetric, metrics)]
        axes = [panels.ParallelCoordinatesPlotColumn(axis) for axis in axes]
        drawn = [panels.ParallelCoordinatesPlot(title="Settings and metrics", columns=axes)]
        for y in distortions(comparison):
            rate, distortion = panels.SummaryMetric(f"{y.rpartition('/')[0]}/kl"), panels.SummaryMetric(y)
            drawn.append(panels.ScatterPlot(title=f"{key_of(y)} against kl", x=rate, y=distortion))
        curves = [panels.LinePlot(title=metric, x="step", y=[metric]) for metric in metrics]
        parts = {"Comparison": drawn, "Learning curves": curves}
        names = [(key.partition(".")[0], key.partition(".")[2]) for key in settings]
        columns = [f"config:{first}.value{'.' if rest else ''}{rest}" for first, rest in names]  # as W&B calls them
        view = workspaces.Workspace(
            entity=entity,
            project=project,
            name=f"Comparison of {group or comparison.title}"[:120],
            sections=[workspaces.Section(name=name, panels=own, is_open=True) for name, own in parts.items()],
            runset_settings=workspaces.RunsetSettings(
                filters=[workspaces.Metric("Group") == group] if group else [],
                pinned_columns=[*columns, *(f"summary:{metric}" for metric in metrics)],
            ),
        )
        return view.save().url
    except Exception as error:  # W&B raises all kinds
        raise RunError(f"cannot save a view in {place}: {visible(redact(one_line(error)))}") from error


def known_settings(comparison: Comparison) -> list[str]:
    """The settings that W&B knows for what tells the groups apart: for an option, a class that it names."""
    found = []
    for key in comparison.keys:
        within = [k for k in comparison.table if k.startswith(f"{key}.") and k.endswith("_target_")] or [key]
        found += [k for k in within if len(set(map(as_text, comparison.table[k]))) > 1][:1]
    return list(dict.fromkeys(found))
