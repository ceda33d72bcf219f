"""What a few seeds can tell: means, and which differences are more than chance.

Two configurations are compared by the differences between runs that share a seed (a paired t-test; Student 1908), so
that what a seed does to both cancels. Where fewer than three seeds are shared, the means of at least three runs each
are compared instead (Welch 1947). The best configuration is chosen by looking at the results, so that comparing it to
the others is looking at all pairs; the p-values of all pairs are adjusted together (Holm 1979), which keeps the chance
of any wrong "different" at 5 %. Adjusting only for the comparisons with the best would let it rise to about 10 %.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
MIN_SEEDS = 3  # for a test
Values = dict[Hashable, float]  # of one metric, by what pairs the runs: the seed


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation between runs (NaN for one run), and half the 95 % confidence interval of the mean."""

    n: int
    mean: float
    sd: float
    ci: float


def spread(values: list[float]) -> Spread:
    """Mean and deviation (divided by n - 1) of some runs."""
    n = len(values)
    if n < 2:
        return Spread(n, values[0] if values else math.nan, math.nan, math.nan)
    sd = float(np.std(values, ddof=1))
    return Spread(n, float(np.mean(values)), sd, quantile(n - 1) * sd / math.sqrt(n))


def quantile(freedom: float) -> float:
    """Student's t that leaves 2.5 % on each side."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


@dataclass(frozen=True)
class Difference:
    """What sets two configurations apart in one metric.

    Attributes:
        mean: of the first minus the second.
        ci: half the 95 % confidence interval, not adjusted for the number of comparisons; NaN if it was not tested.
        p: of no difference, adjusted for all pairs; NaN if it was not tested.
        n: pairs, or the runs of the smaller group.
        is_paired: whether it is of pairs with the same seed.
    """

    mean: float
    ci: float
    p: float
    n: int
    is_paired: bool

    @property
    def is_distinct(self) -> bool:
        """Whether the two are different, at 5 % for all comparisons together."""
        return self.p < 1 - LEVEL


def difference(first: Values, second: Values) -> Difference:
    """Compare two configurations, before any adjustment."""
    shared = [key for key in first if key in second]
    if len(shared) >= MIN_SEEDS:
        differences = np.array([first[key] - second[key] for key in shared])
        n, mean = len(shared), float(differences.mean())
        error, freedom = float(differences.std(ddof=1)) / math.sqrt(n), n - 1
        return Difference(mean, quantile(freedom) * error, two_sided(mean, error, freedom), n, True)
    a, b = (np.array(list(values.values())) for values in (first, second))
    n, mean = min(len(a), len(b)), float(a.mean() - b.mean())
    if n < MIN_SEEDS:
        return Difference(mean, math.nan, math.nan, n, False)
    parts = [float(x.var(ddof=1)) / len(x) for x in (a, b)]
    error = math.sqrt(sum(parts))
    weight = sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    freedom = error**4 / weight if weight else len(a) + len(b) - 2
    return Difference(mean, quantile(freedom) * error, two_sided(mean, error, freedom), n, False)


def two_sided(mean: float, error: float, freedom: float) -> float:
    """The p-value of a difference; runs that differ by exactly the same amount are certain."""
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(mean) / error))


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values for their number: p_(i) becomes the largest of (m - j + 1) p_(j), j <= i (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def compare_with(best: int, groups: list[Values]) -> tuple[list[Difference | None], int]:
    """Compare every configuration with the best one, adjusted for all pairs.

    Args:
        best: the index of the best.
        groups: the values of each, at least one.

    Returns:
        Each minus the best, None for the best itself, and the number of pairs that were tested.
    """
    large = [index for index, values in enumerate(groups) if len(values) >= MIN_SEEDS]
    tested = {(i, j): difference(groups[j], groups[i]) for i, j in combinations(large, 2)}
    with_p = [pair for pair, raw in tested.items() if not math.isnan(raw.p)]
    adjusted = dict(zip(with_p, holm([tested[pair].p for pair in with_p]), strict=True))
    found: list[Difference | None] = []
    for index in range(len(groups)):
        if index == best:
            found.append(None)
            continue
        pair = (min(index, best), max(index, best))
        raw = tested.get(pair) or difference(groups[pair[1]], groups[pair[0]])
        sign = 1 if index > best else -1
        found.append(Difference(sign * raw.mean, raw.ci, adjusted.get(pair, math.nan), raw.n, raw.is_paired))
    return found, len(with_p)
