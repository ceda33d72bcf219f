"""How near samples of the prior are to images of the split, in the features of a classifier of these images.

Every key holds the extractor and the number of images: `fid_mnist-cnn_n10000` is no usual FID. Samples are means
E[x given z], as many as there are images, and the same at every call. Shapes: N images, d features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from vae_lab.metrics.latents import mean_over_processes
from vae_lab.models.vae import VAE

SEED = 0
CHUNK = 256  # images through a network at a time
ROWS = 1000  # of a matrix of images by images, at a time
NEIGHBOURS = 5
CONFIDENT = 0.9


class Samples:
    """`fid`, `kid`, `precision`, `recall`, `density`, `coverage`, `confident` and `class_entropy` of samples.

    The last two are of the classifier only: the share of samples of which it calls one class more probable than 0.9,
    and the entropy in nats of the classes that it calls, at most log C, of a generator that makes all equally often.
    Beside them stands the classifier's accuracy on the validation images, `accuracy_EXTRACTOR`; on the training images
    where there are none.

    Args:
        scores: which of them.
        num_images: N at most, >= 20.
        extractor: `classifier`, which the program trains on the training images and their labels, once; or `inception`,
            the network of the usual FID, whose weights must be at hand.
        weights: file of that network's weights, `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.

    Raises:
        ValueError: if an argument is out of its range, or the Inception network cannot be had.
    """

    needs = ("prior",)

    def __init__(
        self,
        scores: Sequence[str],
        num_images: int,
        extractor: Literal["classifier", "inception"] = "classifier",
        weights: str | None = None,
    ):
        known = (*SCORES, "confident", "class_entropy")
        if unknown := set(scores) - set(known):
            raise ValueError(f"metrics.samples.scores must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
        if num_images < 20:
            raise ValueError(f"metrics.samples.num_images must be >= 20, got {num_images}")
        self.scores, self.num_images = tuple(scores), num_images
        self.classifier: Any = None  # given by the program, see `vae_lab.training.classifier`
        self.inception: nn.Module | None = None
        if extractor == "inception":
            self.inception = load_inception(weights)
            del self.classifier  # which nobody needs to train
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.real: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.count = 0
        self.vae: VAE | None = None

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the images of a batch."""
        if self.count >= self.num_images or (self.inception is None and self.classifier is None):
            return
        self.vae, x = vae, batch.x[: self.num_images - self.count]
        self.real += [self._features(part).cpu() for part in x.split(CHUNK)]
        if vae.num_classes:
            self.labels.append(batch.y[: len(x)])
        self.count += len(x)

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The scores; none without a classifier, or with too few images."""
        if self.vae is None or self.count <= NEIGHBOURS:
            return {}
        vae, device = self.vae, next(self.vae.parameters()).device
        z = vae.prior.sample(self.count, torch.Generator().manual_seed(SEED))
        labels = torch.cat(self.labels).split(CHUNK) if self.labels else [None] * self.count
        drawn = []
        for part, y in zip(z.split(CHUNK), labels, strict=False):
            drawn.append(self._features(vae.generate(part.to(device), y).clamp(0, 1)).cpu())
        real, fake = torch.cat(self.real), torch.cat(drawn)
        values = {name: SCORES[name](real, fake) for name in self.scores if name in SCORES}
        extractor = "inception"
        if self.inception is None:
            self.classifier.cpu()
            extractor, called = (
                self.classifier.name,
                self.classifier.classify(fake)[0].softmax(1),
            )  # of the first column
            shares = called.argmax(1).bincount() / len(called)
            values |= {
                "confident": (called.amax(1) > CONFIDENT).float().mean().item(),
                "class_entropy": -(shares * shares.clamp(min=1e-12).log()).sum().item(),
            }
        found = {f"{name}_{extractor}_n{self.count}": values[name] for name in self.scores if name in values}
        if self.inception is None:
            found[f"accuracy_{extractor}"] = self.classifier.accuracy
        return mean_over_processes({key: torch.tensor(value) for key, value in found.items()}, self.count, total)

    def _features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> (B, d)."""
        if self.inception is not None:
            return self.inception.to(x.device)((x.expand(-1, 3, -1, -1) * 255).round().byte())
        return self.classifier.to(x.device).features(x.float())


def load_inception(weights: str | None) -> nn.Module:
    """The network of the usual FID, which torchmetrics takes from torch-fidelity; nothing is downloaded here."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    path = Path(weights or "~/.cache/torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth").expanduser()
    if not path.is_file():
        raise ValueError(f"metrics.samples.weights must be a file for extractor=inception, got {path}")
    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except ModuleNotFoundError as error:
        raise ValueError("metrics.samples.extractor=inception needs pip install torch-fidelity") from error


def fid(real: Tensor, fake: Tensor) -> float:
    """The Frechet distance of the two sets as Gaussians (torchmetrics).

    |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))

    Biased upwards, and the more the fewer images: compare the same number only.

    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule", the Frechet Inception distance.
    """
    identity: Any = nn.Identity()
    identity.num_features = real.shape[1]
    distance = FrechetInceptionDistance(identity)
    distance.update(real, real=True)
    distance.update(fake, real=False)
    return distance.compute().item()


def kid(real: Tensor, fake: Tensor) -> float:
    """The squared maximum mean discrepancy with the kernel (a . b / d + 1)^3; unbiased, so it can be below 0.

    Over all pairs; torchmetrics averages the same estimate over random subsets, which has more noise.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", the kernel Inception distance.
    """
    real, fake, n = real.double(), fake.double(), len(real)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean(a: Tensor, b: Tensor) -> float:  # of all pairs
        return sum(kernel(rows, b).sum().item() for rows in a.split(ROWS)) / n**2

    own = sum(((a.square().sum(1) / a.shape[1] + 1) ** 3).sum().item() for a in (real, fake))  # of pairs with itself
    within = ((mean(real, real) + mean(fake, fake)) * n**2 - own) / (n * (n - 1))
    return within - 2 * mean(real, fake)


def distances(a: Tensor, b: Tensor) -> list[Tensor]:
    """Euclidean distances (N, M), some rows at a time."""
    return [torch.cdist(rows, b) for rows in a.split(ROWS)]


def radii(features: Tensor) -> Tensor:
    """The distance of each image to its fifth nearest neighbour, (N,)."""
    return torch.cat([d.topk(NEIGHBOURS + 1, largest=False).values[:, -1] for d in distances(features, features)])


def precision(real: Tensor, fake: Tensor) -> float:
    """The share of samples within the ball of an image, which reaches to its fifth nearest neighbour.

    Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric", where it is the third.
    """
    r = radii(real)
    return torch.cat([(d < r).any(1) for d in distances(fake, real)]).float().mean().item()


def recall(real: Tensor, fake: Tensor) -> float:
    """The share of images within the ball of a sample, which reaches to its fifth nearest neighbour.

    Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric", where it is the third.
    """
    return precision(fake, real)


def density(real: Tensor, fake: Tensor) -> float:
    """In how many balls of images a sample lies, over 5; about 1 of equal laws, and can be above.

    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models".
    """
    r = radii(real)
    return torch.cat([(d < r).sum(1) for d in distances(fake, real)]).float().mean().item() / NEIGHBOURS


def coverage(real: Tensor, fake: Tensor) -> float:
    """The share of images in whose ball, to the fifth nearest neighbour, there is a sample.

    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models".
    """
    nearest = torch.cat([d.amin(1) for d in distances(real, fake)])
    return (nearest < radii(real)).float().mean().item()


SCORES = {function.__name__: function for function in (fid, kid, precision, recall, density, coverage)}
