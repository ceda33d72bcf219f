"""What a target is, and how its runs are trained and read. torch is imported only where something is trained."""

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_lab.config.composing import chosen, composed, without_hydra
from vae_lab.config.explain import quote
from vae_lab.runs.metrics_file import read_events
from vae_lab.runs.resume import continue_if_begun

# Numbers are those of the last weights, and nothing is drawn.
COMMON = ("logger=none", "trainer.cuda_graph=true", "callbacks.gallery=null", "callbacks.summary=null")


class Check(NamedTuple):
    """A measured value and its band, [low, high], in the unit of the value."""

    what: str
    value: float
    low: float = -math.inf
    high: float = math.inf

    @property
    def passed(self) -> bool:
        """Whether the value lies in its band; NaN does not."""
        return self.low <= self.value <= self.high


class Target(NamedTuple):
    """A number to reach.

    Attributes:
        claim: what is trained and what should come out, one line.
        source: who says so.
        band: why the bands are as wide as they are.
        tier: `quick`, `cpu` or `gpu`.
        minutes: that it takes, on two quiet cores, or on one GPU in the tier `gpu`.
        runs: the overrides of each run that is trained, by a name for its folder.
        check: from the trained runs to the values and their bands.
        failure: why it fails, where it does and that is known.
    """

    claim: str
    source: str
    band: str
    tier: str
    minutes: float
    runs: Mapping[str, str]
    check: "Callable[[dict[str, Trained]], list[Check]]"
    failure: str = ""


class Trained:
    """A trained run: its model, its images, and what it measures.

    Args:
        folder: of the run.
        data_root: where the images are now.
    """

    def __init__(self, folder: Path, data_root: str):
        from vae_lab.evaluation.run import Run

        self.folder, self.data_root, self.run = folder, data_root, Run(folder, "last")
        self.run.cfg.data_root = data_root

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.run.vae.latent_dim

    @cache  # noqa: B019, as many as there are runs of one target
    def pixels(self, split: str) -> np.ndarray:
        """The images of a split, (M, C H W) bytes."""
        chosen = self.run.data.splits[split]
        return chosen.pixels[chosen.index].flatten(1).numpy()

    def codes(self, split: str) -> np.ndarray:
        """E[z given x] of the grey or binarized images of a split, (M, D)."""
        images = self.pixels(split).reshape(-1, *self.run.vae.image_shape)
        return self.run.encode(images).reshape(len(images), -1)

    @cache  # noqa: B019
    def measured(self, split: str = "test", metrics: str | None = None, members: tuple = ()) -> dict[str, float]:
        """The metrics of the last weights on a split, by their keys, as `vae-lab-eval` computes them.

        Args:
            split: `train` or `test`.
            metrics: options of the group to add to those of the run.
            members: settings of these, `metrics.NAME.KEY=VALUE`.
        """
        from vae_lab.evaluation.evaluate import DEFAULTS, evaluate

        chosen = {"split": split, "metrics": metrics, "members": list(members)}
        settings = {**DEFAULTS, **chosen, "checkpoint": "last", "data_root": self.data_root}
        values = evaluate(self.folder, settings)
        return {key.partition("/")[2]: value for key, value in values.items() if isinstance(value, float)}

    def per_image(self, key: str) -> np.ndarray:
        """The values of each test image, (M,), of a metric that was measured."""
        with np.load(self.folder / "images_test.npz", allow_pickle=False) as file:
            return file[key]

    def values(self, key: str) -> list[float]:
        """Those of `history`, in order."""
        return list(self.history(key).values())

    def history(self, key: str) -> dict[int, float]:
        """The values of a metric in training, by their step."""
        events = read_events(self.folder / "metrics.jsonl", f'"{key}"')
        found = ((event["step"], event.get(key)) for event in events)
        return {int(step): float(value) for step, value in found if step is not None and value is not None}


def train_runs(name: str, target: Target, out: Path, data_root: str) -> dict[str, Trained]:
    """Train the runs of a target, each in OUT/NAME/RUN; one that is complete is skipped, one that was stopped goes on.

    Raises:
        ValueError, DataError, NumericsError, RunError, Preempted: as training does.
    """
    from vae_lab.training.train import train

    found = {}
    for run, overrides in target.runs.items():
        folder = (out / name / run).absolute()
        places = (f"run_dir={quote(folder)}", f"data_root={quote(data_root)}")
        whole = composed([*COMMON, *overrides.split(), *places])
        cfg = without_hydra(whole)
        with chosen(whole), redirect_stdout(sys.stderr):
            continue_if_begun(cfg)
            train(cfg)
        found[run] = Trained(folder, data_root)
    return found
