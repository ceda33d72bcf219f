"""Manual optimization: the same numbers as a bare loop, with and without an adversary."""

import json
import math
from pathlib import Path

import pytest
import torch
from command import record
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from vae_lab.config.instantiate import build_vae
from vae_lab.data.seeds import TRAIN, derive_seed
from vae_lab.objectives import Context
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build, build_data, build_objective
from vae_lab.training.train import fit, quiet_lightning, train

ADVERSARIAL = [
    "objective=factor",
    "objective._target_=toy_parts.AdversarialELBO",
    *(f"~objective.{key}" for key in ("warmup_steps", "free_bits", "gamma")),
    "objective.adversary.hidden_dims=[8]",
    "objective.adversary.activation=relu",
]
OBJECTIVES = {
    "elbo": [],
    "adversarial": ADVERSARIAL,
    "gan": ["objective=gan", "posterior=none"],
    "vae_gan": ["objective=vae_gan", "objective.adversary.channels=[4]", "objective.adversarial_start=1"],
}
SCHEDULED = ["optimizer/schedule=cosine", "optimizer.schedule.warmup_steps=2", "optimizer.fused=false"]
CLIPPED = ["trainer.gradient_clip_val=0.05"]
SGD = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1", "~optimizer.betas", "~optimizer.eps"]
VARIANTS = {
    "plain": [],
    "clipped by value": ["trainer.gradient_clip_val=0.001", "trainer.gradient_clip_algorithm=value"],
    "everything": ["trainer.accumulate_grad_batches=2", *SCHEDULED, *CLIPPED],  # 3 batches: the last window is short
}


@pytest.fixture(autouse=True)
def _trusted(monkeypatch):
    monkeypatch.setenv("VAE_LAB_TRUST", "toy_parts")


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def bare_loop(cfg) -> nn.Module:
    """What a run computes, in plain PyTorch: two epochs of three batches."""
    torch.manual_seed(cfg.seed)
    vae = build_vae(cfg)
    objective = build_objective(cfg, vae)
    adversary = getattr(objective, "adversary", None)
    networks = [vae] if adversary is None else [vae, adversary]
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-3, fused=cfg.optimizer.fused) for n in networks]
    data = build_data(cfg)
    data.setup("fit")
    window, clip = cfg.trainer.accumulate_grad_batches, cfg.trainer.gradient_clip_val
    total_steps, seen, step = 2 * math.ceil(3 / window), 0, 0
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        for i, batch in zip(range(3), loader, strict=False):
            torch.manual_seed(derive_seed(cfg.seed, TRAIN, seen, 0))
            batch = data.to_pixels(batch, training=True)
            context = Context(step, len(data.splits["train"]), "train")
            if cfg.optimizer.schedule:
                for optimizer in optimizers:
                    fall = (1 + math.cos(math.pi * (step - 2) / (total_steps - 2))) / 2
                    optimizer.param_groups[0]["lr"] = 1e-3 * ((step + 1) / 2 if step < 2 else fall)
            for network, optimizer in zip(networks, optimizers, strict=True):
                if network is vae:
                    loss = objective(vae, batch, context)["loss"]
                else:
                    loss = objective.adversary_loss(vae, batch, context)["discriminator_loss"]
                gradients = torch.autograd.grad(loss / window, [*network.parameters()])
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter.grad = gradient if i % window == 0 else parameter.grad + gradient
                if (i + 1) % window == 0 or i == 2:
                    if clip and cfg.trainer.gradient_clip_algorithm == "value":
                        nn.utils.clip_grad_value_(network.parameters(), clip)
                    elif clip:
                        nn.utils.clip_grad_norm_(network.parameters(), clip)
                    optimizer.step()
            step += (i + 1) % window == 0 or i == 2
            seen += 1
    return nn.ModuleList(networks)


@pytest.mark.parametrize(
    ("objective", "variant"),
    [*(("elbo", variant) for variant in VARIANTS), *((name, "everything") for name in OBJECTIVES if name != "elbo")],
)
def test_a_run_is_a_bare_loop(objective, variant, config):
    cfg = config(*OBJECTIVES[objective], *VARIANTS[variant])
    expected = parameters(bare_loop(cfg))
    train(cfg)
    state = torch.load(Path(cfg.run_dir) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    rename = {"vae.": "0.", "objective.adversary.": "1."}
    found = {new + k.removeprefix(old): v for old, new in rename.items() for k, v in state.items() if k.startswith(old)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)  # the factor of a schedule is rounded


def test_the_steps_of_an_adversary_do_not_count(config):
    cfg = config(*ADVERSARIAL, "trainer.max_steps=4", "trainer.log_every_n_steps=1")
    train(cfg)
    result = json.loads((Path(cfg.run_dir) / "result.json").read_text())
    assert result["steps"] == 4
    assert {"val/generator_loss", "val/discriminator_loss", "val/elbo"} <= result.keys()
    lines = [json.loads(line) for line in (Path(cfg.run_dir) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train_step/discriminator_loss" in line] == [0, 1, 2, 3]


@pytest.mark.parametrize("objective", ["gan", pytest.param("vae_gan", marks=pytest.mark.slow)])
def test_an_adversarial_run_continues_exactly(objective, config):
    undisturbed = config(*OBJECTIVES[objective], *CLIPPED, "trainer.max_epochs=4", run_dir="whole")
    train(undisturbed)
    cfg = config(*OBJECTIVES[objective], *CLIPPED, run_dir="parts")
    train(cfg)
    cfg.trainer.max_epochs, cfg.resume = 4, cfg.run_dir
    (Path(cfg.run_dir) / "status.json").unlink()
    train(cfg)
    assert record(Path(cfg.run_dir)) == record(Path(undisturbed.run_dir))


def test_a_weight_that_the_objective_does_not_take_is_refused(config):
    with pytest.raises(ValueError, match=r"loss\.warmup_steps=5 has no effect: toy_parts\.AdversarialELBO takes"):
        train(config(*ADVERSARIAL, "loss.warmup_steps=5"))


def test_a_metric_of_ones_own_is_measured(config):
    cfg = config("+metrics.brightness={_target_:toy_parts.Brightness}", "callbacks.checkpoints.monitor=val/brightness")
    train(cfg)
    assert 0 < json.loads((Path(cfg.run_dir) / "result.json").read_text())["val/brightness"] < 1


def test_gradients_that_are_scaled_for_float16_are_clipped_as_they_are(config):
    """With plain SGD a step is as long as the clipped gradient, whatever the scale; a CPU can scale, too."""
    quiet_lightning()
    ends = []
    for scale in (2.0**4, 2.0**10):
        overrides = [*SGD, *CLIPPED, "optimizer.fused=false", "trainer.accumulate_grad_batches=2"]
        cfg = config(*overrides, run_dir=f"run_{scale}")
        with Preemption() as preemption:
            experiment = build(cfg, preemption)
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            experiment.trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
            begin = parameters(experiment.lit)
            fit(cfg, experiment, None)
        ends.append({name: value - begin[name] for name, value in parameters(experiment.lit).items()})
    lengths = [math.sqrt(sum(value.square().sum().item() for value in end.values())) for end in ends]
    assert 0 < lengths[0] <= 4 * 0.1 * 0.05 * 1.001  # four steps, each no longer than the rate times the bound
    # float16 keeps three digits
    assert lengths[1] == pytest.approx(lengths[0], rel=0.02)


@pytest.mark.parametrize("objective", ["elbo", "adversarial"])
def test_a_validation_encodes_every_batch_once(objective, config):
    cfg, encoded = config(*OBJECTIVES[objective], "logger=none"), []
    Path(cfg.run_dir).mkdir()
    quiet_lightning()
    with Preemption() as preemption:
        _, lit, trainer, _ = experiment = build(cfg, preemption)
    lit.vae.encoder.register_forward_hook(lambda encoder, inputs, output: encoded.append(len(output)))
    trainer.validate(lit, experiment.data, verbose=False)
    assert encoded.count(len(experiment.data.splits["val"])) == 1  # the others are those of `Health`
