"""A comparison: the groups in their order, the metrics that are shown, and what a reader must know of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vae_lab.compare.groups import (
    Columns,
    Group,
    apart,
    columns,
    differing,
    entangled,
    find_name,
    group_runs,
    rank,
)
from vae_lab.compare.runs import Entry
from vae_lab.compare.statistics import MIN_SEEDS
from vae_lab.metrics.catalogue import find, key_of

# Shown unless metrics are named, where they were measured; the first that all groups can be compared in decides.
METRICS = ("elbo", "nll", "mse", "reconstruction", "kl", "active_units")
DECIDING = ("val/nll", "val/elbo", "val/mse", "val/loss")
COSTS = ("images_per_second", "train_seconds")
MAX_CLASSES = 3  # of groups that can be compared, in the conclusion
METHOD = (
    "Values are those of each run's best checkpoint, val/ on the images that chose it; means over seeds ± {spread}. "
    "Each group is compared with the first one by {sort}, of those that it can be compared with: by differences "
    "between runs with the same seed, or between means where fewer than 3 seeds are shared. It is called different "
    "where chance alone, and having chosen the best of them, would rarely do that (5 % for all comparisons "
    "together). What is not distinguishable may still differ; more seeds would tell. The interval of a difference is "
    "that of this one comparison (95 %)."
)
SPREADS = {"sd": "the standard deviation between seeds", "ci": "the 95 % confidence interval of the mean"}


@dataclass
class Comparison:
    """What every table and figure is made of.

    Attributes:
        title: of the report.
        entries: all runs.
        table: the settings of all of them.
        by: the columns by which they are grouped.
        keys: those of them that tables and figures show.
        differing: the columns in which they differ.
        groups: best first.
        metrics: those that are shown.
        sort: the one that decides.
        spread: what stands behind ±: "sd" or "ci".
        apart: metrics in which not all groups can be compared, and why.
        notes: on what was found and how it was compared, sentences.
    """

    title: str
    entries: list[Entry]
    table: Columns
    by: list[str]
    keys: list[str]
    differing: list[str]
    groups: list[Group]
    metrics: list[str]
    sort: str
    spread: str
    apart: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def index(self) -> dict[int, int]:
        """Where a run stands in the columns of `table`, by its `id()`."""
        return {id(entry): i for i, entry in enumerate(self.entries)}

    @property
    def shown(self) -> list[str]:
        """The deciding metric, the others, and what a run costs."""
        costs = [key for key in COSTS if self.has(key)]
        return list(dict.fromkeys([*([self.sort] if self.sort else []), *self.metrics, *costs]))

    @property
    def unfinished(self) -> list[Entry]:
        """The runs that are not completed, failed ones first."""
        return sorted((e for e in self.entries if e.state != "completed"), key=lambda entry: entry.state != "failed")

    @property
    def ranked(self) -> list[Group]:
        """The groups with a completed run that measured the deciding metric."""
        return [group for group in self.groups if group.values(self.sort)]

    @property
    def counts(self) -> str:
        """How many runs there are, in which states."""
        states, many = sorted(entry.state for entry in self.entries), len(self.groups)
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"{len(states)} run{'s' * (len(states) != 1)} in {many} group{'s' * (many != 1)}: {told}"

    @property
    def method(self) -> str:
        """How values and verdicts came about."""
        return METHOD.format(spread=SPREADS[self.spread], sort=self.sort)

    def has(self, metric: str) -> bool:
        """Whether a completed run measured it."""
        return any(math.isfinite(e.metrics.get(metric, math.nan)) for e in self.entries if e.state == "completed")

    def setting(self, key: str, group: Group) -> Any:
        """The value of a column in a group: a number where that is what it is, else text."""
        value = self.table[key][self.index[id(group.runs[0])]]
        return value if isinstance(value, int | float) and not isinstance(value, bool) else group.settings[key]


def compare(
    entries: list[Entry],
    notes: Sequence[str] = (),
    *,
    title: str = "runs",
    by: Sequence[str] = (),
    metrics: Sequence[str] = (),
    sort: str | None = None,
    spread: str = "sd",
) -> Comparison:
    """Group and rank runs.

    Args:
        entries: the runs, at least one.
        notes: on what was found.
        title: of the report.
        by: the columns that make a group; none: all in which the runs differ.
        metrics: to show; none: those that suit the runs.
        sort: the metric that decides, None for one that suits the runs; `-METRIC` puts the largest first.
        spread: what stands behind ±: "sd" or "ci".

    Raises:
        ValueError: if a setting names what no run has.
    """
    table = columns(entries)
    differ = differing(entries, table)
    grouped_by = [find_name(name, table, "setting") for name in by] or differ
    groups = group_runs(entries, grouped_by, differ, table)
    ordered = sorted(entries, key=lambda entry: entry.state != "completed")
    known = list(dict.fromkeys(key for entry in ordered for key in entry.metrics))
    follow = entangled(groups, grouped_by)
    keys = grouped_by if by else [key for key in grouped_by if key not in follow]
    for group in groups:
        group.hidden = set(grouped_by) - set(keys)
    usual = [f"{stage}/{name}" for stage in ("val", "test") for name in METRICS if f"{stage}/{name}" in known]
    shown = [find_name(name, known, "metric", "/") for name in metrics] or usual
    name, largest_first = (sort or "").removeprefix("-"), True if (sort or "").startswith("-") else None
    if name:
        name = find_name(name, known, "metric", "/")
    else:
        name = deciding(groups, [metric for metric in dict.fromkeys((*DECIDING, *shown)) if metric in known])
    if name and name not in shown:
        shown = [name, *shown]
    groups = rank(groups, name, largest_first)
    comparison = Comparison(
        title, entries, table, grouped_by, keys, differ, groups, shown, name, spread, apart(groups, shown)
    )
    comparison.notes = [*notes, *together(follow), *caveats(comparison)]
    return comparison


def deciding(groups: list[Group], metrics: list[str]) -> str:
    """The first metric in which all groups that have completed runs can be compared, else the one that most can."""
    done = [group for group in groups if group.completed]

    def merit(metric: str) -> tuple[bool, int, int]:
        having = [group for group in done if group.values(metric)]
        kinds = len({group.yardstick(metric) for group in having})
        return bool(done) and len(having) == len(done) and kinds == 1, len(having), -kinds

    return max(metrics, key=merit, default="")


def conclusion(comparison: Comparison) -> str:
    """What can be said of the best group, and of the best of those that cannot be compared with it, in sentences."""
    kinds: dict = {}
    for group in comparison.ranked:
        kinds.setdefault(group.yardstick(comparison.sort), []).append(group)
    if len(comparison.groups) == len(comparison.ranked) == 1:
        return "All runs are of one group; there is nothing to compare it with."
    if not kinds:
        return "No run has been completed yet."
    told = [conclude(comparison.sort, members, len(kinds) > 1) for members in list(kinds.values())[:MAX_CLASSES]]
    return " ".join([*told, *(["..."] if len(kinds) > MAX_CLASSES else [])])


def conclude(metric: str, members: list[Group], has_others: bool) -> str:
    """What can be said of the first of some groups that can be compared."""
    first, *rivals = members
    if not rivals:
        return (
            f"{first.label} can be compared with no other." if has_others else f"Only {first.label} has completed runs."
        )
    found = f"{first.label} has the {'best' if find(metric).better else 'first'} mean {metric}"
    found += " of those that can be compared with it" if has_others else ""
    if first.spread(metric).n < 2:
        return f"{found}, but of a single seed."
    unclear = [group for group in rivals if not (group.difference and group.difference.is_distinct)]
    if not unclear:
        return f"{found}; it is different from all others."
    numbers = ", ".join(str(group.number) for group in unclear[:8]) + (", ..." if len(unclear) > 8 else "")
    return f"{found}; it is not distinguishable from {len(unclear)} of {len(rivals)} others ({numbers})."


def together(follow: dict[str, str]) -> list[str]:
    """Notes on settings that follow from others."""
    by_other: dict[str, list[str]] = {}
    for key, other in follow.items():
        by_other.setdefault(other, []).append(key)
    return [
        f"{', '.join(keys)} {'differs' if len(keys) == 1 else 'differ'} only together with {other}: "
        "what is due to which cannot be told."
        for other, keys in by_other.items()
    ]


def caveats(comparison: Comparison) -> list[str]:
    """What a reader must know to read the tables rightly."""
    groups, sort, notes = comparison.ranked, comparison.sort, []
    done = [entry for entry in comparison.entries if entry.state == "completed"]
    by_reason: dict[str, list[str]] = {}
    for metric, reason in comparison.apart.items():
        by_reason.setdefault(reason, []).append(key_of(metric))
    for reason, names in by_reason.items():
        named = ", ".join(dict.fromkeys(names))
        notes.append(f"Not comparable between all groups: {named}, because they differ in {reason}. "
                     f"Read {'them' if len(names) > 1 else 'it'} only among groups that share it.")  # fmt: skip
    if groups and not find(sort).better:
        notes.append(f"No value of {key_of(sort)} is better than another; the order is by size.")

    sizes = [group.spread(sort).n for group in groups]
    few = sum(size < 2 for size in sizes)
    if few:
        notes.append(f"{few} of {len(sizes)} groups have a single seed: their place may change with another seed.")
    elif sizes and min(sizes) < MIN_SEEDS:
        notes.append(f"Differences are tested from {MIN_SEEDS} seeds on; some groups have fewer.")

    more = 0
    for group in comparison.groups:
        units = [unit for run, unit in zip(group.runs, group.units, strict=True) if run.state == "completed"]
        more += len(units) - len(set(units))
    if more:
        hint = "" if "folder" in comparison.by else "; by=folder,... sets apart those from different folders"
        notes.append(f"{more} completed runs repeat the settings and the seed of another; they count as one, their "
                     f"mean{hint}.")  # fmt: skip
    if pooled := [key for key in comparison.differing if key not in comparison.by]:
        notes.append(f"The groups pool runs that differ in {', '.join(pooled)}. n counts seeds: runs that share these "
                     "and the seed are compared, and their differences averaged within each seed.")  # fmt: skip
    if bad := [run for run in done if run.settings and not math.isfinite(run.metrics.get(sort, 0))]:
        names = ", ".join(entry.name for entry in bad[:5]) + (", ..." if len(bad) > 5 else "")
        notes.append(f"{key_of(sort)} is not finite in {len(bad)} completed runs, left out: {names}.")
    if lost := [str(group.number) for group in groups if any(run.state == "failed" for run in group.runs)]:
        notes.append(f"Groups {', '.join(lost)} have failed runs: what is shown of them are the runs that survived.")

    early = 0
    for run in (entry for entry in done if any(key.startswith("callbacks.pruning.") for key in entry.settings)):
        limit = run.settings.get("trainer.max_epochs")
        early += isinstance(limit, int | float) and run.metrics.get("epochs", math.inf) < limit
    if early:
        notes.append(f"Completed runs that ended before trainer.max_epochs, in a search with a pruner: {early}. Their "
                     "values are those of fewer epochs.")  # fmt: skip
    return notes
