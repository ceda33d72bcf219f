"""Runs as groups: those with the same settings but for the seed, ranked by a metric, with what the ranking is worth.

A config group is one column, named by the chosen option (`model` is mlp or conv), although its options differ in many
settings; a setting of it is a column of its own only where it differs within one option.

Two values of a metric are comparable if they were measured with the same yardstick; which one that is the catalogue of
metrics says.
"""

import json
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vae_lab.compare.runs import Entry
from vae_lab.compare.statistics import MIN_SEEDS, Difference, Spread, Unit, Values, compare_with, seed_means, spread
from vae_lab.config import roles
from vae_lab.config.explain import did_you_mean
from vae_lab.metrics.catalogue import find, key_of

ABSENT = "–"
FOLDER = "folder"  # the column that says where a run was found; only on request
OF_ITS_KIND = " of its kind"  # where not all groups can be compared: of those that can be
# A value of these columns says by itself what it is.
NAMES_THEMSELVES = ("dataset", "model", "posterior", "objective", "prior", "optimizer", "optimizer.schedule", FOLDER)
# What a likelihood's log is of; one that is not known is comparable with itself only.
MEASURES = {"vae_lab.models.likelihoods.Gaussian": "density", "vae_lab.models.likelihoods.Bernoulli": "probability"}
Columns = dict[str, list[Any]]  # a value for each run


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
        named = {key: value for key, value in self.settings.items() if key not in self.hidden and value != ABSENT}
        words = (v if k in NAMES_THEMSELVES else f"{k.rpartition('.')[2]}={v}" for k, v in named.items())
        return ", ".join(words) or "all runs"

    @property
    def first_run(self) -> Entry | None:
        """The completed run with the smallest seed that keeps a checkpoint."""
        kept = [run for run in self.completed if run.folder and (run.folder / "checkpoints" / "best.ckpt").is_file()]
        return min(kept, key=lambda run: run.seed if isinstance(run.seed, int) else math.inf, default=None)

    @property
    def is_best(self) -> bool:
        """Whether it is the first of those that it can be compared with, and of more than one seed."""
        return self.verdict in ("best", f"best{OF_ITS_KIND}")

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

    def unfinished(self, metric: str) -> Spread:
        """The same of the last values of runs that are not at their end."""
        runs = [run for run in self.runs if run.state not in ("completed", "failed")]
        return spread([run.metrics[metric] for run in runs if math.isfinite(run.metrics.get(metric, math.nan))])


# columns


def columns(entries: list[Entry]) -> Columns:
    """Every chosen option and every setting, a value for each run; options first, where every run names its own."""
    known = [entry for entry in entries if entry.settings]
    names = list(dict.fromkeys(key for entry in known for key in entry.settings))
    parts = dict.fromkeys(part for entry in known for part in entry.choices) if all(e.choices for e in known) else {}
    found: Columns = {
        part: [entry.choices.get(part, ABSENT) for entry in entries]
        for part in parts
        if any(name.startswith(f"{part}.") for name in names)
    }
    found |= {key: [entry.settings.get(key, ABSENT) for entry in entries] for key in names if key not in found}
    return found | {FOLDER: [entry.source for entry in entries]}


def differing(entries: list[Entry], table: Columns) -> list[str]:
    """The columns that say in what the runs differ, without the seed and what does not concern the model.

    Runs without a config, which ended before it was written, do not count.
    """
    known = [i for i, entry in enumerate(entries) if entry.settings]
    texts = {key: tuple(as_text(values[i]) for i in known) for key, values in table.items() if not is_aside(key)}
    changed = {key: own for key, own in texts.items() if len(set(own)) > 1}
    parts = {part for entry in entries for part in entry.choices}

    def follows(key: str) -> bool:
        """Whether a setting follows from an option, or an option changes no setting that counts."""
        if key in parts:
            return not any(other.startswith(f"{key}.") for other in changed)
        part = max((part for part in parts if key.startswith(f"{part}.") and part in changed), key=len, default=None)
        return part is not None and len(set(zip(texts[part], texts[key], strict=True))) == len(set(texts[part]))

    kept = {own: key for key, own in reversed(changed.items()) if not follows(key)}  # the first of copies
    return [key for key, own in changed.items() if kept.get(own) == key]


def is_aside(key: str) -> bool:
    """Whether a column is the seed, the machine's or a logger's."""
    return key == FOLDER or roles.is_aside(key)


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


def as_text(value: Any) -> str:
    """A value as a person would write it on the command line, the same text for the same value."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))  # 1 and 1.0 are the same setting
    return json.dumps(value, default=str, sort_keys=True)


def find_name(name: str, known: Iterable[str], kind: str, separator: str = ".") -> str:
    """The known name that is meant by itself or by its last part.

    Raises:
        ValueError: naming what is near.
    """
    if name in known:
        return name
    found = [other for other in known if other.rpartition(separator)[2] == name]
    if len(found) > 1:
        plain = [other for other in found if not other.startswith(("objective.", "test/"))]
        found = plain if len(plain) == 1 else found
    if len(found) != 1:
        several = f", which could be {' or '.join(found)}" if found else did_you_mean(name, known)
        raise ValueError(f"none of the runs has the {kind} {name}{several}" if not found else f"{kind} {name}{several}")
    return found[0]


def shorten(keys: list[str]) -> Callable[[str], str]:
    """A function that gives the last part of a key, or all of it where several share that."""
    last = [key.rpartition(".")[2] for key in keys]
    return lambda key: key.rpartition(".")[2] if last.count(key.rpartition(".")[2]) == 1 else key


# what can be compared


def is_higher_better(metric: str) -> bool:
    """Whether the largest value of a metric comes first."""
    return find(metric).better == "higher"


def yardstick(entry: Entry, metric: str) -> Hashable:
    """What a value of a metric depends on besides the model: two runs are comparable if this is the same."""
    needs, settings = find(metric).comparable, entry.settings
    if needs == "always":
        return ()
    parts = [(key, value) for key, value in settings.items() if roles.is_of_images(key)]
    parts += [(key, settings.get(key)) for key in ("trainer.limit_val_batches", "trainer.overfit_batches")]
    if str(settings.get("dataset.source._target_", "")).endswith("ImageFolder"):
        parts.append(("dataset.root", settings.get("dataset.root")))
    if needs in ("likelihood", "weights"):
        measure = MEASURES.get(str(settings.get("loss.likelihood._target_")))
        own = [(key, value) for key, value in settings.items() if key.startswith("loss.likelihood.")]
        parts += [("loss", measure)] if measure else own
    if needs == "weights":
        parts += [(key, value) for key, value in settings.items() if roles.is_weight(key)]
    return tuple((key, as_text(value)) for key, value in sorted(parts, key=lambda item: item[0]))


def classes(groups: list[Group], metric: str) -> list[list[Group]]:
    """The groups that measured a metric, those together that can be compared in it."""
    found: dict[Hashable, list[Group]] = {}
    for group in groups:
        if any(metric in run.history.values or metric in run.metrics for run in group.runs):
            found.setdefault(group.yardstick(metric), []).append(group)
    found.pop(None, None)
    return list(found.values())


def apart(groups: list[Group], metrics: list[str]) -> dict[str, str]:
    """The metrics in which not all groups can be compared, each with the settings that are in the way."""
    found = {}
    for metric in metrics:
        sticks = list(dict.fromkeys(group.yardstick(metric) for group in groups if group.values(metric)))
        mixed = any(group.completed and group.yardstick(metric) is None for group in groups)
        if len(sticks) > 1 or mixed:
            keys = [key for other in sticks[1:] for key in sorted({key for key, _ in set(sticks[0]) ^ set(other)})]
            words = ["the likelihood" if key == "loss" or key.startswith("loss.likelihood") else key for key in keys]
            found[metric] = ", ".join(dict.fromkeys(words)) or "the settings that are pooled"
    return found


# groups and their order


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


def rank(groups: list[Group], metric: str, descending: bool | None = None) -> list[Group]:
    """Sort groups by a metric, best first, and set their numbers and verdicts.

    Groups that cannot be compared stay apart: first all that share the yardstick of the first one, and so on. Groups
    without a completed run come last.

    Args:
        groups: in any order.
        metric: that decides.
        descending: whether the largest value comes first; None is where higher is better.
    """
    factor = -1 if (is_higher_better(metric) if descending is None else descending) else 1
    rest = sorted((group for group in groups if not group.values(metric)), key=lambda group: not group.completed)
    members: dict[Hashable, list[Group]] = {}
    for group in groups:
        if group.values(metric):
            members.setdefault(group.yardstick(metric), []).append(group)
    for those in members.values():
        those.sort(key=lambda group: factor * group.spread(metric).mean)
    ordered = [group for those in (*members.values(), rest) for group in those]
    for number, group in enumerate(ordered, 1):
        group.number = number
    for those in members.values():
        judge(those, metric, descending, len(members) > 1)
    for group in rest:
        group.verdict = why_not_ranked(group, metric)
    return ordered


def judge(members: list[Group], metric: str, descending: bool | None, has_others: bool) -> None:
    """Say of every group whether it is different from the first one, and which one that is if there are others."""
    better = find(metric).better if descending is None else None
    kind = OF_ITS_KIND if has_others else ""
    if len(members) == 1:
        members[0].verdict = f"the only one{kind}" if metric else ""
        return
    more, less = {"higher": ("better", "worse"), "lower": ("worse", "better"), None: ("higher", "lower")}[better]
    first, *others = members
    place = "best" if better else "highest" if descending else "lowest"
    first.verdict = f"{place}{kind}" + (", of a single seed" if first.spread(metric).n < 2 else "")
    differences = compare_with(0, [group.values(metric) for group in members])[1:]
    for group, found in zip(others, differences, strict=True):
        group.difference = found
        follows = found.mean * (group.spread(metric).mean - first.spread(metric).mean) > 0
        if found.is_distinct:
            than = f" than {first.number}" if has_others else ""
            where = "" if follows else " in the runs they share"  # others, which one of them lacks, decide the order
            group.verdict = f"{more if found.mean > 0 else less}{than}{where}"
        elif found.n < 2:
            group.verdict = "not tested: a single seed"
        elif math.isnan(found.p) and found.n >= MIN_SEEDS:
            group.verdict = "not tested: they pool different settings"
        else:
            group.verdict = f"not distinguishable{f' from {first.number}' if has_others else ''} (n={found.n})"


def why_not_ranked(group: Group, metric: str) -> str:
    """What keeps a group out of the ranking."""
    if not group.completed:
        states = [run.state for run in group.runs]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    if group.yardstick(metric) is None:
        return "pools runs that cannot be compared"
    if any(metric in run.metrics for run in group.completed):
        return f"{key_of(metric)} is not finite"
    return f"has no {key_of(metric)}"
