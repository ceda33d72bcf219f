"""Metrics of latents, images and labels against their closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch

from vae_lab.data.batches import Batch
from vae_lab.metrics import latents
from vae_lab.metrics.catalogue import UNKNOWN, find
from vae_lab.metrics.images import PSNR, SSIM, BitsPerDim
from vae_lab.metrics.latents import MMD, AggregatePosterior, KLPerLatent
from vae_lab.metrics.probes import Probe
from vae_lab.models.likelihoods import DiscretizedLogistic
from vae_lab.models.posteriors import DiagonalGaussian, PointMass
from vae_lab.models.priors import StandardNormal


def measure(metric, q, y=None, vae=None, x=None, terms=None, num_batches: int = 3) -> dict[str, float]:
    """Of a split in some batches."""
    metric.reset()
    model = vae or SimpleNamespace(prior=StandardNormal(q.mean.shape[1:]))
    n = len(q.mean)
    for part in torch.arange(n).tensor_split(num_batches):
        pieces = (q.mean[part], q.log_var[part]) if hasattr(q, "log_var") else (q.mean[part],)
        batch = Batch(x[part] if x is not None else torch.zeros(len(part), 1), y[part] if y is not None else None)
        metric.update(model, batch, type(q)(*pieces), terms or {})
    return {key: value.item() for key, value in metric.compute(lambda value: value).items()}


def test_the_kl_of_each_latent_is_its_closed_form():
    q = DiagonalGaussian(torch.tensor([[1.0, 0], [3, 0]]), torch.zeros(2, 2))
    assert measure(KLPerLatent(), q, num_batches=2) == {"kl_z0": 2.5, "kl_z1": 0}  # mean^2 / 2, over both images
    assert measure(KLPerLatent(), PointMass(torch.zeros(3, 2)), vae=SimpleNamespace(prior=None)) == {}
    assert find("val/kl_z12").unit == "nats per image"
    assert find("val/kl_zoo") == UNKNOWN


def test_information_and_correlation_of_gaussians(monkeypatch):
    """z_j = a x + s e_j, j = 1, 2, with x and e standard normal: all laws are Gaussian."""
    x, a, variance = torch.randn(2500, 1), 1.0, 0.25
    q = DiagonalGaussian(a * x.expand(-1, 2), torch.full((2500, 2), math.log(variance)))
    found = measure(AggregatePosterior(), q)
    information = 0.5 * math.log(1 + 2 * a**2 / variance)
    correlation = -0.5 * math.log(1 - (a**2 / (a**2 + variance)) ** 2)
    # The error of a mean over 2,000 samples of about one nat is 0.02.
    assert found == pytest.approx({"mutual_information": information, "total_correlation": correlation}, abs=0.08)
    apart = DiagonalGaussian(100 * torch.arange(50.0)[:, None], torch.zeros(50, 1))
    found = measure(AggregatePosterior(), apart)
    assert found == pytest.approx({"mutual_information": math.log(50), "total_correlation": 0}, abs=1e-3)
    monkeypatch.setattr(latents, "NUM_TERMS", 3)  # an image at a time, as of a large grid
    silent = measure(AggregatePosterior(), DiagonalGaussian(torch.zeros(50, 3), torch.zeros(50, 3)))
    assert silent == pytest.approx({"mutual_information": 0, "total_correlation": 0}, abs=1e-4)


def test_mmd_of_gaussians():
    """E exp(-|a - b|^2 / (2 w)) = (w / (w + v))^(D/2) exp(-m^2 / (2 (w + v))) for a - b from N(m, v I), with w = D."""
    d, shift = 3, 1.0

    def expected(m: float, v: float) -> float:
        return (d / (d + v)) ** (d / 2) * math.exp(-d * m**2 / (2 * (d + v)))

    means = torch.full((2000, d), shift)
    q = DiagonalGaussian(means, torch.zeros(2000, d))
    exact = 2 * expected(0, 2) - 2 * expected(shift, 2)
    assert measure(MMD(), q)["mmd"] == pytest.approx(exact, abs=0.02)
    same = DiagonalGaussian(torch.zeros(2000, d), torch.zeros(2000, d))
    assert measure(MMD(), same)["mmd"] == pytest.approx(0, abs=0.003)


def test_labels_are_read_from_codes_and_not_from_noise():
    y = torch.arange(400)[:, None] % 4  # every other image has the same two classes
    codes = PointMass(torch.nn.functional.one_hot(y[:, 0], 4).float() + 0.05 * torch.randn(400, 4))
    noise = PointMass(torch.randn(400, 4))
    for kind in ("linear_probe", "knn"):
        assert measure(Probe(kind), codes, y) == {kind: 1.0}
        assert measure(Probe(kind), noise, y)[kind] == pytest.approx(0.25, abs=0.11)  # 5 deviations of 200 guesses
        both = torch.cat([y, torch.zeros_like(y)], 1)
        assert measure(Probe(kind), noise, both)[kind] > 0.55  # the mean with a label that never changes
        assert measure(Probe(kind), codes) == {}
    with pytest.raises(ValueError, match="kind must be linear_probe or knn, got 'svm'"):
        Probe("svm")


def test_images_that_are_met_and_images_that_are_not():
    x = torch.rand(6, 1, 16, 16)
    q = PointMass(torch.zeros(6, 2))

    def model(error: float):
        images = iter((x + error).tensor_split(3))
        return SimpleNamespace(generate=lambda z, y: next(images))

    assert measure(PSNR(), q, x=x, vae=model(0.0)) == {"psnr": 100.0}
    assert measure(SSIM(), q, x=x, vae=model(0.0)) == pytest.approx({"ssim": 1.0})
    x = 0.5 * x
    assert measure(PSNR(), q, x=x, vae=model(0.1)) == pytest.approx({"psnr": 20.0}, abs=1e-3)
    assert measure(SSIM(), q, x=x, vae=model(0.1))["ssim"] < 1


def test_bits_per_dim_are_those_of_the_levels():
    vae = SimpleNamespace(likelihood=DiscretizedLogistic(1), image_shape=(1, 2, 2))
    q, terms = PointMass(torch.zeros(3, 2)), {"elbo": torch.tensor(-4 * math.log(256))}
    assert measure(BitsPerDim(), q, vae=vae, terms=terms) == pytest.approx({"bits_per_dim": 8.0})  # uniform levels
    vae.likelihood = object()
    assert measure(BitsPerDim(), q, vae=vae, terms=terms) == {}
