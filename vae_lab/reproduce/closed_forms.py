"""Targets that are known exactly: each is computed from the images of its own run, of any dataset.

Shapes: N images, P = C H W pixels of each in [0, 1], D latents.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vae_lab.reproduce.target import Check, Target, Trained

CHUNK = 4096  # images at a time
VARIANCE = 0.5  # of a pixel, by loss=mse
ACTIVE = 0.05  # least variance of E[z given x]


class Components(NamedTuple):
    """The principal components of some images.

    Attributes:
        mean: (P,).
        values: the eigenvalues of the covariance, descending, (P,).
        vectors: the columns are the eigenvectors, (P, P).
    """

    mean: np.ndarray
    values: np.ndarray
    vectors: np.ndarray


def second_moment(pixels: np.ndarray, about: np.ndarray) -> np.ndarray:
    """The mean of (x - a)(x - a)', bytes (N, P) -> (P, P)."""
    chunks = (pixels[start : start + CHUNK] / 255 - about for start in range(0, len(pixels), CHUNK))
    return sum(x.T @ x for x in chunks) / len(pixels)


def principal_components(pixels: np.ndarray) -> Components:
    """Of bytes (N, P)."""
    mean = pixels.mean(0) / 255
    values, vectors = np.linalg.eigh(second_moment(pixels, mean))
    return Components(mean, values[::-1], vectors[:, ::-1])


def spread(pixels: np.ndarray, components: Components) -> np.ndarray:
    """The mean square of images along components, about their mean: bytes (N, P) -> (P,); of their own, the values."""
    vectors = components.vectors
    return (vectors * (second_moment(pixels, components.mean) @ vectors)).sum(0)


def best_elbo(pixels: np.ndarray, components: Components, latent_dim: int) -> float:
    """Of a linear VAE with `loss=mse` that is at its optimum on the images of the components: the mean of log p(x).

    -1/2 sum_i (log 2 pi + log c_i + s_i / c_i), s_i the mean square along component i, c_i = max(lambda_i, sigma^2)
    for i <= D, else sigma^2 = 1/2

    Source: Tipping and Bishop 1999, "Probabilistic principal component analysis"; that a linear VAE reaches it: Lucas
    et al. 2019, "Don't blame the ELBO!".
    """
    c = np.full_like(components.values, VARIANCE)
    c[:latent_dim] = np.maximum(components.values[:latent_dim], VARIANCE)
    return float(-0.5 * (math.log(2 * math.pi) + np.log(c) + spread(pixels, components) / c).sum())


def cross_entropy(pixels: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean over images of sum_i -(x_i log p_i + (1 - x_i) log(1 - p_i)): bytes (N, P), (P,) -> nats per image."""
    x, p = pixels.mean(0) / 255, probabilities.clip(1e-6, 1 - 1e-6)
    return float(-(x * np.log(p) + (1 - x) * np.log1p(-p)).sum())


def entropy(pixels: np.ndarray) -> float:
    """The least cross-entropy that grey images can have, at p = x: bytes (N, P) -> nats per image."""
    x = np.arange(1, 255) / 255
    levels = np.zeros(256)
    levels[1:255] = -(x * np.log(x) + (1 - x) * np.log1p(-x))
    return float(levels[pixels].sum(1).mean())


def elbo_check(figures: dict[int, tuple[float, float]]) -> Callable[[dict[str, Trained]], list[Check]]:
    """Compare the elbo with the best one; `figures` are the known ones of training and test images by D."""

    def check(runs: dict[str, Trained]) -> list[Check]:
        checks, components = [], None
        for name, run in runs.items():
            latent_dim = run.latent_dim
            components = components or principal_components(run.pixels("train"))  # the images of all runs are the same
            for place, split in enumerate(("train", "test")):
                best = best_elbo(run.pixels(split), components, latent_dim)
                if latent_dim in figures:
                    known = figures[latent_dim][place]
                    checks.append(Check(f"{name}: closed form, {split} images", best, known - 0.001, known + 0.001))
                noise = 5 / math.sqrt(len(run.pixels(split)))
                value = run.measured(split)["elbo"]
                checks.append(Check(f"{name}: elbo, {split} images", value, best - 0.3 - noise, best + 0.05 + noise))
        return checks

    return check


def check_active(runs: dict[str, Trained]) -> list[Check]:
    """Count the active latents, and the eigenvalues above KLD_weight / 2."""
    checks = []
    for name, run in runs.items():
        weight = float(name.removeprefix("weight_"))
        values = principal_components(run.pixels("train")).values
        low, high = (int((values > factor * weight * VARIANCE).sum()) for factor in (1.15, 0.85))
        active = int((run.codes("train").var(0) > ACTIVE).sum())
        checks.append(Check(f"{name}: active latents", active, low, high))
        if weight == 1 and run.pixels("train").shape == (60_000, 784):  # MNIST
            count = int((values > VARIANCE).sum())
            checks.append(Check(f"{name}: eigenvalues above 1/2", count, 23, 23))
            for place, known in enumerate((5.117, 3.741, 3.253, 2.842)):
                checks.append(Check(f"eigenvalue {place + 1}", float(values[place]), known - 0.0006, known + 0.0006))
    return checks


def collapse_check(figure: float | None = None) -> Callable[[dict[str, Trained]], list[Check]]:
    """Compare the reconstruction of a collapsed model with the cross-entropy at the pixel means."""

    def check(runs: dict[str, Trained]) -> list[Check]:
        (run,) = runs.values()
        best = cross_entropy(run.pixels("test"), run.pixels("train").mean(0) / 255)
        measured = run.measured()
        checks = [
            Check("reconstruction, test images", measured["reconstruction"], best - 0.1, best + 0.5),
            Check("kl", measured["kl"], -1e-6, 0.01),
        ]
        return checks + ([Check("closed form", best, figure - 0.05, figure + 0.05)] if figure else [])

    return check


def floor_check(figure: float | None = None) -> Callable[[dict[str, Trained]], list[Check]]:
    """Check that no reconstruction is better than the entropy of the grey levels."""

    def check(runs: dict[str, Trained]) -> list[Check]:
        (run,) = runs.values()
        checks = []
        for split in ("train", "test"):
            floor = entropy(run.pixels(split))
            checks.append(Check(f"reconstruction, {split} images", run.measured(split)["reconstruction"], floor))
        return checks + ([Check("closed form, test images", floor, figure - 0.05, figure + 0.05)] if figure else [])

    return check


def autoencoder_check(figures: dict[int, float]) -> Callable[[dict[str, Trained]], list[Check]]:
    """Compare the mse with that of the principal components; `figures` are the known ones of the test images by D."""

    def check(runs: dict[str, Trained]) -> list[Check]:
        checks, components = [], None
        for name, run in runs.items():
            latent_dim = run.latent_dim
            components = components or principal_components(run.pixels("train"))
            for split in ("train", "test"):
                best = float(spread(run.pixels(split), components)[latent_dim:].sum() / len(components.mean))
                mse = run.measured(split)["mse"]
                checks.append(Check(f"{name}: mse, {split} images", mse, 0.99 * best, 1.02 * best))
            if latent_dim in figures:
                known = figures[latent_dim]
                checks.append(Check(f"{name}: closed form, test images", best, known - 0.0001, known + 0.0001))
        return checks

    return check


PPCA = "Tipping and Bishop 1999; Lucas et al. 2019"
ELBO_BAND = (
    "training stops within 0.3 nats of the best elbo and cannot pass it; one sample of z for each image is an error of "
    "less than 5 / sqrt(N) nats"
)
ACTIVE_BAND = (
    "a latent too many costs next to nothing: training leaves some a variance of E[z given x] of about 0.01, the bound "
    "of `active_units`, so counted are those above 0.05; components within 15 % of the threshold, whose variance is "
    "below 0.13, may go either way"
)
COLLAPSE_BAND = (
    "other pixel probabilities can be 0.1 nats better on the test images by chance; pixels that are always black need "
    "logits without end, which training leaves 0.5 nats away at most"
)
FLOOR_BAND = "none: what lies below the floor is a bug"
AUTOENCODER_BAND = "training stops within 2 % of the best; on other images another subspace can be 1 % better by chance"
LINEAR = "model=linear dataset.val_size=0 optimizer.lr=0.02 optimizer/schedule=cosine"
DIGITS = f"dataset=digits dataset.batch_size=100 trainer=cpu {LINEAR} optimizer.lr=0.05 trainer.max_epochs=40"
MNIST = "dataset=mnist dataset.batch_size=128"
MNIST_MSE = f"{MNIST} {LINEAR} loss=mse trainer.max_epochs=15"

TARGETS = {
    "linear_vae_digits": Target(
        "a linear VAE reaches the best elbo of probabilistic principal components",
        PPCA,
        ELBO_BAND,
        "quick",
        0.1,
        {"latents_10": f"{DIGITS} loss=mse latent_dim=10"},
        elbo_check({}),
    ),
    "active_latents_digits": Target(
        "a linear VAE uses as many latents as there are eigenvalues of the covariance above KLD_weight / 2",
        PPCA,
        ACTIVE_BAND,
        "quick",
        0.1,
        {
            "weight_0.65": f"{DIGITS} loss=mse loss.KLD_weight=0.65 latent_dim=12 "
            "optimizer.lr=0.02 trainer.max_epochs=60"
        },
        check_active,
    ),
    "collapse_digits": Target(
        "KLD_weight=1e4 collapses the posterior: what is left is the cross-entropy at the pixel means",
        "closed form",
        COLLAPSE_BAND,
        "quick",
        0.1,
        {"run": f"{DIGITS} loss=bce loss.KLD_weight=1e4"},
        collapse_check(),
    ),
    "floor_digits": Target(
        "the cross-entropy of grey pixels is at least their entropy",
        "closed form",
        FLOOR_BAND,
        "quick",
        0.1,
        {"run": f"{DIGITS} model=mlp posterior=deterministic loss=bce latent_dim=64 optimizer.lr=0.001"},
        floor_check(),
    ),
    "linear_autoencoder_digits": Target(
        "a linear autoencoder reaches the squared error of principal components",
        "Baldi and Hornik 1989",
        AUTOENCODER_BAND,
        "quick",
        0.1,
        {"latents_10": f"{DIGITS} posterior=deterministic loss=mse latent_dim=10"},
        autoencoder_check({}),
    ),
    "linear_vae_mnist": Target(
        "a linear VAE reaches the best elbo of probabilistic principal components",
        PPCA,
        ELBO_BAND,
        "cpu",
        2,
        {f"latents_{dim}": f"{MNIST_MSE} latent_dim={dim}" for dim in (2, 10, 20)},
        elbo_check({2: (-495.770, -495.595), 10: (-488.436, -488.214), 20: (-487.609, -487.358)}),
    ),
    "active_latents_mnist": Target(
        "a linear VAE uses as many latents as there are eigenvalues of the covariance above KLD_weight / 2",
        PPCA,
        ACTIVE_BAND,
        "cpu",
        2,
        {f"weight_{weight}": f"{MNIST_MSE} loss.KLD_weight={weight} latent_dim=32" for weight in (1, 4)},
        check_active,
    ),
    "collapse_mnist": Target(
        "KLD_weight=1e4 collapses the posterior: what is left is the cross-entropy at the pixel means",
        "closed form",
        COLLAPSE_BAND,
        "cpu",
        1,
        # With a beta2 of 0.999 Adam remembers the first gradients for 1,000 steps: the logits of black pixels then fall
        # by 0.0005 a step, and after long quiet the weight of a rare pixel leaps (206.76 and a KL of 139 came out).
        {"run": f"{MNIST} {LINEAR} loss=bce loss.KLD_weight=1e4 optimizer.betas=[0.9,0.99] trainer.max_epochs=20"},
        collapse_check(205.8),
    ),
    "floor_mnist": Target(
        "the cross-entropy of grey pixels is at least their entropy",
        "closed form",
        FLOOR_BAND,
        "cpu",
        1,
        {"run": f"{MNIST} dataset.val_size=0 posterior=deterministic loss=bce latent_dim=64 trainer.max_epochs=5"},
        floor_check(45.5),
    ),
    "linear_autoencoder_mnist": Target(
        "a linear autoencoder reaches the squared error of principal components",
        "Baldi and Hornik 1989",
        AUTOENCODER_BAND,
        "cpu",
        2,
        {f"latents_{dim}": f"{MNIST_MSE} posterior=deterministic latent_dim={dim}" for dim in (2, 10, 20)},
        autoencoder_check({2: 0.0557, 10: 0.0341, 20: 0.0235}),
    ),
}
