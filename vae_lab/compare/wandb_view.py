"""A saved view of a project in W&B that shows there what a comparison shows here."""

from importlib.util import find_spec
from typing import Any

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.differences import as_text
from vae_lab.compare.found import visible
from vae_lab.compare.online import connect, split_place
from vae_lab.compare.yardsticks import base
from vae_lab.config.secrets import redact
from vae_lab.errors import RunError

PLANES = (("val/kl", "val/reconstruction"), ("val/kl", "val/mse"))


def save_view(comparison: Comparison, place: str) -> str:
    """Save the view, as a new one.

    Args:
        comparison: what it shows.
        place: ENTITY/PROJECT, or ENTITY/PROJECT/GROUP to show the runs of one group.

    Returns:
        Its address.

    Raises:
        ValueError: if the place is none.
        RunError: if W&B does not take it, or the library that speaks to it is missing.
    """
    entity, project, group = split_place("wandb_view", place)
    if not find_spec("wandb_workspaces"):
        raise RunError("wandb_view needs the package wandb-workspaces: pip install 'vae_lab[workspaces]'")
    try:
        connect()  # refuses before the library would ask for a key
        return make_view(comparison, entity, project, group).save().url
    except Exception as error:  # W&B raises all kinds
        raise RunError(f"cannot save a view in {place}: {visible(redact(' '.join(str(error).split())))}") from error


def make_view(comparison: Comparison, entity: str, project: str, group: str | None) -> Any:
    """The view, a `wandb_workspaces.workspaces.Workspace`: the settings that differ as columns beside the metrics,
    parallel coordinates, rate-distortion planes and learning curves.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    settings = settings_of(comparison)
    columns = [*map(column, settings), *(f"summary:{metric}" for metric in comparison.metrics)]
    axes = [panels.ParallelCoordinatesPlotColumn(panels.Config(key)) for key in settings]
    axes += [panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(metric)) for metric in comparison.metrics]
    planes = [
        panels.ScatterPlot(title=f"{base(y)} against {base(x)}", x=panels.SummaryMetric(x), y=panels.SummaryMetric(y))
        for x, y in PLANES
    ]
    curves = [panels.LinePlot(title=metric, x="step", y=[metric]) for metric in comparison.metrics]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"Comparison of {group or comparison.title}"[:120],
        sections=[
            workspaces.Section(
                name="Comparison",
                panels=[panels.ParallelCoordinatesPlot(title="Settings and metrics", columns=axes), *planes],
                is_open=True,
            ),
            workspaces.Section(name="Learning curves", panels=curves, is_open=True),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == group] if group else [],
            pinned_columns=columns,
        ),
    )


def settings_of(comparison: Comparison) -> list[str]:
    """The settings that W&B knows for what tells the groups apart: for an option or callback, a class that it names."""
    found = []
    for key in comparison.keys:
        within = [k for k in comparison.table if k.startswith(f"{key}.") and k.endswith("_target_")] or [key]
        found += [k for k in within if len(set(map(as_text, comparison.table[k]))) > 1][:1]
    return list(dict.fromkeys(found))


def column(key: str) -> str:
    """What W&B calls the column of a setting: its `value` stands after the first part of a nested key."""
    first, dot, rest = key.partition(".")
    return f"config:{first}.value{dot}{rest}"
