"""Scores of disentanglement on codes that are as good, and as bad, as can be."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vae_lab.data.batches import Batch
from vae_lab.metrics.catalogue import UNKNOWN, find
from vae_lab.metrics.factors import SCORES, Factors

GRID = np.random.default_rng(0).permutation(np.array(list(itertools.product(range(3), range(4), range(5))) * 30))


def scores(codes: np.ndarray, labels: np.ndarray = GRID, **chosen) -> dict[str, float]:
    metric = Factors(**{"scores": list(SCORES)} | chosen)
    for part in torch.arange(len(codes)).split(700):
        q = SimpleNamespace(mean=torch.from_numpy(codes)[part].float())
        metric.update(None, Batch(None, torch.from_numpy(labels)[part]), q, {})
    return {key: value.item() for key, value in metric.compute(lambda value: value).items()}


def test_each_latent_is_a_factor():
    codes = GRID * [1.0, -2.0, 0.1] + 5  # in another order, with signs and scales
    found = scores(codes[:, [2, 0, 1]])
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.02)
    assert {"mig", "dci", "sap", "factor_score", "beta_score", "modularity"} <= set(found)
    assert all(find(key) != UNKNOWN for key in found)
    dead = scores(np.c_[codes, np.zeros(len(codes))])  # a latent that is not used costs nothing but modularity
    assert dead == pytest.approx({**dict.fromkeys(found, 1.0), "modularity": 0.75}, abs=0.02)


def test_noise_knows_of_nothing():
    found = scores(np.random.default_rng(1).normal(size=(len(GRID), 4)))
    for key in ("mig", "sap", "dci", "dci_completeness"):
        assert found[key] == pytest.approx(0, abs=0.1)
    for key in ("factor_score", "beta_score"):
        assert found[key] == pytest.approx(1 / 3, abs=0.07)  # 4 deviations of 800 guesses


def test_two_latents_for_each_factor_leave_no_gap():
    found = scores(np.c_[GRID, GRID].astype(float))
    assert found["mig"] == found["sap"] == 0
    assert found["modularity"] == pytest.approx(1, abs=0.01)  # which allows it


def test_a_latent_of_two_factors_is_not_modular():
    labels = GRID[:, :2]
    both = labels[:, :1] * 4.0 + labels[:, 1:]  # tells both
    found = scores(np.c_[both, both], labels, scores=["modularity", "dci"])
    assert found["modularity"] < 0.6
    assert found["dci"] < 0.1
    assert found["dci_informativeness"] == 1


def test_images_may_come_in_any_order():
    ordered = np.array(list(itertools.product(range(3), range(4))) * 40)  # every other one has odd values of the last
    found = scores(ordered.astype(float), ordered)
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.02)
    assert SCORES["sap"](ordered, ordered)["sap"] >= 0


def test_a_factor_of_many_values_has_a_score_though_one_half_lacks_some():
    labels = np.c_[np.arange(120) % 3, np.random.default_rng(0).integers(28, size=120)]
    assert SCORES["sap"](labels + 0.0, labels)["sap"] > 0.9
    labels[:, 1] = np.arange(120) % 2  # one value in each half
    assert SCORES["sap"](labels + 0.0, labels)["sap"] == 0.5


def test_without_factors_there_is_nothing():
    codes = np.zeros((100, 2))
    assert scores(codes, np.zeros((100, 1), int)) == {}
    assert scores(codes, np.zeros((100, 3), int)) == {}
    assert scores(codes, np.c_[np.arange(100), np.arange(100) % 3]) == {}  # a number of the image is no factor
    with pytest.raises(ValueError, match="metrics.factors.scores must be of mig, .*, got fid"):
        Factors(["fid"])
