"""How near samples are to images, of features whose distances are known."""

import math
from types import SimpleNamespace

import pytest
import torch

from vae_lab.data.batches import Batch
from vae_lab.metrics.catalogue import find
from vae_lab.metrics.samples import SCORES, Samples
from vae_lab.models.networks.classifier import Classifier
from vae_lab.models.priors import StandardNormal


def test_equal_sets_and_sets_that_are_apart():
    images = torch.randn(600, 4)
    found = {name: score(images, images) for name, score in SCORES.items()}
    assert found.pop("kid") == pytest.approx(0, abs=0.1)  # without pairs with itself, of order 2 E k(x, x) / n below 0
    assert found == pytest.approx(
        {"fid": 0, **dict.fromkeys(("precision", "recall", "density", "coverage"), 1)}, abs=0.02
    )
    found = {name: score(images, images + 20) for name, score in SCORES.items()}
    assert found["fid"] == pytest.approx(4 * 20**2, rel=1e-3)  # the covariances are the same
    assert found["kid"] > 100
    assert [found[key] for key in ("precision", "recall", "density", "coverage")] == [0, 0, 0, 0]


def test_what_is_missing_and_what_is_wrong_are_told_apart():
    both = torch.cat([torch.randn(400, 3), torch.randn(400, 3) + 20])
    few = torch.randn(800, 3)  # only one of two modes, all of it right
    assert SCORES["precision"](both, few) > 0.9
    assert SCORES["recall"](both, few) < 0.6
    assert SCORES["coverage"](both, few) < 0.6
    assert SCORES["density"](both, few) > 0.8


def test_the_frechet_distance_of_gaussians():
    real, fake = torch.randn(20000, 2), torch.randn(20000, 2) * 2 + torch.tensor([1.0, 0.0])
    assert SCORES["fid"](real, fake) == pytest.approx(1 + 2, rel=0.05)  # |m|^2 + 2 (1 + 4 - 2 * 2)


def test_the_key_says_what_was_measured():
    classifier = Classifier((1, 8, 8), [3]).requires_grad_(False)
    classifier.name, classifier.accuracy = "toys-cnn", 0.9
    model = SimpleNamespace(
        prior=StandardNormal((2,)), generate=lambda z, y: z.new_zeros(len(z), 1, 8, 8),
        parameters=lambda: iter([torch.zeros(1)]), num_classes=(),
    )  # fmt: skip
    metric = Samples([*SCORES, "confident", "class_entropy"], 30)
    metric.update(model, Batch(torch.rand(50, 1, 8, 8), None), None, {})
    assert metric.compute(lambda value: value) == {}  # nobody gave it a classifier
    metric.classifier = classifier
    for x in torch.rand(50, 1, 8, 8).split(20):
        metric.update(model, Batch(x, None), None, {})
    found = {key: value.item() for key, value in metric.compute(lambda value: value).items()}
    assert found["accuracy_toys-cnn"] == pytest.approx(0.9)
    assert found["class_entropy_toys-cnn_n30"] == pytest.approx(0, abs=1e-6)  # all are the same image
    assert {find(key).meaning for key in found} == {
        find(name).meaning for name in (*SCORES, "confident", "class_entropy", "accuracy")
    }
    assert all(math.isfinite(value) for value in found.values())
