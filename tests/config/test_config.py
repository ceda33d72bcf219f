"""Every option of every group composes, builds and takes a training step; wrong settings are refused by name."""

import itertools

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from vae_lab.__main__ import CONF
from vae_lab.data.standard import Digits
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build
from vae_lab.training.train import train

GROUPS = (
    *("dataset", "model", "posterior", "prior", "loss", "objective", "optimizer", "optimizer/schedule", "trainer"),
    *("logger", "metrics"),
)
OPTIONS = [
    (group, path.stem)
    for group in (*GROUPS, "callbacks", "experiment")
    for path in sorted((CONF / group).glob("*.yaml"))
]
NEEDS_HARDWARE = {("trainer", "gpu")}


def test_every_group_is_listed():
    found = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml")}
    of_hydra = {"hydra/help", "hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner"}
    assert found - {".", "dataset/shared", "local", *of_hydra} == {group for group, _ in OPTIONS}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids="=".join)
def test_every_option_composes_from_the_defaults(group, option, tmp_path):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("config", [f"{group}={option}", f"run_dir={tmp_path}"])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(("group", "option"), sorted(set(OPTIONS) - NEEDS_HARDWARE), ids="=".join)
def test_every_option_builds_from_the_defaults(group, option, tmp_path):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        accelerator = [] if group == "trainer" and option != "ddp" else ["trainer.accelerator=cpu"]
        cfg = compose("config", [f"{group}={option}", f"run_dir={tmp_path}", *accelerator])
    experiment = build(cfg, Preemption())
    assert sum(p.numel() for p in experiment.lit.parameters()) > 0
    assert list(tmp_path.iterdir()) == []  # building touches nothing


GRID = list(
    itertools.product(
        ("mlp", "conv", "resnet"),
        ("gaussian", "deterministic"),
        ("bce", "mse"),
        ((1, 8), (1, 28), (3, 32), (3, 64)),
    )
)


@pytest.mark.parametrize(("model", "posterior", "loss", "shape"), GRID, ids=str)
def test_the_whole_grid_takes_a_step(model, posterior, loss, shape, config):
    channels, size = shape
    cfg = config(
        f"model={model}",
        f"posterior={posterior}",
        f"loss={loss}",
        f"dataset.channels={channels}",
        f"dataset.image_size={size}",
        "trainer.max_steps=1",
        "trainer.limit_val_batches=1",
        "callbacks=none",
        tiny=[
            "logger=none",
            "trainer=cpu",
            "dataset.batch_size=8",
            "latent_dim=2",
            "trainer.enable_model_summary=false",
        ],
    )
    train(cfg)


WRONG = {
    "loss.KLD_weight=-1": "loss.KLD_weight must be >= 0 and finite, got -1",
    "loss.warmup_steps=-5": "loss.warmup_steps must be >= 0",
    "loss.free_bits=-0.1": "loss.free_bits must be >= 0",
    "latent_dim=0": "latent_dim must be a whole number >= 1, got 0",
    "seed=-1": "seed must be a whole number in [0, 2**32), got -1",
    "optimizer.lr=0": "optimizer.lr must be > 0",
    "dataset.batch_size=0": "dataset.batch_size must be a whole number >= 1, got 0",
    "dataset.binarize=maybe": "dataset.binarize must be one of",
    "dataset.val_size=1.5": "dataset.val_size must be",
    "model.hidden_dims=[0]": "model.hidden_dims must all be >= 1",
    "model.activation=relux": "model.activation must be one of",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU",
    "trainer.precision=fp8": "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, mixed, got 'fp8'",
    "trainer.max_epochs=0": "trainer.max_epochs must be a whole number >= 1, or -1 for no limit, got 0",
    "trainer.max_steps=-2": "trainer.max_steps must be a whole number >= 1, or -1 for no limit, got -2",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps must be >= 1, got 0",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches must be >= 1, got 0",
    "trainer.overfit_batches=2": "trainer.overfit_batches=2 is not supported",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches must be > 0, got 0",
    "+model.strides=[2]": "nothing reads model.strides",
    "+posterior.max_log_var=100": "posterior.max_log_var must be in (0, 80], got 100",
    "+callbacks.picture.every_n_epochs=2": "callbacks.picture has settings",
    "callbacks.checkpoints.monitor=train/loss": "callbacks.checkpoints.monitor must be a validation metric",
    "callbacks.checkpoints.mode=low": "callbacks.checkpoints.mode must be min or max",
    "model.encoder._target_=os.system": "is not trusted",
    "optimizer._target_=torch.optim.lr_scheduler.os.system": "torch.optim.lr_scheduler.os.system",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_value_is_refused_before_data_is_read(override, message, config, monkeypatch):
    monkeypatch.setattr(Digits, "read", lambda self: pytest.fail("data was read"))
    with pytest.raises(ValueError, match=".") as caught:
        train(config(override))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does(config):
    cfg = config("model=conv", "dataset.image_size=30", "model.hidden_dims=[16]", tiny=["logger=none"])
    with pytest.raises(ValueError, match=r"dataset.image_size=30 .* multiple of 4; nearest: 28 or 32"):
        build(cfg, Preemption())


@pytest.mark.parametrize("override", ["model.latnt_dim=8", "model=cnv", "foo=1", "latent_dim.x=1"])
def test_unknown_names_are_refused_at_composition(override, config):
    with pytest.raises(ConfigCompositionException):
        config(override)
