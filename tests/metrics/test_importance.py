"""log p(x) by importance sampling, where it is known."""

import pytest
import torch
from linear_gaussian import SHAPE, LinearGaussian

from vae_lab.data.batches import Batch
from vae_lab.metrics import importance
from vae_lab.metrics.catalogue import find
from vae_lab.metrics.importance import NLL


def measure(metric, vae, x, sizes):
    metric.reset()
    with torch.no_grad():
        for part in x.split(sizes):
            metric.update(vae, Batch(part, None), None, {})
    return {key: value.item() for key, value in metric.compute(lambda value: value).items()}


def test_log_p_of_a_linear_gaussian_model(monkeypatch):
    """With the exact posterior every weight is p(x); with another one the estimate is near it, and the worse above."""
    model, x = LinearGaussian(), torch.rand(40, *SHAPE)
    exact = -model.log_prob(x)
    found = measure(NLL(3), model.vae(), x, [16, 16, 8])
    assert found == pytest.approx({"nll_is3": exact.mean().item()}, abs=1e-4)  # float32
    off = model.vae(shift=0.3, log_var_shift=0.5)
    monkeypatch.setattr(importance, "NUM_PIXELS", 4 * 10 * 7)  # chunks of images and of samples
    metric = NLL(2000)
    done = []
    metric.advance = done.append
    found = measure(metric, off, x, [30, 10])["nll_is2000"]
    each = metric.per_image()["nll_is2000"]
    assert sum(done) == pytest.approx(40)
    assert each.mean().item() == pytest.approx(found)
    # The deviation of a weight is about that of p(x), so the error of the log of a mean of 2,000 is about 0.02.
    torch.testing.assert_close(each.double(), exact, atol=0.1, rtol=0)
    assert found == pytest.approx(exact.mean().item(), abs=0.02)
    assert measure(NLL(1), off, x, [40])["nll_is1"] > found + 0.1
    assert find("test/nll_is2000").better == "lower"
    with pytest.raises(ValueError, match="metrics.nll.samples must be >= 1, got 0"):
        NLL(0)
