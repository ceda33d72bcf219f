"""A comparison: the groups in their order, the metrics that are shown, and what a reader must know of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vae_lab.compare.groups import (
    Columns,
    Group,
    Yardstick,
    apart,
    as_text,
    columns,
    count_states,
    differing,
    entangled,
    find_name,
    group_runs,
    rank,
    weights_of,
)
from vae_lab.compare.runs import Entry
from vae_lab.compare.statistics import MIN_SEEDS
from vae_lab.metrics.catalogue import find, key_of, name_of

# Shown unless metrics are named, where they were measured; the first that all groups can be compared in decides.
GAME = ("generator_loss", "discriminator_loss")  # of two players: each says how good the other one is
METRICS = ("elbo", "nll_isS", "mse", "reconstruction", "kl", "active_units", "fid", "confident", "class_entropy", *GAME)
DECIDING = ("val/nll_isS", "val/elbo", "val/mse", "val/fid", "val/confident", "val/loss")
UNRANKED = (
    "No metric of the runs says which is better: in a game of two a loss is small where the opponent is weak. "
    "vae-lab-eval RUN... metrics=samples measures the samples, and metrics=samples in training; then fid decides."
)
BOUND = "val/elbo"
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


@dataclass(eq=False)
class Comparison:
    """What every table and figure is made of."""

    title: str
    entries: list[Entry]  # all runs
    table: Columns  # the settings of all of them
    by: list[str]  # the columns by which they are grouped
    keys: list[str]  # those of them that tables and figures show
    differing: list[str]  # the columns in which they differ
    groups: list[Group]  # best first
    metrics: list[str]  # those that are shown
    sort: str  # the one that decides
    spread: str  # what stands behind ±: "sd" or "ci"
    apart: dict[str, str]  # metrics in which not all groups can be compared, and why
    notes: list[str] = field(default_factory=list)  # what was found and how it was compared, sentences

    @property
    def shown(self) -> list[str]:
        """The deciding metric, the others, and what a run costs."""
        costs = [key for key in COSTS if self.has(key)]
        return list(dict.fromkeys([*([self.sort] if self.sort else []), *self.metrics, *costs]))

    @property
    def unfinished(self) -> list[Entry]:
        """The runs that are not completed, failed ones first."""
        return sorted((e for e in self.entries if not e.is_done), key=lambda entry: entry.state != "failed")

    @property
    def counts(self) -> str:
        """How many runs there are, in which states."""
        runs, groups = (f"{len(of)} {what}{'s' * (len(of) != 1)}"
                        for of, what in ((self.entries, "run"), (self.groups, "group")))  # fmt: skip
        return f"{runs} in {groups}: {count_states(self.entries)}"

    @property
    def method(self) -> str:
        """How values and verdicts came about."""
        if not self.sort:
            return METHOD.partition(" Each group")[0].format(spread=SPREADS[self.spread])
        return METHOD.format(spread=SPREADS[self.spread], sort=self.sort)

    def title_of(self, metric: str, among: Sequence[str] = ()) -> str:
        """A metric, without its stage where all that are shown have the same one."""
        stages = {other.rpartition("/")[0] for other in among or self.metrics}
        return metric if len(stages) > 1 else key_of(metric)

    def has(self, metric: str) -> bool:
        """Whether a completed run measured it."""
        return any(entry.is_done and math.isfinite(entry.value(metric)) for entry in self.entries)


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
    follow = entangled(groups, grouped_by)
    keys = grouped_by if by else [key for key in grouped_by if key not in follow]
    for group in groups:
        group.hidden = set(grouped_by) - set(keys)
    ordered = sorted(entries, key=lambda entry: not entry.is_done)
    known = list(dict.fromkeys(key for entry in ordered for key in entry.metrics))

    def of_kind(*names: str) -> list[str]:
        return [metric for name in names for metric in known if f"{metric.partition('/')[0]}/{name_of(metric)}" == name]

    usual = of_kind(*(f"{stage}/{name}" for stage in ("val", "test") for name in METRICS))
    shown = [find_name(name, known, "metric", "/") for name in metrics] or usual
    name = (sort or "").removeprefix("-")
    if name:
        name = find_name(name, known, "metric", "/")
    else:
        of_game = ("loss", *GAME) if any(key_of(key) in GAME for key in known) else ()
        candidates = dict.fromkeys([*of_kind(*DECIDING), *shown])
        name = deciding(groups, [metric for metric in candidates if key_of(metric) not in of_game])
    if name and name not in shown:
        shown = [name, *shown]
    groups = rank(groups, name, True if (sort or "").startswith("-") else None)
    parts = apart(groups, shown)
    comparison = Comparison(title, entries, table, grouped_by, keys, differ, groups, shown, name, spread, parts)
    comparison.notes = [*notes, *caveats(comparison, follow)]
    return comparison


def deciding(groups: list[Group], metrics: list[str]) -> str:
    """The first metric in which all groups that measured any can be compared, else the one that most can.

    Where the terms of the loss are weighed differently, the ELBO decides, if need be for each likelihood by itself: a
    smaller weight of the KL buys a smaller mean squared error whatever the model.
    """
    done = [group for group in groups if group.completed and any(group.values(metric) for metric in metrics)]
    weights = {as_text(weights_of(run)) for group in done for run in group.completed}
    if len(weights) > 1 and all(group.values(BOUND) for group in done):
        return BOUND

    def merit(metric: str) -> tuple[bool, int, int]:
        having = [group for group in done if group.values(metric)]
        kinds = len({group.yardstick(metric) for group in having})
        return bool(done) and len(having) == len(done) and kinds == 1, len(having), -kinds

    return max(metrics, key=merit, default="")


def conclusion(comparison: Comparison) -> str:
    """What can be said of the best group, and of the best of those that cannot be compared with it, in sentences."""
    metric = comparison.sort
    kinds: dict[Yardstick | None, list[Group]] = {}
    for group in (group for group in comparison.groups if group.values(metric)):
        kinds.setdefault(group.yardstick(metric), []).append(group)
    if len(comparison.groups) == 1 == len(kinds):
        return "All runs are of one group; there is nothing to compare it with."
    if not metric and any(group.completed for group in comparison.groups):
        return "The groups are not ranked."
    told = []
    for first, *rivals in list(kinds.values())[:MAX_CLASSES]:
        found = f"{first.label} has the {'best' if find(metric).better else 'first'} mean {metric}"
        found += " of those that can be compared with it" if len(kinds) > 1 else ""
        tested = [group for group in rivals if group.difference and group.difference.is_tested]
        unclear = [group for group in tested if group.difference and not group.difference.is_distinct]
        untested, clauses = [group for group in rivals if group not in tested], []
        for those, what in ((unclear, "is not distinguishable from"), (untested, "was not tested against")):
            numbers = first_of([str(group.number) for group in those], 8)
            clauses += [f"it {what} {len(those)} of {len(rivals)} others ({numbers})"] if those else []
        if not rivals and len(kinds) > 1:
            told.append(f"{first.label} can be compared with no other.")
        elif not rivals:
            told.append(f"Only {first.label} has completed runs.")
        elif first.spread(metric).n < 2:
            told.append(f"{found}, but of a single seed: nothing was tested.")
        else:
            told.append(f"{found}; {', and '.join(clauses) or 'it is different from all others'}.")
    return " ".join([*told, *(["..."] if len(kinds) > MAX_CLASSES else [])]) or "No run has been completed yet."


def first_of(words: list[str], most: int) -> str:
    """Words with commas, the first ones if there are more."""
    return ", ".join([*words[:most], *(["..."] if len(words) > most else [])])


def caveats(comparison: Comparison, follow: dict[str, str]) -> list[str]:
    """What a reader must know to read the tables rightly; settings that follow from others are given with these."""
    sort, notes = comparison.sort, []
    groups = [group for group in comparison.groups if group.values(sort)]
    done = [entry for entry in comparison.entries if entry.is_done]
    for other in dict.fromkeys(follow.values()):
        keys = [key for key in follow if follow[key] == other]
        notes.append(f"{', '.join(keys)} {'differs' if len(keys) == 1 else 'differ'} only together with {other}: "
                     "what is due to which cannot be told.")  # fmt: skip
    for reason in dict.fromkeys(comparison.apart.values()):
        names = dict.fromkeys(key_of(metric) for metric, why in comparison.apart.items() if why == reason)
        notes.append(f"Not comparable between all groups: {', '.join(names)}, because they differ in {reason}. "
                     f"Read {'them' if len(names) > 1 else 'it'} only among groups that share it.")  # fmt: skip
    if any(key_of(key) in GAME for run in done for key in run.metrics):
        if not sort:
            notes.append(UNRANKED)
        elif key_of(sort) in ("loss", *GAME):
            notes.append(f"{key_of(sort)} is of a game of two: it is small where the opponent is weak.")
    if groups and not find(sort).better:
        notes.append(f"No value of {key_of(sort)} is better than another; the order is by size.")

    sizes = [group.spread(sort).n for group in groups]
    if few := sum(size < 2 for size in sizes):
        notes.append(f"{few} of {len(sizes)} groups have a single seed: their place may change with another seed.")
    elif sizes and min(sizes) < MIN_SEEDS:
        notes.append(f"Differences are tested from {MIN_SEEDS} seeds on; some groups have fewer.")

    units = [[u for run, u in zip(g.runs, g.units, strict=True) if run.is_done] for g in comparison.groups]
    if more := sum(len(own) - len(set(own)) for own in units):
        hint = "" if "folder" in comparison.by else "; by=folder,... sets apart those from different folders"
        notes.append(f"{more} completed runs repeat the settings and the seed of another; they count as one, their "
                     f"mean{hint}.")  # fmt: skip
    if pooled := [key for key in comparison.differing if key not in comparison.by]:
        notes.append(f"The groups pool runs that differ in {', '.join(pooled)}. n counts seeds: runs that share these "
                     "and the seed are compared, and their differences averaged within each seed.")  # fmt: skip
    if bad := [run.name for run in done if run.settings and not math.isfinite(run.metrics.get(sort, 0))]:
        notes.append(f"{key_of(sort)} is not finite in {len(bad)} completed runs, left out: {first_of(bad, 5)}.")
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
