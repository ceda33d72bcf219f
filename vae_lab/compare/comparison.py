"""A comparison: the groups in their order, the metrics that are shown, and what a reader must know of both."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from vae_lab.compare.differences import Columns, columns, differing, find_columns, find_name, is_number
from vae_lab.compare.found import Entry
from vae_lab.compare.groups import Group, apart, common_yardstick, entangled, group_runs, rank
from vae_lab.compare.statistics import MIN_SEEDS
from vae_lab.compare.yardsticks import base, has_better

# Shown unless metrics are named, where they were measured; the first that all groups can be compared in decides.
METRICS = ("elbo", "nll", "mse", "reconstruction", "kl", "active_units")
DECIDING = ("val/nll", "val/elbo", "val/mse", "val/loss")
COSTS = ("images_per_second", "train_seconds")


@dataclass
class Comparison:
    """What every table and chart is made of.

    Attributes:
        title: of the report.
        entries: all runs.
        table: the settings of all of them.
        by: the columns by which they are grouped.
        keys: those of them that tables and charts show.
        differing: the columns in which they differ.
        groups: best first.
        metrics: those that are shown.
        sort: the one that decides.
        spread: what stands behind ±: "sd" or "ci".
        apart: metrics in which not all groups can be compared, and why.
        notes: on what was found and how it was compared, sentences.
        colours: of a chart: what stands for which group; set by the report.
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

    def has(self, metric: str) -> bool:
        """Whether a completed run measured it."""
        return any(math.isfinite(e.metrics.get(metric, math.nan)) for e in self.entries if e.state == "completed")


def compare(title: str, entries: list[Entry], settings: dict, conf: Path, notes: list[str]) -> Comparison:
    """Group and rank runs.

    Args:
        title: of the report.
        entries: the runs, at least one.
        settings: of the command: `by` and `metrics` (lists, empty for what suits the runs), `sort` (a metric, None for
            the same; `-METRIC` puts the largest first), `spread`.
        conf: the folder of the config groups.
        notes: on what was found.

    Raises:
        ValueError: if a setting names what no run has.
    """
    table = columns(entries, conf)
    differ = differing(entries, table)
    by = find_columns(settings["by"], table) or differ
    groups = group_runs(entries, by, differ, table)
    known = measured(entries)
    follow = entangled(groups, by)
    keys = by if settings["by"] else [key for key in by if key not in follow]
    for group in groups:
        group.hidden = set(by) - set(keys)
    metrics = [find_name(name, known, "metric", "/") for name in settings["metrics"]] or usual(known)
    name = (settings["sort"] or "").removeprefix("-")
    sort = (
        find_name(name, known, "metric", "/")
        if name
        else deciding(groups, [m for m in dict.fromkeys((*DECIDING, *metrics)) if m in known])
    )
    largest_first = True if (settings["sort"] or "").startswith("-") else None
    if sort not in metrics and sort:
        metrics = [sort, *metrics]
    groups = rank(groups, sort, largest_first)
    comparison = Comparison(
        title, entries, table, by, keys, differ, groups, metrics, sort, settings["spread"], apart(groups, metrics)
    )
    comparison.notes = [*notes, *together(follow), *caveats(comparison)]
    return comparison


def measured(entries: list[Entry]) -> list[str]:
    """Every metric of any run, those of completed runs first."""
    ordered = sorted(entries, key=lambda entry: entry.state != "completed")
    return list(dict.fromkeys(key for entry in ordered for key in entry.metrics))


def usual(known: list[str]) -> list[str]:
    """The metrics that are shown where none are named: of the validation, then of the test."""
    return [f"{stage}/{name}" for stage in ("val", "test") for name in METRICS if f"{stage}/{name}" in known]


def deciding(groups: list[Group], metrics: list[str]) -> str:
    """The first metric in which all groups that have completed runs can be compared, else the one that most can."""
    done = [group for group in groups if group.completed]
    for metric in metrics:
        if done and all(group.values(metric) for group in done) and common_yardstick(done, metric):
            return metric

    def merit(metric: str) -> tuple[int, int]:
        having = [group for group in done if group.values(metric)]
        return len(having), -len({group.yardstick(metric) for group in having})

    return max(metrics, key=merit, default="")


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
    sizes = [group.spread(sort).n for group in groups]
    by_reason: dict[str, list[str]] = {}
    for metric, reason in comparison.apart.items():
        by_reason.setdefault(reason, []).append(base(metric))
    for reason, names in by_reason.items():
        named = ", ".join(dict.fromkeys(names))
        notes.append(f"Not comparable between all groups: {named}, because they differ in {reason}. "
                     f"Read {'them' if len(names) > 1 else 'it'} only among groups that share it.")  # fmt: skip
    if not has_better(sort) and groups:
        notes.append(f"No value of {base(sort)} is better than another; the order is by size.")
    if sizes and min(sizes) < 2:
        few = sum(size < 2 for size in sizes)
        notes.append(f"{few} of {len(sizes)} groups have a single seed: their place may change with another seed.")
    elif sizes and min(sizes) < MIN_SEEDS:
        notes.append(f"Differences are tested from {MIN_SEEDS} seeds on; some groups have fewer.")
    notes += repeats(comparison) + pooled(comparison) + not_finite(comparison) + survivors(comparison)
    return notes + pruned(comparison)


def repeats(comparison: Comparison) -> list[str]:
    """A note on runs that share all settings and the seed."""
    more = sum(len(g.completed) - len({u for r, u in zip(g.runs, g.units, strict=True) if r.state == "completed"})
               for g in comparison.groups)  # fmt: skip
    if not more:
        return []
    hint = "" if "folder" in comparison.by else "; by=folder,... sets apart those from different folders"
    return [f"{more} completed runs repeat the settings and the seed of another; they count as one, their mean{hint}."]


def pooled(comparison: Comparison) -> list[str]:
    """A note on settings that differ within the groups."""
    keys = [key for key in comparison.differing if key not in comparison.by]
    return [f"The groups pool runs that differ in {', '.join(keys)}. n counts seeds: runs that share these and the "
            "seed are compared, and their differences averaged within each seed."] if keys else []  # fmt: skip


def not_finite(comparison: Comparison) -> list[str]:
    """A note on completed runs without a finite value."""
    done = [entry for entry in comparison.entries if entry.state == "completed" and entry.settings]
    bad = [e for e in done if comparison.sort in e.metrics and not math.isfinite(e.metrics[comparison.sort])]
    names = ", ".join(entry.name for entry in bad[:5]) + (", ..." if len(bad) > 5 else "")
    return [f"{base(comparison.sort)} is not finite in {len(bad)} completed runs, left out: {names}."] if bad else []


def survivors(comparison: Comparison) -> list[str]:
    """A note on groups of which only some runs came to their end."""
    lost = [g for g in comparison.ranked if any(run.state == "failed" for run in g.runs)]
    numbers = ", ".join(str(group.number) for group in lost)
    return [f"Groups {numbers} have failed runs: what is shown of them are the runs that survived."] if lost else []


def pruned(comparison: Comparison) -> list[str]:
    """A note on completed runs of a search that its pruner may have ended."""
    done = [entry for entry in comparison.entries if entry.state == "completed"]
    watched = [entry for entry in done if any(key.startswith("callbacks.pruning.") for key in entry.settings)]
    limits = [(entry, entry.settings.get("trainer.max_epochs")) for entry in watched]
    early = sum(is_number(limit) and entry.metrics.get("epochs", math.inf) < limit for entry, limit in limits)
    return [f"Completed runs that ended before trainer.max_epochs, in a search with a pruner: {early}. Their values "
            "are those of fewer epochs."] if early else []  # fmt: skip
