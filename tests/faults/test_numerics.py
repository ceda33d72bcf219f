"""Numbers that break, and memory that is not enough: caught at once, told in one line, the last good weights kept."""

import contextlib
import math
import re
from pathlib import Path

import pytest
import torch
from command import TINY, status

from vae_lab.errors import NumericsError, OutOfMemoryError
from vae_lab.models.posteriors import Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.objectives.elbo import ELBO
from vae_lab.runs.checkpoints import load_checkpoint
from vae_lab.training.module import LitVAE
from vae_lab.training.steps import Steps
from vae_lab.training.train import train

pytestmark = pytest.mark.fault


def last_step(cfg) -> int:
    state = load_checkpoint(Path(cfg.run_dir) / "checkpoints" / "last.ckpt")
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    return state["global_step"]


@pytest.mark.parametrize(("term", "value"), [("kl", math.nan), ("reconstruction", math.inf)])
def test_f1_a_loss_that_is_not_finite_stops_within_the_step_and_names_the_term(term, value, config, monkeypatch):
    original = ELBO.forward

    def breaking(self, vae, batch, context):
        terms = original(self, vae, batch, context)
        return terms | {term: terms[term] * value, "loss": terms["loss"] * value} if context.step == 4 else terms

    monkeypatch.setattr(ELBO, "forward", breaking)
    cfg = config()
    broken = rf"train loss became {value} at step 4 of epoch 2 .*{term}={value}.*lr=0.001"
    with pytest.raises(NumericsError, match=broken):
        train(cfg)
    assert last_step(cfg) == 3
    assert status(Path(cfg.run_dir))["state"] == "failed"
    assert "NumericsError" in status(Path(cfg.run_dir))["reason"]


def test_f1_a_weight_that_breaks_while_the_loss_is_finite_never_reaches_a_checkpoint(config, monkeypatch):
    def breaking(lit, outputs, batch, batch_idx):
        if lit.batches_seen == 6:
            with torch.no_grad():
                next(iter(lit.vae.decoder.parameters())).view(-1)[0] = math.nan

    monkeypatch.setattr(LitVAE, "on_train_batch_end", breaking)
    cfg = config()
    with pytest.raises(NumericsError, match=r"(not finite|became nan)"):
        train(cfg)
    assert last_step(cfg) == 3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_f2_an_overflowing_log_var_is_clamped_counted_and_told(precision, config, monkeypatch, caplog):
    original = LitVAE.on_fit_start

    def overflow(lit):
        original(lit)
        last = [m for m in lit.vae.encoder.modules() if isinstance(m, torch.nn.Linear)][-1]
        with torch.no_grad():
            last.bias.view(2, -1)[1] = 1000.0  # log_var: exp would overflow

    monkeypatch.setattr(LitVAE, "on_fit_start", overflow)
    cfg = config(f"trainer.precision={precision}", "loss=mse", "optimizer.lr=1e-9")
    train(cfg)  # the clamp keeps the loss finite
    for step in (3, 6):  # when it is seen, and at the end
        assert f"log_var of 3 latents per image lies on its bound at step {step}, " in caplog.text
    text = (Path(cfg.run_dir) / "metrics.jsonl").read_text()
    assert '"val/clamped": 3.0' in text
    assert '"train/clamped": 3.0' in text


def test_f2_the_bound_is_counted_in_both_directions():
    params = torch.tensor([[0.0, 0.0, 0.0, 50.0, -50.0, 1.0]])  # mean, then log_var, of three latents
    distribution = Gaussian()(params)
    assert distribution.diagnostics()["clamped"] == 2
    assert distribution.kl(StandardNormal((1,))).isfinite().all()
    assert distribution.rsample(1).isfinite().all()


@pytest.mark.parametrize("lr", ["1e6", "1e30"])
def test_f3_an_absurd_learning_rate_never_ends_well_with_broken_weights(lr, config):
    cfg = config(f"optimizer.lr={lr}", "optimizer.fused=false")
    with contextlib.suppress(NumericsError):
        train(cfg)
    assert last_step(cfg) >= 0  # also one that broke in its first step


def test_f3_broken_weights_are_found_where_nothing_is_saved_or_validated(config):
    sgd = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", "optimizer.lr=3e38"]
    tiny = ["logger=none", "trainer=cpu", "callbacks=none", "latent_dim=2", "model.hidden_dims=[8]"]
    cfg = config(*sgd, "dataset.val_size=0", "trainer.max_steps=1", tiny=tiny)
    with pytest.raises(NumericsError, match=r"is not finite at step 1; .*lower optimizer\.lr"):
        train(cfg)
    assert status(Path(cfg.run_dir))["state"] == "failed"


def test_f4_a_collapsed_posterior_is_told_twice_and_the_run_goes_on(config, caplog):
    cfg = config(
        "loss.KLD_weight=1e4", "trainer.max_epochs=20", "optimizer.lr=0.01",
        "trainer.limit_train_batches=20", "dataset.batch_size=32",
    )  # fmt: skip
    train(cfg)
    told = [record.getMessage() for record in caplog.records if "posterior collapse" in record.getMessage()]
    assert [re.search(r"at step (\d+): 0/3 active units", message).group(1) for message in told] == ["200", "400"]
    assert all("KLD_weight" in message for message in told)
    assert status(Path(cfg.run_dir))["state"] == "completed"
    assert '"val/active_units": 0.0' in (Path(cfg.run_dir) / "metrics.jsonl").read_text()


OUT_OF_MEMORY = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_f5_out_of_memory_names_the_batch_size_to_try(kind, config, monkeypatch):
    original, calls = Steps.__call__, []

    def greedy(steps, *args):
        calls.append(args)
        if len(calls) == 5:
            raise OUT_OF_MEMORY[kind]
        return original(steps, *args)

    monkeypatch.setattr(Steps, "__call__", greedy)
    cfg = config()
    advice = r"^out of memory \(.*\): in a new run try dataset.batch_size=8 trainer.accumulate_grad_batches=2"
    with pytest.raises(OutOfMemoryError, match=advice) as caught:
        train(cfg)
    assert len(str(caught.value).splitlines()) == 1
    assert len(calls) == 5  # no second try
    assert last_step(cfg) == 3


def test_b11_a_last_batch_of_one_image_is_no_trouble_for_batch_norm(config):
    cfg = config(
        "model=conv", "dataset.image_size=4", "model.channels=[4,4]", "model.hidden_dims=[]", "dataset.batch_size=1",
        "trainer.max_steps=20", tiny=TINY,
    )  # fmt: skip
    train(cfg)
    assert last_step(cfg) == 20
