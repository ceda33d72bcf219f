"""What a few seeds can tell: means, and which differences from the best are more than chance.

Runs of two configurations are paired by what they share: the seed, and the settings over which a group pools. Such
pooled runs are no independent repetitions: what is counted and tested is always seeds.
"""

import math
import warnings
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats

LEVEL = 0.95
MIN_SEEDS = 3  # for a test
DRAWS = 1_000_000  # normal numbers of a simulation
Unit = tuple[Hashable, ...]  # what pairs a run with others: its seed, and the settings that are pooled
Values = dict[Unit, float]  # of one metric


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (NaN for one value), and half the 95 % confidence interval of the mean."""

    n: int
    mean: float
    sd: float
    ci: float


def spread(values: list[float]) -> Spread:
    """Mean and deviation (divided by n - 1) of some values."""
    n = len(values)
    if n < 2:
        return Spread(n, values[0] if values else math.nan, math.nan, math.nan)
    sd = float(np.std(values, ddof=1))
    return Spread(n, float(np.mean(values)), sd, float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n))


def seed_means(values: Values) -> list[float]:
    """The mean of the values of each seed."""
    found: dict[Hashable, list[float]] = {}
    for (seed, *_), value in values.items():
        found.setdefault(seed, []).append(value)
    return [sum(own) / len(own) for own in found.values()]


def are_alike(first: Values, second: Values) -> bool:
    """Whether every seed of both pools the same settings, so that their means can be compared."""
    pooled = {frozenset(unit[1:] for unit in values if unit[0] == seed) for values in (first, second)
              for seed, *_ in values}  # fmt: skip
    return len(pooled) == 1


@dataclass(frozen=True)
class Difference:
    """What sets two configurations apart in one metric."""

    mean: float  # of the first minus the second
    ci: float  # half the 95 % confidence interval, not adjusted for the number of comparisons; NaN if not tested
    p: float  # of no difference, adjusted for the choice of the best; NaN if not tested
    n: int  # shared seeds, or the seeds of the smaller group
    is_paired: bool  # whether it is of runs with the same seeds

    @property
    def is_tested(self) -> bool:
        """Whether there were seeds enough for a test."""
        return not math.isnan(self.p)

    @property
    def is_distinct(self) -> bool:
        """Whether the two are different, at 5 % for all comparisons with the best together."""
        return self.p < 1 - LEVEL


def difference(first: Values, second: Values) -> Difference:
    """Compare two configurations, before any adjustment.

    A paired t-test (Student 1908), so that what a seed does to both cancels; where fewer than three seeds are shared,
    the means of at least three seeds each are compared instead (Welch 1947).
    """
    shared = [unit for unit in first if unit in second]
    a, b = (seed_means({unit: values[unit] for unit in shared}) for values in (first, second))
    is_paired = len(a) >= MIN_SEEDS
    if not is_paired:
        a, b = seed_means(first), seed_means(second)
    n, mean = min(len(a), len(b)), float(np.mean(a) - np.mean(b))
    if n < MIN_SEEDS or not (is_paired or are_alike(first, second)):
        return Difference(mean, math.nan, math.nan, n, False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runs that differ by exactly the same amount are certain
        found = stats.ttest_rel(a, b) if is_paired else stats.ttest_ind(a, b, equal_var=False)
        low, high = found.confidence_interval(LEVEL)
    p = float(found.pvalue)
    return Difference(mean, float(high - low) / 2, 1.0 if math.isnan(p) else p, n, is_paired)


def adjust(p_values: list[float], n: int) -> list[float]:
    """The chance, if all were the same, of p-values as small as these of comparisons with a best one of n seeds each.

    The best is chosen by looking at the results, and is the luckiest of its equals. So a p-value is adjusted by how
    often the smallest of k - 1 of them, each against the one that came out best of k equal configurations, is as small:
    that is simulated with normal runs. What is known to be different is taken off k (step-down min-p; Westfall and
    Young 1993). The chance of any wrong "different" is then about 5 %, also where the deviations differ tenfold. With
    Holm's correction for k - 1 comparisons it would rise to 9 % (12 configurations of 3 seeds), and Bonferroni's for
    all pairs would ask for a p-value three times as small; no test of `scipy.stats` knows of the choice.
    """
    adjusted, largest, num_left = [0.0] * len(p_values), 0.0, len(p_values) + 1
    for index in np.argsort(p_values, kind="stable"):
        largest = max(largest, chance(p_values[index], num_left, n))
        adjusted[index] = largest
        if largest < 1 - LEVEL:
            num_left -= 1
    return adjusted


def chance(p: float, k: int, n: int) -> float:
    """How often the smallest p-value against the best of k equal configurations is at most `p`."""
    if k == 2:
        return p  # either can be the best, and the test has two sides
    size = 3
    while size < k:  # not every number is simulated: the next larger one is stricter
        size = max(size + 1, size * 5 // 4)
    null = smallest_p_values(size, n)
    return float((np.searchsorted(null, p, side="right") + 1) / (len(null) + 1))


@cache
def smallest_p_values(k: int, n: int) -> np.ndarray:
    """The smallest p-value against the best of k equal configurations of n seeds, sorted, of many simulations."""
    repetitions = min(max(DRAWS // (k * n), 2000), 40_000)
    runs = np.random.default_rng(0).standard_normal((repetitions, k, n))
    best = runs.mean(2).argmax(1)
    differences = runs[np.arange(repetitions), best][:, None] - runs
    error = differences.std(2, ddof=1) / math.sqrt(n)
    error[np.arange(repetitions), best] = math.inf  # no comparison with itself
    return np.sort(2 * stats.t.sf((differences.mean(2) / error).max(1), n - 1))


def compare_with_first(groups: list[Values]) -> list[Difference]:
    """Every other configuration minus the first, the best, with adjusted p-values."""
    found = [difference(values, groups[0]) for values in groups[1:]]
    tested = [raw for raw in found if not math.isnan(raw.p)]
    p_values = iter(adjust([raw.p for raw in tested], max((raw.n for raw in tested), default=0)))
    return [raw if math.isnan(raw.p) else replace(raw, p=next(p_values)) for raw in found]


def image_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The mean over images of what a run's values exceed another's by, (N,) each, and the standard error of that mean.

    The images are the same, so that what makes one of them hard for both cancels. The error is that of these images,
    not of seeds: it says which of two models is better, not which setting.
    """
    differences = first.astype(float) - second
    return float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(differences))
