"""Runs as groups: those with the same settings but for the seed, ranked by a metric, with what the ranking is worth."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

from vae_lab.compare.differences import ABSENT, Columns, as_text
from vae_lab.compare.found import Entry
from vae_lab.compare.statistics import MIN_SEEDS, Difference, Spread, Unit, Values, compare_with, seed_means, spread
from vae_lab.compare.yardsticks import base, difference_in_words, has_better, sign, unit, yardstick


@dataclass
class Group:
    """The runs of one configuration.

    Attributes:
        settings: the value of every column it is grouped by, as text.
        runs: all of them, also failed and unfinished ones.
        units: what pairs each run with runs of other groups: its seed, and the settings over which a group pools.
        number: its place in the table, from 1.
        verdict: of the comparison with the best one, in words.
        difference: from the best one, None for the best.
        hidden: columns that follow from others, and are left out of its name.
    """

    settings: dict[str, str]
    runs: list[Entry]
    units: list[Unit]
    number: int = 0
    verdict: str = ""
    difference: Difference | None = None
    hidden: set[str] = field(default_factory=set)
    _values: dict[str, Values] = field(default_factory=dict)
    _spreads: dict[str, Spread] = field(default_factory=dict)
    _yardsticks: dict[str, Hashable] = field(default_factory=dict)

    @cached_property
    def completed(self) -> list[Entry]:
        """The runs that are at their end."""
        return [run for run in self.runs if run.state == "completed"]

    @property
    def label(self) -> str:
        """What tells it from the others, on one line."""
        named = {key: value for key, value in self.settings.items() if key not in self.hidden}
        shown = [(key.rpartition(".")[2], value) for key, value in named.items() if value != ABSENT]
        return ", ".join(value if key in NAMES_THEMSELVES else f"{key}={value}" for key, value in shown) or "all runs"

    def yardstick(self, metric: str) -> Hashable:
        """That of its runs; None if they have several, so that no mean can be taken."""
        if metric not in self._yardsticks:
            found = {yardstick(run, metric) for run in (self.completed or self.runs)}
            self._yardsticks[metric] = found.pop() if len(found) == 1 else None
        return self._yardsticks[metric]

    def values(self, metric: str) -> Values:
        """The finite values of completed runs; runs with the same unit, which are repeats, count as one, their mean."""
        if metric not in self._values:
            found: dict[Unit, list[float]] = {}
            for run, unit in zip(self.runs, self.units, strict=True):
                value = run.metrics.get(metric, math.nan)
                if run.state == "completed" and math.isfinite(value):
                    found.setdefault(unit, []).append(value)
            comparable = self.yardstick(metric) is not None
            self._values[metric] = {unit: sum(v) / len(v) for unit, v in found.items()} if comparable else {}
        return self._values[metric]

    def spread(self, metric: str) -> Spread:
        """Mean and deviation over seeds; where settings are pooled, a seed counts with the mean of its runs."""
        if metric not in self._spreads:
            self._spreads[metric] = spread(seed_means(self.values(metric)))
        return self._spreads[metric]

    @property
    def is_best(self) -> bool:
        """Whether it is the first of those that it can be compared with, and of more than one seed."""
        return self.verdict in ("best", f"best{OF_ITS_KIND}")

    def unfinished(self, metric: str) -> Spread:
        """The same of the last values of runs that are not at their end."""
        runs = [run for run in self.runs if run.state not in ("completed", "failed")]
        return spread([run.metrics[metric] for run in runs if math.isfinite(run.metrics.get(metric, math.nan))])


OF_ITS_KIND = " of its kind"  # where not all groups can be compared: of those that can be
# A value of these columns says by itself what it is.
NAMES_THEMSELVES = ("dataset", "model", "posterior", "objective", "prior", "optimizer", "schedule", "folder")


def group_runs(entries: list[Entry], by: list[str], differing: list[str], table: Columns) -> list[Group]:
    """Put the runs together that share the settings in `by`; runs whose config is unknown are left out.

    Args:
        entries: the runs.
        by: the columns.
        differing: all columns in which the runs differ; what is not in `by` is pooled, and pairs the runs.
        table: the columns.
    """
    groups: dict[tuple, Group] = {}
    pooled = [key for key in differing if key not in by]
    for i, entry in enumerate(entries):
        if not entry.settings:
            continue
        values = {key: as_text(table[key][i]) for key in by}
        group = groups.setdefault(tuple(values.values()), Group(values, [], []))
        group.runs.append(entry)
        seed = entry.location if entry.seed is None else as_text(entry.seed)
        group.units.append((seed, *(as_text(table[key][i]) for key in pooled)))
    return list(groups.values())


def first_run(group: Group) -> Entry | None:
    """The completed run with the smallest seed that keeps a checkpoint."""
    kept = [run for run in group.completed if run.folder and (run.folder / "checkpoints" / "best.ckpt").is_file()]
    return min(kept, key=lambda run: run.seed if isinstance(run.seed, int) else math.inf, default=None)


def entangled(groups: list[Group], by: list[str]) -> dict[str, str]:
    """The columns whose value follows from that of an earlier one, and from which."""
    found: dict[str, str] = {}
    for i, key in enumerate(by):
        for other in (other for other in by[:i] if other not in found):
            values = {(group.settings[other], group.settings[key]) for group in groups}
            if len(values) == len({value for value, _ in values}):
                found[key] = other
                break
    return found


def common_yardstick(groups: list[Group], metric: str) -> bool:
    """Whether all groups that measured a metric can be compared in it."""
    return len({group.yardstick(metric) for group in groups if group.values(metric)}) < 2


def rank(groups: list[Group], metric: str, descending: bool | None = None) -> list[Group]:
    """Sort groups by a metric, best first, and set their numbers and verdicts.

    Groups that cannot be compared stay apart: first all that share the yardstick of the first one, and so on. Groups
    without a completed run come last.

    Args:
        groups: in any order.
        metric: that decides.
        descending: whether the largest value comes first; None is where higher is better.
    """
    factor = sign(metric) if descending is None else -1 if descending else 1
    measured = [group for group in groups if group.values(metric)]
    rest = [group for group in groups if not group.values(metric)]
    classes: dict[Hashable, list[Group]] = {}
    for group in measured:
        classes.setdefault(group.yardstick(metric), []).append(group)
    for members in classes.values():
        members.sort(key=lambda group: factor * group.spread(metric).mean)
    rest.sort(key=lambda group: not group.completed)
    ordered = [group for members in (*classes.values(), rest) for group in members]
    for number, group in enumerate(ordered, 1):
        group.number = number
    for members in classes.values():
        judge(members, metric, descending, len(classes) > 1)
    for group in rest:
        group.verdict = why_not_ranked(group, metric)
    return ordered


def judge(members: list[Group], metric: str, descending: bool | None, has_others: bool) -> None:
    """Say of every group whether it is different from the first one, and which one that is if there are others."""
    first = "best" if has_better(metric) and descending is None else "highest" if descending else "lowest"
    kind = OF_ITS_KIND if has_others else ""
    if len(members) == 1:
        members[0].verdict = f"the only one{kind}" if metric else ""
        return
    more, less = ("higher", "lower") if first != "best" else ("worse", "better")[:: sign(metric)]
    differences = compare_with(0, [group.values(metric) for group in members])
    members[0].verdict = f"{first}{kind}" + (", of a single seed" if members[0].spread(metric).n < 2 else "")
    for group, found in zip(members[1:], differences[1:], strict=True):
        group.difference = found
        group.verdict = not_different(found, members[0].number if has_others else None)
        if found.is_distinct:
            than = f" than {members[0].number}" if has_others else ""
            follows = found.mean * (group.spread(metric).mean - members[0].spread(metric).mean) > 0
            where = "" if follows else " in the runs they share"  # others, which one of them lacks, decide the order
            group.verdict = f"{more if found.mean > 0 else less}{than}{where}"


def not_different(found: Difference, first: int | None) -> str:
    """Why a group is not called different; `first` is the number of what it was compared with, if it must be said."""
    if found.n < 2:
        return "not tested: a single seed"
    if math.isnan(found.p) and found.n >= MIN_SEEDS:
        return "not tested: they pool different settings"
    return f"not distinguishable{f' from {first}' if first else ''} (n={found.n})"


def why_not_ranked(group: Group, metric: str) -> str:
    """What keeps a group out of the ranking."""
    if not group.completed:
        states = [run.state for run in group.runs]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if group.yardstick(metric) is None:
        return "pools runs that cannot be compared"
    if any(metric in run.metrics for run in group.completed):
        return f"{base(metric)} is not finite"
    return f"has no {base(metric)}"


def apart(groups: list[Group], metrics: list[str]) -> dict[str, str]:
    """The metrics in which not all groups can be compared, each with the settings that are in the way."""
    found = {}
    for metric in metrics:
        sticks = list(dict.fromkeys(group.yardstick(metric) for group in groups if group.values(metric)))
        mixed = any(group.completed and group.yardstick(metric) is None for group in groups)
        if len(sticks) > 1 or mixed:
            words = [difference_in_words(sticks[0], other) for other in sticks[1:]]
            found[metric] = ", ".join(dict.fromkeys(", ".join(words).split(", "))) or "the settings that are pooled"
    return found


def axis_title(metric: str) -> str:
    """A metric with its unit."""
    return f"{metric} ({unit(metric)})" if unit(metric) else metric
