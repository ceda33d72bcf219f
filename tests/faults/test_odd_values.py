"""Values of the wrong kind or out of range: each is refused with its key and itself, or it works."""

import contextlib
import copy
import itertools
import math

import pytest
from composed import composed
from omegaconf import OmegaConf
from refusals import refused

from vae_lab.config.nested import leaves
from vae_lab.errors import DataError, NumericsError, RunError
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build
from vae_lab.training.train import train

pytestmark = pytest.mark.fault

# Of every key: what people type, and what a broken script passes on.
ODD = ("x", math.nan, -1, -0.5, None, [], {"a": 1}, True)
FAST = ["trainer=cpu", "trainer.max_epochs=1", "trainer.max_steps=1", "trainer.limit_val_batches=1"]
BASES = {
    "default": ["logger=none", "callbacks.gallery=null", "callbacks.summary=null", *FAST],
    "conv": [
        *("model=conv", "loss=mse", "optimizer=adamw", "optimizer/schedule=cosine", "callbacks=early_stopping"),
        *("logger=csv", "callbacks.gallery.num_images=2", *FAST),
    ],
    "resnet": [
        *("model=resnet", "optimizer/schedule=step", "logger=tensorboard", "dataset=sprites", "dataset.image_size=16"),
        *("dataset.source.scales=1", "dataset.source.positions=2", "callbacks=none", *FAST),
    ],
    "wandb": ["dataset=image_folder", "dataset.root=nowhere", "logger.wandb.mode=disabled", "callbacks=none", *FAST],
}


def every_key(base: str) -> list[str]:
    """The keys of a base that those before it do not have."""
    keys = {name: leaves(OmegaConf.to_container(composed(*overrides))) for name, overrides in BASES.items()}
    before = {key for name in list(BASES)[: list(BASES).index(base)] for key in keys[name]}
    return [key for key in keys[base] if key not in before]


def is_of_the_same_kind(value, default):
    """Whether an odd value may be meant where the default is this one."""
    if isinstance(value, dict) or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return False
    if value is None or default is None:
        return not isinstance(value, list)
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    kinds = (str, list, (int, float))
    return any(isinstance(value, kind) and isinstance(default, kind) for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("base", BASES)
@pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about odd but possible settings
def test_a3_every_key_takes_an_odd_value_or_names_itself_and_it(base, part, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path / "nothing"))
    cfg = composed(*BASES[base])
    for number, (key, value) in enumerate(itertools.product(every_key(base)[part::4], ODD)):
        default = OmegaConf.select(cfg, key, throw_on_resolution_failure=False)
        default = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
        odd = copy.deepcopy(cfg)
        OmegaConf.update(odd, "run_dir", str(tmp_path / str(number)))
        OmegaConf.update(odd, key, value, merge=False)
        try:
            build(odd, Preemption())
        except ValueError as error:
            message = str(error)
            assert "\n" not in message
            assert key.rpartition(".")[2].lower() in message.lower(), message
            assert str(value).lower() in message.lower() or value in ([], {"a": 1}), message
        else:
            assert is_of_the_same_kind(value, default), f"{key}={value!r} was accepted"
            is_default = type(value) is type(default) and value == default
            if key not in ("compile", "run_dir") and not is_default:
                is_survived(odd)


def is_survived(cfg):
    """Train; a failure must be one that a user is told in one line."""
    with contextlib.suppress(ValueError, OSError, DataError, NumericsError, RunError):
        train(cfg)


A3 = {
    "latent_dim=0": "latent_dim must be a whole number >= 1, got 0",
    "seed=-1": "seed must be a whole number in [0, 2**32), got -1",
    "optimizer.lr=0": "optimizer.lr must be > 0",
    "dataset.batch_size=0": "dataset.batch_size must be a whole number >= 1, got 0",
    "dataset.binarize=maybe": "dataset.binarize must be one of",
    "trainer.precision=fp8": "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, mixed, got 'fp8'",
    "trainer.max_epochs=0": "trainer.max_epochs must be a whole number >= 1, or -1 for no limit, got 0",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps must be >= 1, got 0",
    "trainer.steps_per_execution=0": "trainer.steps_per_execution must be ",
    "trainer.steps_per_execution=all": "trainer.steps_per_execution must be ",
    "trainer.overfit_batches=2": "trainer.overfit_batches=2: use trainer.limit_train_batches instead",
    "trainer.limit_train_batches=0": "trainer.limit_train_batches must be > 0, got 0",
    "callbacks.checkpoints.monitor=train/loss": "callbacks.checkpoints.monitor must be a validation metric",
    "trainer.gradient_clip_algorithm=value": "trainer.gradient_clip_val must be > 0 with gradient_clip_algorithm=value",
    "latent_dim=": "latent_dim is empty; write latent_dim=VALUE",
    "latent_dim=8.0": "latent_dim must be a whole number, got 8.0",
    "latent_dim=true": "latent_dim must be a whole number, got True",
    "latent_dim=1000000000000000000000000000000": "latent_dim is too large: 1000000000000000000000000000000",
    "seed=4294967296": "seed must be a whole number in [0, 2**32), got 4294967296",
    "compile=1": "compile must be true or false, got 1",
    "data_root=2024": "data_root must be text, got 2024 (as text: \"data_root='2024'\")",
    "loss.KLD_weight=nan": "loss.KLD_weight must be a finite number, got nan",
    "loss.KLD_weight=1e300": "loss.KLD_weight is too large: 1e+300",
    "dataset.image_shape=[1,8]": "dataset.image_shape must be a list of 3 whole numbers, got [1, 8]",
    "model.hidden_dims=[16,x]": "model.hidden_dims must be a list of whole numbers, got [16, 'x']",
    "optimizer.betas=[0.9]": "optimizer.betas must be a list of 2 finite numbers, got [0.9]",
    "optimizer.betas=[0.9,1.5]": "optimizer.betas=[0.9, 1.5]: Invalid beta parameter at index 1: 1.5",
    "+optimizer.foreach=true": "optimizer.fused=True or optimizer.foreach=True: `fused` and `foreach` cannot be",
    "optimizer._partial_=false": "optimizer._partial_ must be true, got False",
    "optimizer.schedule=cosine": "optimizer.schedule must name a class (_target_), got 'cosine'; choose one with "
    "optimizer/schedule=OPTION",
    "+optimizer.schedule.warmup_steps=5": "optimizer.schedule must name a class (_target_), got {'warmup_steps': 5}",
    "loss.likelihood=mse": "loss.likelihood must name a class (_target_), got 'mse'; choose one with loss=OPTION",
    "posterior._target_=vae_lab.models.likelihoods.Gaussian": "posterior must be a class with params_per_latent, got "
    "Gaussian",
    "loss.likelihood._target_=vae_lab.models.posteriors.Gaussian": "loss.likelihood must be a class with "
    "params_per_channel",
    "optimizer._target_=torch.optim.SGD": "there is no optimizer.betas, because torch.optim.SGD takes no betas; "
    "remove it (~optimizer.betas)",
    "~posterior": "posterior must name a class (_target_), got nothing; choose one with posterior=OPTION",
    "~logger": "logger must be a dict of classes, got nothing; choose one with logger=OPTION",
    "callbacks.progress=false": "callbacks.progress must name a class (_target_) or be null, got False",
    "+callbacks.x={_target_:vae_lab.models.posteriors.Gaussian}": "callbacks.x must be a Callback of Lightning, got "
    "Gaussian",
    "trainer.min_epochs=5": "trainer.min_epochs must be <= trainer.max_epochs=2, got 5",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch must be >= 1, got 0",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val must be >= 0, got -1",
    "trainer.limit_val_batches=1.5": "trainer: You have passed invalid value 1.5 for limit_val_batches",
    "trainer.max_time=1h": "trainer.max_time must be DD:HH:MM:SS, got '1h'",
    "trainer.fast_dev_run=true": "trainer.fast_dev_run=True has no record; use trainer=debug",
    "trainer.use_distributed_sampler=true": "trainer.use_distributed_sampler must be false",
}


@pytest.mark.parametrize("override", A3)
def test_a3_a_wrong_value_names_its_key_and_itself(override, config):
    assert refused(config(override)).startswith(A3[override])


@pytest.mark.parametrize("override", ["seed=${oc.env:NOT_SET}", "seed=${seed}"])
def test_a3_a_value_that_cannot_be_found_names_its_key(override, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, line = command("vae-lab", "logger=none", override)
    assert code == 2
    assert command.printed == f"{line}\n"
    assert line.startswith("vae-lab: seed")
