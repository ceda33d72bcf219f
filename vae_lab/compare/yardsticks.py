"""What can be compared with what: two values of a metric are comparable if they were measured with the same yardstick.

`mse`, `kl` and `active_units` need the same validation images. Nats of an image (`elbo`, `reconstruction`, `nll`) also
need the same kind of likelihood: the log of a density (Gaussian pixels) and the log of a probability (Bernoulli pixels)
differ by what the unit of grey is, hundreds of nats that say nothing about the model. `loss` also needs the same
weights, because it contains them. Speed is comparable everywhere, as far as the machine was the same.
"""

from collections.abc import Hashable
from typing import Any

from vae_lab.compare.differences import ABSENT, as_text
from vae_lab.compare.found import Entry
from vae_lab.config.roles import is_of_images, is_weight
from vae_lab.runs.result import UNITS as RESULT_UNITS

HIGHER = ("elbo", "images_per_second")  # is better
LOWER = ("loss", "mse", "nll", "reconstruction", "train_seconds", "clamped")  # is better
IN_NATS = ("loss", "elbo", "reconstruction", "nll")  # of an image given the likelihood
OF_IMAGES = ("mse", "kl", "active_units", "clamped")
MEASURES = {"vae_lab.models.likelihoods.Gaussian": "density", "vae_lab.models.likelihoods.Bernoulli": "probability"}
UNITS = {**RESULT_UNITS, "nll": "nats per image", "parameters": "parameters"}


def base(metric: str) -> str:
    """A metric without its stage: `elbo` of `val/elbo`."""
    return metric.rpartition("/")[2]


def unit(metric: str) -> str:
    """The unit of a metric; empty where nobody says."""
    return UNITS.get(base(metric), "")


def sign(metric: str) -> int:
    """What makes the better value the smaller one: -1 where higher is better, 1 where lower is, or nobody says."""
    return -1 if base(metric) in HIGHER else 1


def has_better(metric: str) -> bool:
    """Whether one value of a metric is better than another; of the KL, none is."""
    return base(metric) in (*HIGHER, *LOWER)


def yardstick(entry: Entry, metric: str) -> Hashable:
    """What a value of a metric depends on besides the model: two runs are comparable if this is the same."""
    name = base(metric)
    if name not in (*IN_NATS, *OF_IMAGES):
        return ()
    settings = entry.settings
    images = [(k, v) for k, v in settings.items() if is_of_images(k)]
    images += [(k, settings.get(k)) for k in ("trainer.limit_val_batches", "trainer.overfit_batches")]
    if str(settings.get("dataset.source._target_", "")).endswith("ImageFolder"):
        images.append(("dataset.root", settings.get("dataset.root")))
    parts = images + (likelihood(settings) if name in IN_NATS else [])
    if name == "loss":
        parts += [(k, v) for k, v in settings.items() if is_weight(k)]
    return tuple((key, as_text(value)) for key, value in sorted(parts, key=lambda item: item[0]))


def likelihood(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """The kind of likelihood; one that is not known is comparable with itself only."""
    own = [(k, v) for k, v in settings.items() if k.startswith("loss.likelihood.")]
    measure = MEASURES.get(str(settings.get("loss.likelihood._target_", ABSENT)))
    return [("loss", measure)] if measure else own


def difference_in_words(first: Hashable, second: Hashable) -> str:
    """Which settings two yardsticks differ in."""
    keys = sorted({key for key, _ in set(first) ^ set(second)})
    shown = ["the likelihood" if key.startswith("loss.likelihood") or key == "loss" else key for key in keys]
    return ", ".join(dict.fromkeys(shown))
