"""Several optimizer steps in one execution: nothing that a run computes or records depends on their number."""

import json
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import record
from lightning.pytorch import Callback
from torch.optim.optimizer import register_optimizer_step_post_hook

from vae_lab.objectives.elbo import ELBO
from vae_lab.runs.signals import Preemption
from vae_lab.training import module
from vae_lab.training.build import build
from vae_lab.training.module import LitVAE
from vae_lab.training.steps import FusedAdam, Steps, why_eager
from vae_lab.training.train import fit, quiet_lightning, train

LONG = ["trainer.limit_train_batches=11", "trainer.log_every_n_steps=2", "trainer.limit_val_batches=1"]
RUNS = {
    "plain": ["dataset.binarize=dynamic", "dataset.flip=true"],
    "accumulated": ["trainer.accumulate_grad_batches=3", "optimizer/schedule=cosine", "trainer.gradient_clip_val=0.1"],
    "validated within": ["trainer.val_check_interval=4", "trainer.max_steps=17"],
    "validated across": ["trainer.val_check_interval=7", "trainer.check_val_every_n_epoch=null"],
    "stopped early": ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1",
                      "trainer.max_epochs=5", "callbacks.gallery=null", "callbacks.summary=null"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "adversarial": ["objective=gan", "posterior=none"],
}  # fmt: skip


FEW = ("accumulated", "adversarial")


@pytest.mark.parametrize("run", [run if run in FEW else pytest.param(run, marks=pytest.mark.slow) for run in RUNS])
def test_nothing_depends_on_the_steps_in_an_execution(run, config, monkeypatch):
    records, sizes, account = [], {}, LitVAE._account

    def counting(lit, batches, *args):
        sizes.setdefault(steps, []).append(len(batches) // lit.accumulate)
        account(lit, batches, *args)

    monkeypatch.setattr(LitVAE, "_account", counting)
    for steps in (1, 5, "auto"):
        cfg = config(*LONG, *RUNS[run], f"trainer.steps_per_execution={steps}", run_dir=f"run_{steps}")
        train(cfg)
        records.append(record(Path(cfg.run_dir)))
    assert records[0] == records[1] == records[2]
    assert max(sizes[1]) == 1 < max(sizes[5])


def test_a_run_continues_within_what_was_an_execution(config):
    undisturbed = config(*LONG, run_dir="whole")
    train(undisturbed)
    cfg = config(*LONG, "trainer.steps_per_execution=4", "trainer.max_steps=7", run_dir="parts")
    train(cfg)
    cfg.trainer.max_steps, cfg.trainer.steps_per_execution, cfg.resume = -1, 3, cfg.run_dir
    train(cfg)
    hashes = [
        json.loads((Path(c.run_dir) / "result.json").read_text())["parameters_sha256"] for c in (undisturbed, cfg)
    ]
    assert hashes[0] == hashes[1]


class Listener(Callback):
    """Counts what Lightning calls within a step of its own."""

    def __init__(self):
        self.norms, self.calls = [], 0

    def on_before_optimizer_step(self, trainer, lit, optimizer):
        self.norms.append(float(torch.stack([p.grad.norm() for p in lit.vae.parameters()]).norm()))

    def on_before_zero_grad(self, trainer, lit, optimizer):
        self.calls += 1

    def on_after_backward(self, trainer, lit):
        self.calls += 100


class Observer(Callback):
    """Looks at every batch."""

    def __init__(self):
        self.sizes = []

    def on_train_batch_end(self, trainer, lit, outputs, batch, batch_idx):
        self.sizes.append(len(batch.x))


def run_with(callback: Callback, cfg) -> Callback:
    quiet_lightning()
    with Preemption() as preemption:
        experiment = build(cfg, preemption)
        experiment.trainer.callbacks.append(callback)
        fit(cfg, experiment, None)
    return callback


def test_callbacks_hear_of_every_step(config):
    listener = run_with(Listener(), config("trainer.steps_per_execution=4", "trainer.limit_train_batches=8"))
    assert listener.calls == 16 * 101
    assert len(set(listener.norms)) == 16
    observer = run_with(Observer(), config("trainer.steps_per_execution=4", run_dir="observed"))
    assert observer.sizes == [16] * 6  # one batch at a time for a callback that looks at batches


class Validated(Callback):
    """Keeps what validations measure."""

    def __init__(self):
        self.values, self.sizes = [], []

    def on_validation_end(self, trainer, lit):
        values = {key: value.item() for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        self.values.append((lit.batches_measured, values))


class Watcher(Validated):
    """Looks at every batch of a validation."""

    def on_validation_batch_end(self, trainer, lit, outputs, batch, batch_idx):
        self.sizes.append(len(batch.x))


@pytest.mark.parametrize(
    ("most", "workers", "steps"), [(module.MOST_BYTES, 0, [3]), (2 * 16 * 8 * 8, 0, [2, 1]), (2**25, 1, [1, 1, 1])]
)
def test_a_validation_takes_its_batches_at_once_and_measures_the_same(config, monkeypatch, most, workers, steps):
    sizes, step = [], LitVAE.validation_step
    monkeypatch.setattr(LitVAE, "validation_step", lambda *args: sizes.append(len(args[1].x) // 16) or step(*args))
    monkeypatch.setattr(module, "MOST_BYTES", most)
    settings = ["trainer.limit_val_batches=3", "trainer.limit_train_batches=4", "dataset.binarize=dynamic"]
    settings += [f"dataset.num_workers={workers}"]
    whole, single = (run_with(kind(), config(*settings, run_dir=kind.__name__)) for kind in (Validated, Watcher))
    assert whole.values == single.values
    assert [number for number, _ in whole.values] == [3, 3]
    assert sizes == [*steps, *steps, *[1] * 6]
    assert single.sizes == [16] * 6


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_adam_takes_the_steps_of_the_optimizer(kind):
    """Bit for bit, also from a loaded state, without one of the gradients, and with a hook that is heard."""

    def run(is_direct):
        parameters = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (5, 7)]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.1, "maximize": True}]
        optimizer, heard = kind(groups, lr=0.01, betas=(0.8, 0.9), fused=True), []
        assert FusedAdam.fits(optimizer)
        step = FusedAdam(optimizer) if is_direct else optimizer.step
        generator = torch.Generator().manual_seed(0)
        for i in range(12):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            if i in (0, 6):
                parameters[0].grad = None
            if i == 3:
                saved = deepcopy(optimizer.state_dict())
                optimizer.param_groups[0]["lr"] = 0.3
            if i == 5:
                optimizer.load_state_dict(saved)
            if i == 9:
                handle = optimizer.register_step_post_hook(lambda *args: heard.append("own"))
            if i == 10:
                handle.remove()
                handle = register_optimizer_step_post_hook(lambda *args: heard.append("of all"))
            if i == 11:
                handle.remove()
            step()
        assert heard == ["own", "of all"]
        averages = [value.reshape(-1) for state in optimizer.state.values() for value in state.values()]
        return torch.cat([*parameters, *averages])

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize(
    "other",
    [{"fused": False}, {"fused": True, "amsgrad": True}, {"fused": True, "dtypes": (torch.float32, torch.bfloat16)}],
)
def test_fused_adam_leaves_other_optimizers_alone(other):
    dtypes = other.pop("dtypes", (torch.float32,))
    parameters = [torch.nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in dtypes]
    assert not FusedAdam.fits(torch.optim.Adam(parameters, **other))
    assert not FusedAdam.fits(torch.optim.SGD(parameters, lr=1))


def test_a_step_that_cannot_be_a_graph_says_why(config, caplog):
    caplog.set_level("INFO")
    train(config("trainer.cuda_graph=true"))
    assert "no CUDA graph: it needs a GPU" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], None),
        (["trainer.accumulate_grad_batches=2"], "accumulate_grad_batches=1"),
        (["optimizer._target_=torch.optim.Adagrad", "~optimizer.betas", "~optimizer.eps", "optimizer.fused=false"],
         "Adagrad cannot be captured"),
        (["objective=gan", "posterior=none"], "GAN does not say until when it varies with the step"),
    ],
)  # fmt: skip
def test_what_a_graph_needs(overrides, reason, config):
    with Preemption() as preemption:
        experiment = build(config(*overrides), preemption)
    lit = experiment.lit
    lit.trainer = experiment.trainer
    steps = Steps(lit, lit.new_optimizers(), None, lit.accumulate, None, "norm")
    type(lit).device, before = torch.device("cuda"), type(lit).device  # where it would be
    try:
        found = why_eager(steps)
    finally:
        type(lit).device = before
    assert found is None if reason is None else reason in found


def test_a_step_that_waits_for_the_device_is_never_captured(config, caplog, monkeypatch):
    """Streams are made up, as there is no GPU: what is asked is that the run goes on, one operation at a time."""

    def waiting(objective, *args):
        terms = forward(objective, *args)
        return terms if terms["loss"].isfinite() else {}

    forward, stream = ELBO.forward, SimpleNamespace(wait_stream=lambda other: None)
    fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda one: nullcontext()}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(module, "why_eager", lambda steps: None)
    monkeypatch.setattr(ELBO, "forward", waiting)
    caplog.set_level("INFO")
    cfg = config("trainer.cuda_graph=true")
    train(cfg)
    assert caplog.text.count("no CUDA graph: a step waits for the device (_local_scalar_dense)") == 1
    assert json.loads((Path(cfg.run_dir) / "result.json").read_text())["steps"] == 6
