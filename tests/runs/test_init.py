"""A run that starts from the weights of another one, and a run whose weights are averaged."""

import shutil

import pytest
import torch

from vae_lab import load_run
from vae_lab.config.instantiate import build_vae
from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import load_checkpoint
from vae_lab.runs.folder import RunFolder
from vae_lab.runs.trained import initialize
from vae_lab.training.train import train

ONE_STEP = ("trainer.max_steps=1", "trainer.max_epochs=1")


def test_init_takes_the_best_weights_of_another_run(config):
    cfg = config(*ONE_STEP, run_dir="first")
    train(cfg)
    first = RunFolder(cfg.run_dir).folder
    kept = load_run(first).vae.state_dict()
    vae = build_vae(config("seed=5", "objective=iwae"))
    assert "checkpoints/best.ckpt" in initialize(vae, first)
    assert all(torch.equal(weight, kept[name]) for name, weight in vae.state_dict().items())
    for setting in ("latent_dim=4", "prior=mixture"):
        with pytest.raises(ValueError, match=r"init=.*first: its weights do not fit this model: .* must be"):
            initialize(build_vae(config(setting)), first)
    with pytest.raises(RunError):
        initialize(vae, first / "nothing")

    cfg = config(*ONE_STEP, "objective=iwae", "optimizer.lr=1e-12", f"init='{first}'", run_dir="second")
    train(cfg)
    second = RunFolder(cfg.run_dir).folder
    for name, weight in load_run(second).vae.state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=1e-9)
    assert "starting from" in (second / "train.log").read_text()
    shutil.rmtree(first)  # it has what it needs
    cfg.resume, cfg.trainer.max_steps = cfg.run_dir, 2
    train(cfg)


def test_averaged_weights_are_what_is_loaded(config):
    cfg = config(*ONE_STEP, "callbacks=ema", "callbacks.ema.decay=0.0", "callbacks.gallery=null")
    train(cfg)
    checkpoint = load_checkpoint(RunFolder(cfg.run_dir).folder / "checkpoints/best.ckpt")
    assert checkpoint["averaging_state"]["n_averaged"] == 1
    loaded = load_run(cfg.run_dir).vae.state_dict()
    assert all(torch.equal(weight, checkpoint["state_dict"][f"vae.{name}"]) for name, weight in loaded.items())
