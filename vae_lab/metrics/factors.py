"""Whether each latent stands for one factor: scores of codes of images whose factors are labels.

Published values do not agree on definitions and bins, so those used here stand with each score. All compute on the
codes E[z given x] of the images of a split, of which there must be two label columns whose values vary and repeat. What
is fitted is fitted on half of the images and measured on the rest. Shapes: N images, D latents, K factors.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lab.metrics.latents import mean_over_processes
from vae_lab.models.vae import VAE

BINS = 20  # of equal width between the smallest and the largest code of a latent
MIN_IMAGES = 50  # below it, there is nothing to fit
GROUP, TRAIN_GROUPS, TEST_GROUPS = 64, 800, 800  # images with one factor in common, and how many such groups


class Factors:
    """`mig`, `sap`, `modularity`, `dci` (with two companions), `factor_score` and `beta_score`, see their functions.

    Args:
        scores: which of them.

    Raises:
        ValueError: if there is no such score.
    """

    needs = ("encoder",)

    def __init__(self, scores: Sequence[str]):
        if unknown := set(scores) - set(SCORES):
            raise ValueError(f"metrics.factors.scores must be of {', '.join(SCORES)}, got {', '.join(sorted(unknown))}")
        self.scores = tuple(scores)
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.codes: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the codes of a batch that has labels of several factors."""
        if batch.y is not None and batch.y.shape[1] > 1:
            self.codes.append(q.mean.detach().flatten(1).cpu())
            self.labels.append(batch.y.cpu())

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The scores, in [0, 1]; none of a data set without factors, or with too few images."""
        if sum(map(len, self.codes)) < MIN_IMAGES:
            return {}
        codes, labels = torch.cat(self.codes).double().nan_to_num().numpy(), torch.cat(self.labels).numpy()
        order = np.random.default_rng(0).permutation(len(codes))  # every other one is then a half without an order
        codes, labels = codes[order], labels[order]
        labels = labels[:, [1 < len(np.unique(column[::2])) <= len(codes) / 4 for column in labels.T]]
        if labels.shape[1] < 2:
            return {}
        found = {key: value for name in self.scores for key, value in SCORES[name](codes, labels).items()}
        return mean_over_processes({key: torch.tensor(value) for key, value in found.items()}, len(codes), total)


def information(codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """I(z_j; v_k) in nats of codes in 20 bins of equal width and of labels, (D, K)."""
    from sklearn.metrics import mutual_info_score  # here, because importing it takes a second

    low, high = codes.min(0), codes.max(0)
    bins = ((codes - low) / np.where(high > low, high - low, 1) * BINS).astype(int).clip(max=BINS - 1)
    return np.array([[mutual_info_score(latent, factor) for factor in labels.T] for latent in bins.T])


def mig(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`mig`, the mutual information gap: how much more the best latent of a factor knows of it than the second best.

    1/K sum_k (I(z_j; v_k) - I(z_j'; v_k)) / H(v_k)

    Codes are in 20 bins of equal width, so that a factor of more values cannot reach 1; the paper has samples of z and
    no bins.

    Sources: Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders"; Locatello et al. 2019
    for the bins.
    """
    ordered = np.sort(
        np.vstack([information(codes, labels), np.zeros(labels.shape[1])]), 0
    )  # 0: there may be one latent
    entropies = [entropy(np.unique(factor, return_counts=True)[1]) for factor in labels.T]
    return {"mig": float(np.mean((ordered[-1] - ordered[-2]) / entropies))}


def modularity(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`modularity`: whether each latent knows of one factor only; it allows that several know of the same.

    mean_j 1 - sum_(k not k_j) I(z_j; v_k)^2 / ((K - 1) I(z_j; v_k_j)^2), k_j the factor of which z_j knows most

    Codes are in 20 bins of equal width; a latent that knows of nothing counts as 0. Noise can look modular: of few
    images, it seems to know most of the factor that has the most values.

    Source: Ridgeway and Mozer 2018, "Learning deep disentangled embeddings with the F-statistic loss", eq. 2.
    """
    squares = information(codes, labels) ** 2
    largest = squares.max(1)
    rest = (squares.sum(1) - largest) / np.where(largest > 0, largest, 1) / (labels.shape[1] - 1)
    return {"modularity": float(np.where(largest > 0, 1 - rest, 0).mean())}


def sap(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`sap`, separated attribute predictability: the gap between the two latents that tell a factor best, one alone.

    How well one tells it is the balanced accuracy of thresholds (a tree with as many leaves as the factor has values),
    scaled so that guessing is 0 and all right is 1; the paper does not scale.

    Source: Kumar et al. 2018, section 3, for factors that are classes.
    """
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    gaps = []
    for factor in labels.T:
        seen = np.isin(factor[1::2], factor[::2])
        truth = factor[1::2][seen]
        values = np.unique(truth)  # which need not be all that were fitted
        chance = 1 / max(len(values), 1)
        tree = DecisionTreeClassifier(max_leaf_nodes=len(np.unique(factor)), class_weight="balanced", random_state=0)
        told = [0.0, 0.0]
        for latent in codes.T[:, :, None]:
            guess = tree.fit(latent[::2], factor[::2]).predict(latent[1::2])
            if len(values) > 1:
                recall = recall_score(truth, guess[seen], labels=values, average="macro")
                told.append((recall - chance) / (1 - chance))
        gaps.append(np.diff(np.sort(told)[-2:])[0])
    return {"sap": float(np.mean(gaps))}


def dci(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`dci`, `dci_completeness` and `dci_informativeness`, from how much each latent helps to predict each factor, R.

    Disentanglement: 1 - H_K(R_j. / sum_k R_jk), the mean over latents weighted by sum_k R_jk. Completeness: 1 -
    H_D(R_.k / sum_j R_jk), the mean over factors. Informativeness: the accuracy of the predictions. R are the
    importances of a random forest (10 trees, all latents at each split, at least 5 images in a leaf); a forest's
    importances differ from those of a lasso or of boosting, and so do scores.

    Source: Eastwood and Williams 2018, "A framework for the quantitative evaluation of disentangled representations".
    """
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(10, max_features=None, min_samples_leaf=5, random_state=0)
    importances, accuracies = [], []
    for factor in labels.T:
        forest.fit(codes[::2], factor[::2])
        importances.append(forest.feature_importances_)
        accuracies.append(forest.score(codes[1::2], factor[1::2]))
    R = np.array(importances).T  # (D, K)
    weights = R.sum(1) / max(R.sum(), 1e-12)
    separate = [1 - entropy(row) / math.log(R.shape[1]) for row in R]
    complete = [1 - entropy(column) / math.log(max(len(R), 2)) for column in R.T]
    scores = {"dci": weights @ separate, "dci_completeness": np.mean(complete), "dci_informativeness": accuracies}
    return {key: float(np.mean(value)) for key, value in scores.items()}


def factor_score(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`factor_score`: the accuracy of guessing which factor 64 images share from the latent that varies least in them.

    Variances are relative to those over all images; latents that do not vary take no part. The guess is the majority of
    800 groups, the accuracy that of 800 others. Images come from the split, again where it has too few that share a
    value. Guessing gives about 1 / K.

    Source: Kim and Mnih 2018, "Disentangling by factorising", the metric.
    """
    scale = codes.std(0)
    alive = scale > 1e-6
    if not alive.any():
        return {"factor_score": 1 / labels.shape[1]}
    z, random = codes[:, alive] / scale[alive], np.random.default_rng(0)
    votes = np.zeros((2, alive.sum(), labels.shape[1]), int)
    for turn, count in enumerate((TRAIN_GROUPS, TEST_GROUPS)):
        for _ in range(count):
            factor = random.integers(labels.shape[1])
            own = np.flatnonzero(labels[:, factor] == labels[random.integers(len(labels)), factor])
            group = random.choice(own, GROUP, replace=len(own) < GROUP)
            votes[turn, z[group].var(0).argmin(), factor] += 1
    guess = votes[0].argmax(1)
    return {"factor_score": float(votes[1, np.arange(len(guess)), guess].sum() / TEST_GROUPS)}


def beta_score(codes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`beta_score`: the accuracy of a linear classifier that guesses which factor 64 pairs of images share.

    It sees the mean over the pairs of |z_a - z_b|, standardised; it is fitted on 800 groups of pairs and measured on
    800 others. Images come from the split. Guessing gives about 1 / K.

    Source: Higgins et al. 2017, "beta-VAE", the disentanglement metric.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    factors = random.integers(labels.shape[1], size=TRAIN_GROUPS + TEST_GROUPS)
    orders = [(order, column[order]) for column in labels.T for order in [np.argsort(column)]]
    seen = np.empty((len(factors), codes.shape[1]))
    for row, factor in zip(seen, factors, strict=True):
        own = random.integers(len(codes), size=GROUP)
        order, ordered = orders[factor]
        first, last = (np.searchsorted(ordered, labels[own, factor], side) for side in ("left", "right"))
        other = order[random.integers(first, last)]  # with the same label
        row[:] = np.abs(codes[own] - codes[other]).mean(0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(seen[:TRAIN_GROUPS], factors[:TRAIN_GROUPS])
    return {"beta_score": float(classifier.score(seen[TRAIN_GROUPS:], factors[TRAIN_GROUPS:]))}


def entropy(weights: np.ndarray) -> float:
    """The entropy in nats of weights that need not add up to 1; of none it is that of equal ones."""
    shares = weights / weights.sum() if weights.sum() > 0 else np.full(len(weights), 1 / len(weights))
    return float(-(shares * np.log(np.where(shares > 0, shares, 1))).sum())


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    function.__name__: function for function in (mig, dci, sap, factor_score, beta_score, modularity)
}
