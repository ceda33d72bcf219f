"""Each warning comes when it is due, and once."""

from types import SimpleNamespace

import pytest
import torch

from vae_lab.training.health import Watch


def look(watch, **metrics):
    trainer = SimpleNamespace(
        sanity_checking=False,
        global_step=7,
        callback_metrics={f"val/{key}": torch.tensor(float(value)) for key, value in metrics.items()},
    )
    watch.on_validation_end(trainer, SimpleNamespace(vae=SimpleNamespace(latent_dim=16)))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"kl": 0.1, "active_units": 0, "clamped": 0}, "posterior collapse at step 7: 0/16 active units"),
        ({"kl": 20, "active_units": 9, "clamped": 0.25}, "log_var of 0.25 latents per image"),
    ],
)
def test_what_goes_wrong_is_told_once(metrics, words, caplog):
    watch = Watch()
    for _ in range(3):
        look(watch, **metrics)
    assert [record.getMessage().startswith(words) for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "metrics",
    [
        {"kl": 20, "active_units": 0, "clamped": 0},  # the codes hardly vary over these images, but say something
        {"kl": 0.1, "active_units": 1, "clamped": 0},
        {"mse": 0.1},  # a plain autoencoder
    ],
)
def test_what_is_well_is_not_told(metrics, caplog):
    look(Watch(), **metrics)
    assert not caplog.records
