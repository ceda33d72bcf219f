"""A comparison as values and figures, for a notebook or a script: `vae_lab.compare(folders)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure

from vae_lab.compare import figures
from vae_lab.compare.comparison import Comparison, conclusion
from vae_lab.compare.comparison import compare as compare_entries
from vae_lab.compare.groups import find_name
from vae_lab.compare.runs import find_runs
from vae_lab.runs.metrics_file import as_frame


def compare(
    folders: Any,
    *,
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    sort: str | None = None,
    spread: str = "sd",
) -> "Compared":
    """Compare runs as `vae-lab-compare` does: groups of those that differ in nothing but the seed, best first.

    Args:
        folders: a sweep, a run, a `Run`, a folder of such, or a list of them.
        by: the settings that make a group, such as `loss.KLD_weight`; none: all in which the runs differ.
        metrics: to show; none: those that suit the runs.
        sort: the metric that decides; `-METRIC` puts the largest first.
        spread: what the deviations are: `sd`, or `ci` for the 95 % confidence interval of the mean.

    Raises:
        RunError: if there is no run.
        ValueError: if a setting or a metric is named that no run has.
    """
    if spread not in ("sd", "ci"):
        raise ValueError(f"spread must be one of sd, ci, got {spread!r}")
    several = folders if isinstance(folders, list | tuple) else [folders]
    paths = [folder if isinstance(folder, Path) else Path(getattr(folder, "folder", str(folder))) for folder in several]
    entries, notes = find_runs(paths)
    title = ", ".join(dict.fromkeys(entry.source for entry in entries))
    return Compared(compare_entries(entries, notes, title=title, by=by, metrics=metrics, sort=sort, spread=spread))


class Compared:
    """What `vae-lab-compare` finds, as values and as plotly figures.

    Args:
        comparison: the groups, in their order.
    """

    def __init__(self, comparison: Comparison):
        self.comparison = comparison

    def __repr__(self) -> str:
        return f"{self.comparison.counts}. {self.conclusion}"

    @property
    def table(self) -> Any:
        """A row for each group, best first, with settings, seeds, means of metrics, deviations and verdict.

        It is a pandas frame by the number of the group, or a list of dicts where there is no pandas.
        """
        found = self.comparison
        rows = []
        for group in found.groups:
            row: dict[str, Any] = {"group": group.number, **{key: group.setting(key) for key in found.keys}}
            row["n"] = group.spread(found.sort).n
            for metric in found.shown:
                values = group.spread(metric)
                row[metric] = values.mean
                if any(other.spread(metric).n > 1 for other in found.groups):
                    row[f"{metric} {found.spread}"] = getattr(values, found.spread)
            rows.append({**row, "verdict": group.verdict})
        return as_frame(rows, "group")

    @property
    def conclusion(self) -> str:
        """What can be said of the best group, in sentences."""
        return conclusion(self.comparison)

    @property
    def notes(self) -> list[str]:
        """What a reader must know to read the table rightly."""
        return self.comparison.notes

    def curves(self, metric: str | None = None) -> Figure:
        """Learning curves of a metric, by default of the one that decides."""
        return figures.curves(self.comparison, self._name(metric))

    def plane(self, metric: str | None = None, against: str = "") -> Figure:
        """A metric, by default the distortion, against another, by default the rate, the KL of the same stage."""
        named = metric or next(iter(figures.distortions(self.comparison)), self.comparison.sort)
        return figures.plane(self.comparison, self._name(named), x=self._name(against) if against else "")

    def effect(self, setting: str, metric: str | None = None) -> Figure:
        """A metric by the values of a setting, the others alike."""
        key = find_name(setting, self.comparison.keys, "setting")
        return figures.effect(self.comparison, key, self._name(metric))

    def parallel(self) -> Figure:
        """Parallel coordinates of the settings and the metrics, a line for each group."""
        return figures.parallel(self.comparison)

    def speed(self) -> Figure:
        """Images per second in training."""
        return figures.speed(self.comparison)

    def _name(self, metric: str | None) -> str:
        """A metric by its whole name or its end, `elbo`; None is the one that decides."""
        known = list(dict.fromkeys([*self.comparison.shown, *(k for e in self.comparison.entries for k in e.metrics)]))
        return find_name(metric, known, "metric", "/") if metric else self.comparison.sort
