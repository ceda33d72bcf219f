"""The classifier of a dataset, which the program trains once and keeps, for metrics of samples."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

from vae_lab.data.batches import Batch, ImageData
from vae_lab.errors import RunError
from vae_lab.models.networks.classifier import Classifier
from vae_lab.runs.files import durable_open

log = logging.getLogger(__name__)
SEED, STEPS, BATCH_SIZE, LR = 0, 1500, 128, 1e-3
CHUNK = 1000  # images in a step of the test
VERSION = 1  # of the network and its training


def provide(metrics: Sequence[Any], data: ImageData) -> None:
    """Give the metrics that measure samples by a classifier the one of these images."""
    wanting = [metric for metric in metrics if hasattr(metric, "classifier") and metric.classifier is None]
    if not wanting:
        return
    labels = data.splits["train"].labels
    if not labels.shape[1] or labels.amax() == 0:
        log.warning("samples are not measured: the images have no labels to train a classifier on")
        return
    classifier = load_or_train(data)
    for metric in wanting:
        metric.classifier = classifier


def load_or_train(data: ImageData) -> Classifier:
    """Read the classifier of the training images from `vae_lab` in XDG_CACHE_HOME or ~/.cache, or train it into there.

    It is trained on the CPU and from a fixed seed, so that it is the same wherever it is made, but for rounding.

    Raises:
        RunError: if the file is damaged or cannot be written.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(home if os.path.isabs(home) else "~/.cache", "vae_lab").expanduser()
    path = folder / f"classifier{VERSION}_{data.fingerprint}_{data.binarize}.safetensors"
    num_classes = (data.splits["train"].labels.amax(0) + 1).tolist()
    # Lightning evaluates in inference mode, whose tensors cannot be trained.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        classifier = Classifier(data.image_shape, num_classes)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.is_file():
                try:
                    with safetensors.safe_open(path, "pt") as file:
                        classifier.accuracy = float(file.metadata()["accuracy"])
                    classifier.load_state_dict(safetensors.torch.load_file(path))
                except Exception as error:  # the library's own, or one of half a dozen others
                    raise RunError(f"{path} is damaged; delete it to train the classifier again") from error
            else:
                log.info("training a classifier of the images, once, for metrics of samples")
                train(classifier, data)
                with durable_open(path) as file:
                    stored = {"accuracy": str(classifier.accuracy)}
                    file.write(safetensors.torch.save(dict(classifier.state_dict()), stored))
    classifier.name = f"{type(data.source).__name__.lower()}-cnn"
    return classifier.eval().requires_grad_(False)


def train(classifier: Classifier, data: ImageData) -> None:
    """Fit the classifier to the training images, and measure it on the validation images (else on those)."""

    def batch_of(split: str, places: torch.Tensor) -> Any:
        x, y = data.splits[split].__getitems__(places.tolist())
        return data.to_pixels(Batch(x.cpu(), y), training=False)

    optimizer = torch.optim.Adam(classifier.parameters(), lr=LR)
    num = len(data.splits["train"])
    for _ in range(STEPS):
        batch = batch_of("train", torch.randint(num, (min(BATCH_SIZE, num),)))
        logits = classifier.classify(classifier.features(batch.x))
        assert batch.y is not None  # a classifier is trained where there are labels
        losses = [F.cross_entropy(own, column) for own, column in zip(logits, batch.y.T, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    split = "val" if len(data.splits["val"]) else "train"
    right: list[Tensor] = []
    with torch.no_grad():
        some = classifier.features(batch_of("train", torch.arange(min(num, CHUNK))).x)
        classifier.scale.copy_(some.square().mean().sqrt())  # distances of features are then of order 1
        for places in torch.arange(len(data.splits[split])).split(CHUNK):
            batch = batch_of(split, places)
            assert batch.y is not None
            logits = classifier.classify(classifier.features(batch.x))
            right.append(torch.stack([own.argmax(1) for own in logits], 1).eq(batch.y))
    classifier.accuracy = torch.cat(right).float().mean().item()
