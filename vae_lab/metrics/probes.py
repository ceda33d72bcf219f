"""How well labels can be read from codes: fitted on half of the images of a split, measured on the rest.

The mean over the label columns of the accuracies; guessing gives the share of the most frequent class. Shapes: N
images, D latents, F label columns.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lab.metrics.latents import mean_over_processes
from vae_lab.models.vae import VAE

MIN_IMAGES = 20  # below it, there is nothing to fit


class Probe:
    """Fits a classifier of codes and measures its accuracy, in [0, 1].

    Args:
        kind: `linear_probe`, logistic regression on standardised codes; or `knn`, the most frequent label of the
            `neighbours` nearest codes. It is the name of the metric.
        neighbours: of `knn`, >= 1.

    Raises:
        ValueError: if an argument is out of its range.
    """

    needs = ("encoder",)

    def __init__(self, kind: str, neighbours: int = 5):
        if kind not in ("linear_probe", "knn"):
            raise ValueError(f"metrics: kind must be linear_probe or knn, got {kind!r}")
        if neighbours < 1:
            raise ValueError(f"metrics: neighbours must be >= 1, got {neighbours}")
        self.kind, self.neighbours = kind, neighbours
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.codes: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the codes of a batch that has labels."""
        if batch.y is not None:
            self.codes.append(q.mean.detach().flatten(1).cpu())
            self.labels.append(batch.y.cpu())

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The accuracy; none of a data set without labels, or with too few images."""
        if sum(map(len, self.codes)) < MIN_IMAGES:
            return {}
        codes, labels = torch.cat(self.codes).nan_to_num().numpy(), torch.cat(self.labels).numpy()
        order = np.random.default_rng(0).permutation(len(codes))  # every other one is then a half without an order
        codes, labels = codes[order], labels[order]
        accuracies = [self._accuracy(codes, column) for column in labels.T]
        return mean_over_processes({self.kind: torch.tensor(float(np.mean(accuracies)))}, len(codes), total)

    def _accuracy(self, codes: np.ndarray, labels: np.ndarray) -> float:
        from sklearn.linear_model import LogisticRegression  # here, because importing it takes a second
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(np.unique(labels[::2])) == 1:
            return float(np.mean(labels[1::2] == labels[0]))
        if self.kind == "knn":
            classifier = KNeighborsClassifier(min(self.neighbours, len(codes) // 2))
        else:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        return float(classifier.fit(codes[::2], labels[::2]).score(codes[1::2], labels[1::2]))
