"""Runs as groups: those with the same settings but for the seed, ranked by a metric, with what the ranking is worth.

A config group is one column, named by the chosen option (`model` is mlp or conv); a setting of it is a column of its
own only where it differs within one option. Values are comparable where the yardstick is the same.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from vae_lab.compare.runs import Entry
from vae_lab.compare.statistics import (
    MIN_SEEDS,
    Difference,
    Spread,
    Unit,
    Values,
    compare_with_first,
    seed_means,
    spread,
)
from vae_lab.config import roles
from vae_lab.config.explain import did_you_mean
from vae_lab.metrics.catalogue import find, key_of

ABSENT = "–"
FOLDER = "folder"  # the column that says where a run was found; only on request
IMAGES = "images"  # the column of their fingerprints
# In which order columns are shown, whatever that of the file is; then others by their names.
ORDER = ("dataset", "latent_dim", "model", "posterior", "prior", "loss", "objective", "optimizer", "trainer")
MAX_TOGETHER = 5  # groups of which a setting can be said to bring others with it though none of its values comes twice
DIGITS = range(3, 18)  # of a number in a table: the fewest that tell it from the others
OF_ITS_KIND = " of its kind"  # where not all groups can be compared: of those that can be
# A value of these columns says by itself what it is.
NAMES_THEMSELVES = ("dataset", "model", "posterior", "objective", "prior", "optimizer", "optimizer.schedule", FOLDER)
Columns = dict[str, list[Any]]  # a value for each run
Yardstick = tuple[tuple[str, str], ...]  # the settings that a value of a metric depends on besides the model


@dataclass(eq=False)
class Group:
    """The runs of one configuration."""

    settings: dict[str, str]  # the value of every column it is grouped by, as text
    numbers: dict[str, float]  # those of them that are numbers
    runs: list[Entry] = field(default_factory=list)  # all of them, also failed and unfinished ones
    units: list[Unit] = field(default_factory=list)  # what pairs each run with runs of other groups
    number: int = 0  # its place in the table, from 1
    verdict: str = ""  # of the comparison with the best one, in words
    difference: Difference | None = None  # from the best one
    hidden: set[str] = field(default_factory=set)  # columns that follow from others, and are left out of its name

    @cached_property
    def completed(self) -> list[Entry]:
        """The runs that are at their end."""
        return [run for run in self.runs if run.is_done]

    @cached_property
    def label(self) -> str:
        """What tells it from the others, on one line."""
        named = {key: value for key, value in self.settings.items() if key not in self.hidden and value != ABSENT}
        name = shorten([key for key in self.settings if key not in self.hidden])
        words = (v if k in NAMES_THEMSELVES else f"{name(k)}={v}" for k, v in named.items())
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

    def setting(self, key: str) -> Any:
        """The value of a column: a number where that is what it is, else text."""
        return self.numbers.get(key, self.settings[key])

    @cache  # noqa: B019
    def yardstick(self, metric: str) -> Yardstick | None:
        """That of its runs; None if they have several, so that no mean can be taken."""
        found = {yardstick(run, metric) for run in (self.completed or self.runs)}
        return found.pop() if len(found) == 1 else None

    @cache  # noqa: B019 (groups live as long as the command)
    def values(self, metric: str) -> Values:
        """The finite values of completed runs; runs with the same unit, which are repeats, count as one, their mean."""
        found: dict[Unit, list[float]] = {}
        for run, unit in zip(self.runs, self.units, strict=True):
            if run.is_done and math.isfinite(run.value(metric)):
                found.setdefault(unit, []).append(run.value(metric))
        is_one = self.yardstick(metric) is not None
        return {unit: sum(own) / len(own) for unit, own in found.items()} if is_one else {}

    @cache  # noqa: B019
    def spread(self, metric: str) -> Spread:
        """Mean and deviation over seeds; where settings are pooled, a seed counts with the mean of its runs."""
        return spread(seed_means(self.values(metric)))

    def unfinished(self, metric: str) -> Spread:
        """The same of the last values of runs that are not at their end."""
        going = [run.value(metric) for run in self.runs if run.state not in ("completed", "failed")]
        return spread([value for value in going if math.isfinite(value)])


# columns


def columns(entries: list[Entry]) -> Columns:
    """Every chosen option and every setting, a value for each run; options first, where every run names its own.

    Runs that have not read their images, or do not say which, are given those of runs with the same dataset settings.
    """
    datasets = [as_text({k: v for k, v in entry.settings.items() if roles.is_of_images(k) or k == "dataset.root"})
                for entry in entries]  # fmt: skip
    images = {dataset: entry.images for dataset, entry in zip(datasets, entries, strict=True) if entry.images}
    for dataset, entry in zip(datasets, entries, strict=True):
        entry.images = entry.images or images.get(dataset, dataset)
    known = [entry for entry in entries if entry.settings]
    names = {key for entry in known for key in entry.settings}
    sections = {key.rpartition(".")[0] for key in names}
    sections |= {section[:i] for section in sections for i, letter in enumerate(section) if letter == "."}
    parts = {part for entry in known for part in entry.choices} & sections if all(e.choices for e in known) else set()

    def place(key: str) -> tuple:
        first = key.partition(".")[0]
        return ORDER.index(first) if first in ORDER else len(ORDER), first, key.count("."), key

    found: Columns = {part: [entry.choices.get(part, ABSENT) for entry in entries] for part in sorted(parts, key=place)}
    found |= {k: [e.settings.get(k, ABSENT) for e in entries] for k in sorted(names - parts, key=place)}
    return found | {IMAGES: [e.images[:8] for e in entries], FOLDER: [entry.source for entry in entries]}


def differing(entries: list[Entry], table: Columns) -> list[str]:
    """The columns that say in what the runs differ, without the seed and what does not concern the model.

    Runs without a config, which ended before it was written, do not count.
    """
    known = [i for i, entry in enumerate(entries) if entry.settings]
    concern = [key for key in table if key not in (FOLDER, IMAGES) and not roles.is_aside(key)]
    texts = {key: tuple(as_text(table[key][i]) for i in known) for key in concern}
    changed = {key: own for key, own in texts.items() if len(set(own)) > 1}
    parts = {part for entry in entries for part in entry.choices}

    def follows(key: str) -> bool:
        """Whether a setting follows from an option, or an option changes no setting that counts."""
        if key in parts:
            return not any(other.startswith(f"{key}.") for other in changed)
        part = max((part for part in parts if key.startswith(f"{part}.") and part in changed), key=len, default=None)
        return part is not None and len(set(zip(texts[part], texts[key], strict=True))) == len(set(texts[part]))

    def copies(key: str, other: str) -> bool:
        """Whether a setting is another one, such as the objective's of a weight of the loss, where an option has it."""
        pairs = set(zip(changed[key], changed[other], strict=True))
        name, *names = (k.rpartition(".")[2].lower() for k in (key, other))
        return all(own == its or (own == ABSENT and names == [name]) for own, its in pairs)

    kept: list[str] = []  # of copies the one that users are promised, or the shortest
    for key in sorted(changed, key=lambda key: (key not in parts, key not in roles.ROLES, key.count("."))):
        if not follows(key) and not any(copies(key, other) for other in kept):
            kept.append(key)
    found = [key for key in changed if key in kept]
    images = [entries[i].images for i in known]  # a difference where no setting of the dataset accounts for it
    others = list(zip(*(texts[key] for key in found if key.startswith("dataset")), images, strict=True))
    return [*found, IMAGES] if len(set(others)) > len({other[:-1] for other in others}) else found


def entangled(groups: list[Group], by: list[str]) -> dict[str, str]:
    """The columns whose value follows from that of an earlier one, and from which.

    From one whose values seldom come twice in many groups, as a search draws them, anything would follow.
    """

    def count(*keys: str) -> int:
        return len({tuple(group.settings[key] for key in keys) for group in groups})

    found: dict[str, str] = {}
    telling = [key for key in by if len(groups) <= MAX_TOGETHER or 2 * count(key) <= len(groups)]
    for i, key in enumerate(by):
        sources = (other for other in by[:i] if other not in found and other in telling)
        if other := next((other for other in sources if count(other, key) == count(other)), None):
            found[key] = other
    return found


def as_text(value: Any) -> str:
    """A value as a person would write it on the command line, the same text for the same value."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))  # 1 and 1.0 are the same setting
    return json.dumps(value, default=str, sort_keys=True)


def short_texts(values: list[Any]) -> dict[str, str]:
    """For the text of every value one with as few digits as tell it from the others."""
    exact = {as_text(value): value for value in values}
    for digits in DIGITS:
        short = {text: as_text(float(f"{v:.{digits}g}")) if isinstance(v, float) else text for text, v in exact.items()}
        if len(set(short.values())) == len(exact):
            return short
    return {text: text for text in exact}


def find_name(name: str, known: Iterable[str], kind: str, separator: str = ".") -> str:
    """The known name that is meant by itself or by its last part.

    Raises:
        ValueError: naming what is near.
    """
    if name in known:
        return name
    found = [other for other in known if other.rpartition(separator)[2] == name]
    plain = [other for other in found if not other.startswith(("objective.", "test/"))]
    found = plain if len(plain) == 1 else found
    if not found:
        raise ValueError(f"none of the runs has the {kind} {name}{did_you_mean(name, known)}")
    if len(found) > 1:
        raise ValueError(f"{kind} {name}, which could be {' or '.join(found)}")
    return found[0]


def shorten(keys: list[str]) -> Callable[[str], str]:
    """A function that gives the last part of a key, or all of it where several share that."""
    last = [key.rpartition(".")[2] for key in keys]
    return lambda key: key.rpartition(".")[2] if last.count(key.rpartition(".")[2]) == 1 else key


def count_states(entries: list[Entry]) -> str:
    """How many runs there are in each state."""
    return ", ".join(f"{n} {state}" for state, n in sorted(Counter(entry.state for entry in entries).items()))


# what can be compared


def yardstick(entry: Entry, metric: str) -> Yardstick:
    """What a value of a metric depends on besides the model: two runs are comparable if this is the same."""
    needs, settings = find(metric).comparable, entry.settings
    if needs == "always":
        return ()
    parts: dict[str, Any] = {IMAGES: entry.images}
    parts |= {key: settings.get(key) for key in ("dataset.binarize", "trainer.limit_val_batches")}
    if needs in ("likelihood", "weights"):  # one that does not say what its log is of is comparable with itself only
        likelihood = {key: value for key, value in settings.items() if key.startswith("loss.likelihood.")}
        measure = settings.get("loss.measure")
        parts |= {"loss": measure} if measure else likelihood
    if needs == "weights":
        parts |= weights_of(entry)
    return tuple((key, as_text(value)) for key, value in sorted(parts.items()))


def weights_of(entry: Entry) -> dict[str, Any]:
    """How it weighs the terms of the loss."""
    return {key: value for key, value in entry.settings.items() if roles.is_weight(key)}


def classes(groups: list[Group], metric: str) -> list[list[Group]]:
    """The groups that measured a metric, those together that can be compared in it."""
    found: dict[Yardstick | None, list[Group]] = {}
    for group in groups:
        if any(metric in run.history.values or metric in run.metrics for run in group.runs):
            found.setdefault(group.yardstick(metric), []).append(group)
    found.pop(None, None)
    return list(found.values())


def apart(groups: list[Group], metrics: list[str]) -> dict[str, str]:
    """The metrics in which not all groups can be compared, each with the settings that are in the way."""
    found = {}
    for metric in metrics:
        sticks = list(dict.fromkeys(group.yardstick(metric) or () for group in groups if group.values(metric)))
        mixed = any(group.completed and group.yardstick(metric) is None for group in groups)
        if len(sticks) > 1 or mixed:
            keys = [key for other in sticks[1:] for key in sorted({key for key, _ in set(sticks[0]) ^ set(other)})]
            words = ["the likelihood" if key == "loss" or key.startswith("loss.likelihood")
                     else "their images" if key == IMAGES else key for key in keys]  # fmt: skip
            found[metric] = ", ".join(dict.fromkeys(words)) or "the settings that are pooled"
    return found


# groups and their order


def group_runs(entries: list[Entry], by: list[str], differing: list[str], table: Columns) -> list[Group]:
    """Put the runs together that share the settings in `by`; other differences are pooled, and pair the runs.

    Runs whose config is unknown are left out.
    """
    groups: dict[tuple, Group] = {}
    pooled = [key for key in differing if key not in by]
    short = {key: short_texts(table[key]) for key in by}
    for i, entry in enumerate(entries):
        if not entry.settings:
            continue
        raw = {key: table[key][i] for key in by}
        texts = {key: as_text(value) for key, value in raw.items()}
        numbers = {k: v for k, v in raw.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        own = {key: short[key][text] for key, text in texts.items()}
        group = groups.setdefault(tuple(texts.values()), Group(own, numbers))
        group.runs.append(entry)
        seed = entry.location if entry.seed is None else as_text(entry.seed)
        group.units.append((seed, *(as_text(table[key][i]) for key in pooled)))
    return list(groups.values())


def rank(groups: list[Group], metric: str, descending: bool | None = None) -> list[Group]:
    """Sort groups by a metric, best first unless `descending` says how, and set their numbers and verdicts.

    Groups that cannot be compared stay apart: first all that share the yardstick of the first one, and so on. Groups
    without a completed run come last.
    """
    better = find(metric).better if descending is None else None
    is_reversed = find(metric).better == "higher" if descending is None else descending
    ranked = [group for group in groups if group.values(metric)]
    rest = sorted((group for group in groups if not group.values(metric)), key=lambda group: not group.completed)
    kinds: dict[Yardstick | None, list[Group]] = {group.yardstick(metric): [] for group in ranked}
    for group in sorted(ranked, key=lambda group: group.spread(metric).mean, reverse=is_reversed):
        kinds[group.yardstick(metric)].append(group)
    ordered = [group for those in (*kinds.values(), rest) for group in those]
    for number, group in enumerate(ordered, 1):
        group.number = number
    for those in kinds.values():
        judge(those, metric, better, is_reversed, len(kinds) > 1)
    for group in rest:
        if not group.completed:
            group.verdict = count_states(group.runs)
        elif group.yardstick(metric) is None:
            group.verdict = "pools runs that cannot be compared"
        elif any(metric in run.metrics for run in group.completed):
            group.verdict = f"{key_of(metric)} is not finite"
        else:
            group.verdict = f"has no {key_of(metric)}" if metric else ""
    return ordered


def judge(members: list[Group], metric: str, better: str | None, is_reversed: bool, has_others: bool) -> None:
    """Say of every group whether it is different from the first one, and which one that is if there are others."""
    kind = OF_ITS_KIND if has_others else ""
    first, *others = members
    if not others:
        first.verdict = f"the only one{kind}" if metric else ""
        return
    more, less = {"higher": ("better", "worse"), "lower": ("worse", "better"), None: ("higher", "lower")}[better]
    place = "best" if better else "highest" if is_reversed else "lowest"
    first.verdict = f"{place}{kind}" + (", of a single seed" if first.spread(metric).n < 2 else "")
    differences = compare_with_first([group.values(metric) for group in members])
    for group, found in zip(others, differences, strict=True):
        group.difference = found
        follows = found.mean * (group.spread(metric).mean - first.spread(metric).mean) > 0
        if found.is_distinct:
            than = f" than {first.number}" if has_others else ""
            where = "" if follows else " in the runs they share"  # others, which one of them lacks, decide the order
            group.verdict = f"{more if found.mean > 0 else less}{than}{where}"
        elif not found.is_tested:
            few = f"not tested ({found.n} seed{'s' * (found.n != 1)})"
            group.verdict = few if found.n < MIN_SEEDS else "not tested: they pool different settings"
        else:
            group.verdict = f"not distinguishable{f' from {first.number}' if has_others else ''} (n={found.n})"
