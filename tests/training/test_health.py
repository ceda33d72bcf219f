"""What is wrong is told when it is certain, once, and again at the end if it still is; what is well is not told."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vae_lab.data.batches import ImageData, Split
from vae_lab.models.likelihoods import Bernoulli, ContinuousBernoulli, Gaussian
from vae_lab.training.health import Health, misfits, wrong_share

# The KL and the active units of healthy runs on the digits, a validation an epoch, from the first on.
SLOW_STARTS = {
    "default": [(0.013, 0), (0.05, 0), (0.29, 12), (1.0, 15)],
    "lr=1e-4": [(k, 0) for k in (0.47, 0.198, 0.058, 0.029, 0.029, 0.041, 0.051, 0.065)] + [(0.079, 1), (0.1, 6)],
    "batch of 256": [(k, 0) for k in (0.525, 0.091, 0.021, 0.016, 0.011, 0.009, 0.011, 0.011, 0.017, 0.03, 0.048)],
    "two epochs": [(0.013, 0), (0.012, 0)],
    "codes that hardly vary, but say something": [(20, 0)] * 15,
    "autoencoder": [(None, None)] * 3,
}
COLLAPSED = [(kl, 0) for kl in (0.002, 0.004, 0.006, 0.006, 0.007, 0.005, 0.006, 0.005, 0.006, 0.007, 0.005, 0.003)]


def run(validations, caplog, clamped=(), warmup_steps=0, perplexities=(), **others) -> list[str]:
    """What is told in a run with a validation every ten steps: the step and the beginning of each message."""
    health = Health()
    posterior = SimpleNamespace(num_codes=512) if perplexities else None
    vae = SimpleNamespace(latent_dim=16, posterior=posterior)
    lit = SimpleNamespace(vae=vae, objective=SimpleNamespace(warmup_steps=warmup_steps))
    trainer = SimpleNamespace(sanity_checking=False, callback_metrics={})
    for number, (kl, active) in enumerate(validations):
        trainer.global_step = lit.validated_at = 10 * (number + 1)
        values = {"kl": kl, "active_units": active, "clamped": clamped[number] if clamped else 0}
        values |= {key: series[number] for key, series in others.items()}
        if perplexities:
            values |= {"perplexity": perplexities[number], "dead_codes": 500}
        trainer.callback_metrics = {f"val/{key}": value for key, value in values.items() if value is not None}
        health.on_validation_end(trainer, lit)
    health.on_run_end(trainer, lit)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("steps", "told"), [(50, []), (51, ["loss.warmup_steps=51 is longer than the run"])])
def test_a_warm_up_that_never_ends_is_told_at_the_start(steps, told, caplog, monkeypatch):
    monkeypatch.setattr("vae_lab.training.health.misfits", lambda lit, data: [])
    lit = SimpleNamespace(objective=SimpleNamespace(warmup_steps=steps), schedule=None, total_steps=50)
    Health().on_train_start(SimpleNamespace(datamodule=None), lit)
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == told


@pytest.mark.parametrize("name", SLOW_STARTS)
def test_what_is_well_is_not_told(name, caplog):
    assert not run(SLOW_STARTS[name], caplog)


@pytest.mark.parametrize(
    ("validations", "warmup_steps", "steps"),
    [
        (COLLAPSED, 0, [100, 120]),
        (COLLAPSED, 50, [120]),  # the eighth after the warm-up
        (COLLAPSED[:5], 0, [50]),
        (COLLAPSED[:10], 0, [100]),
        (COLLAPSED[:11] + [(0.4, 3)], 0, [100]),
        (COLLAPSED, 200, []),
    ],
    ids=["long", "warm-up", "short", "told in the last step", "recovered", "never warm"],
)
def test_a_collapse_is_told_when_it_is_certain_and_again_at_the_end(validations, warmup_steps, steps, caplog):
    told = run(validations, caplog, warmup_steps=warmup_steps)
    assert [message.startswith("posterior collapse at step ") for message in told] == [True] * len(steps)
    assert [int(message.split()[4].rstrip(":")) for message in told] == steps
    assert all("0/16 active units" in message and "KLD_weight" in message for message in told)


@pytest.mark.parametrize(
    ("generator", "discriminator", "winners"),
    [((0.7, 2.1, 0.9), (1.4, 0.4, 1.2), []), ((0.7, 6, 9), (1.4, 0.01, 0.001), ["discriminator"] * 2),
     ((0.7, 0.01, 0.9), (1.4, 5, 1.2), ["generator"])],
)  # fmt: skip
def test_a_player_that_has_won_is_told(generator, discriminator, winners, caplog):
    told = run([(20, 9)] * 3, caplog, generator_loss=generator, discriminator_loss=discriminator)
    assert [message.split(" has won at step ")[0] for message in told] == [f"the {winner}" for winner in winners]


@pytest.mark.parametrize(("clamped", "steps"), [((0, 0.25, 0.5, 0), [20]), ((0, 0.25, 0.5, 0.5), [20, 40])])
def test_a_log_var_on_its_bound_is_told_at_once_and_again_at_the_end(clamped, steps, caplog):
    told = run([(20, 9)] * 4, caplog, clamped)
    assert [f"at step {step}, " in message for message, step in zip(told, steps, strict=True)] == [True] * len(steps)
    assert all(message.startswith("log_var of ") for message in told)


@pytest.mark.parametrize(
    ("perplexities", "steps"),
    [([8] * 12, [100, 120]), ([8] * 3, [30]), ([8] * 11 + [400], [100]), ([8, 8, 20], []), ([16] * 12, [])],
)
def test_a_collapsed_codebook_is_told_with_its_perplexity(perplexities, steps, caplog):
    told = run([(20, 9)] * len(perplexities), caplog, perplexities=perplexities)
    assert told == [message for message in told if message.startswith("codebook collapse at step ")]
    assert [int(message.split()[4].rstrip(":")) for message in told] == steps
    assert all("perplexity 8 of 512 codes, 500 of them never used" in message for message in told)


MISFITS = {
    "nothing": ({}, None),
    "a tutorial": ({"kld_weight": 0.765625, "likelihood": Gaussian()}, None),
    "a tiny weight of an autoencoder": ({"kld_weight": 1e-6}, None),
    "a mean over pixels": ({"kld_weight": 1 / 64}, "about 1 / pixels, as belongs to a loss that is a mean over pixels"),
    "a mean over batches": ({"kld_weight": 20 / 100}, "about batch size / images"),
    "a weight that nothing is worth": ({"kld_weight": 1e4}, "more than the 64 numbers of an image"),
    "images scaled twice": ({"pixels": 1}, "reach only from 0 to 0.00392 of 1"),
    "two greys, a density": ({"pixels": 255, "likelihood": ContinuousBernoulli()}, "the pixels are 0 or 1, but"),
    "two greys, coins": ({"pixels": 255}, None),
    "batches of one": ({"batch_size": 1, "networks": nn.BatchNorm2d(3)}, "batch normalisation with dataset.batch_"),
    "batches of one, no norm": ({"batch_size": 1}, None),
}


@pytest.mark.parametrize("name", MISFITS)
def test_settings_that_do_not_fit_the_images_are_told_before_training(name):
    changes, told = MISFITS[name]
    largest = changes.get("pixels", 254)
    pixels = torch.arange(100 * 64).reshape(100, 1, 8, 8).remainder(2).mul(largest).byte()
    data = ImageData(None, (1, 8, 8), changes.get("batch_size", 20), "none", False, 0, 0, 0, 0, 0)
    data.splits = {"train": Split(pixels, torch.zeros(100, 0), torch.arange(100))}
    vae = nn.ModuleDict({"network": changes.get("networks", nn.Identity())})
    vae.likelihood = changes.get("likelihood", Bernoulli())
    lit = SimpleNamespace(vae=vae, objective=SimpleNamespace(kld_weight=changes.get("kld_weight", 1.0)))
    found = [message % tuple(values) for message, *values in misfits(lit, data)]
    assert len(found) == (told is not None)
    assert not told or told in found[0]


def test_a_decoder_that_is_sure_of_what_is_wrong():
    """Half of the pixels are 1; a decoder emits the same logit everywhere."""
    x = torch.arange(8.0).remainder(2).reshape(2, 1, 2, 2)
    data = SimpleNamespace(examples=lambda split, num: (x, torch.zeros(2, 0)))
    for logit, wrong in ((0.0, 0), (-10.0, 0), (20.0, 0.5)):
        network = nn.Linear(1, 1)
        vae = SimpleNamespace(
            likelihood=Bernoulli(), encoder=network, num_classes=(), parameters=network.parameters,
            encode=lambda x, y: SimpleNamespace(mean=x), decode=lambda z, y, logit=logit: torch.full_like(z, logit),
        )  # fmt: skip
        lit = SimpleNamespace(vae=vae, device=torch.device("cpu"))
        assert wrong_share(lit, SimpleNamespace(datamodule=data)) == wrong
