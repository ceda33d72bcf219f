"""Faults of the config: refused in one line that names the key and the remedy, before data or a tracker is touched."""

import contextlib
import copy
import math
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from vae_lab.__main__ import CONF, main
from vae_lab.build import build
from vae_lab.data import ImageData
from vae_lab.datasets import Digits
from vae_lab.errors import DataError, NumericsError, RunError
from vae_lab.preemption import Preemption
from vae_lab.train import train
from vae_lab.trainer import check_devices

pytestmark = pytest.mark.fault


def compose_config(overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides)


@pytest.fixture
def refuse(config, monkeypatch):
    """Train a tiny experiment, which must be refused before data is read, and return the one line that says why."""
    monkeypatch.setattr(Digits, "read", lambda self: pytest.fail("data was read"))

    def refused(*overrides):
        with pytest.raises(ValueError, match=r"^.+$") as caught:
            train(config(*overrides))
        return str(caught.value)

    return refused


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `vae-lab` in this process, in an empty folder; it must end with exit code 2 and one line on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["vae-lab", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        GlobalHydra.instance().clear()
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert list(tmp_path.iterdir()) == []
        return line.removeprefix("vae-lab: ")

    return refused


A1 = {
    "model=cnv": "there is no model=cnv; did you mean conv? (options of model: conv, mlp, resnet)",
    "model=": "there is no model= (options of model: conv, mlp, resnet)",
    "dataset=MNIST": "there is no dataset=MNIST; did you mean mnist?",
    "optimizer/schedule=cosin": "there is no optimizer/schedule=cosin; did you mean cosine? (options of",
    "experiment=flax_vae": "there is no experiment=flax_vae; did you mean flax_vae_mnist?",
    "modell=conv": "there is no key modell; did you mean model?",
    "experment=flax_vae_mnist": "there is no key experment; did you mean experiment?",
    "optimzer/schedule=cosine": "there is no key optimzer/schedule; did you mean optimizer/schedule?",
    "logger=null": "logger=null: the option of a group is a name",
    "+model=conv": "model has an option already: choose another with model=OPTION, without the +",
    "--model=conv": "there is no option --model=conv; settings are written without dashes: model=conv",
    "--config-name=nope": "Cannot find primary config 'nope'",
}


@pytest.mark.parametrize("argument", A1)
def test_a1_an_unknown_option_is_refused_with_the_options_there_are(argument, command):
    assert command(argument).startswith(A1[argument])


A2 = {
    "model.latnt_dim=8": "there is no key model.latnt_dim; did you mean latent_dim?",
    "model.latent_dim=8": "there is no key model.latent_dim; did you mean latent_dim?",
    "KLD_weight=4": "there is no key KLD_weight; did you mean loss.KLD_weight?",
    "beta=4": "there is no key beta; did you mean loss.KLD_weight?",
    "dataset.batchsize=2": "there is no key dataset.batchsize; did you mean dataset.batch_size?",
    "trainer.epochs=3": "there is no key trainer.epochs; did you mean trainer.max_epochs or trainer.min_epochs? "
    "(if lightning.pytorch.Trainer takes it: +trainer.epochs=VALUE)",
    "model.strides=[2]": "there is no key model.strides; it belongs to model=conv",
    "callbacks.early_stopping.patience=3": "there is no key callbacks.early_stopping; it belongs to callbacks=early",
    "latent_dim.x=1": "there is no key latent_dim.x",
    "+trainer.max_epochs=3": "trainer.max_epochs exists already: change it with trainer.max_epochs=VALUE",
    "latent_dim:8": "latent_dim:8: not of the form key=value",
    "latent_dim": "latent_dim: not of the form key=value",
    "model.hidden_dims=[1": "model.hidden_dims=[1: not of the form key=value",
    "loss.KLD_weight=0.5,1": "loss.KLD_weight=0.5,1: a sweep over several values needs -m; one value that is a list",
}


@pytest.mark.parametrize("argument", A2)
def test_a2_an_unknown_key_is_refused_with_the_nearest_one(argument, command):
    line = command(argument)
    assert line.startswith(A2[argument])
    assert not any(word in line for word in ("struct", "object_type", "HYDRA", "hydra.cc", "Traceback"))


# Of every key: what people type, and what a broken script passes on.
ODD = ("x", "", math.nan, math.inf, -1, -0.5, None, [], {"a": 1}, True, 10**30)
FAST = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.max_steps=1",
    "trainer.limit_val_batches=1",
    "trainer.enable_model_summary=false",
]
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
    "wandb": ["dataset=image_folder", "logger.wandb.mode=disabled", "callbacks=none", *FAST],
}


def leaves(node, path=""):
    for key, value in node.items():
        yield from leaves(value, f"{path}{key}.") if isinstance(value, dict) and value else [f"{path}{key}"]


def every_key():
    seen = set()
    for base, overrides in BASES.items():
        for key in leaves(OmegaConf.to_container(compose_config(overrides))):
            if key not in seen:
                yield base, key
            seen.add(key)


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
@pytest.mark.parametrize(("base", "key"), list(every_key()))
@pytest.mark.filterwarnings("ignore")  # of Lightning and torch, about odd but possible settings
def test_a3_every_key_takes_an_odd_value_or_names_itself_and_it(base, key, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path / "nothing"))
    cfg = compose_config([*BASES[base], f"run_dir={tmp_path}"])
    default = OmegaConf.select(cfg, key)
    default = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
    for number, value in enumerate(ODD):
        odd = copy.deepcopy(cfg)
        OmegaConf.update(odd, "run_dir", str(tmp_path / str(number)))
        OmegaConf.update(odd, key, value, merge=False)
        try:
            build(odd, Preemption())
        except ValueError as error:
            message = str(error)
            assert "\n" not in message
            assert key.rpartition(".")[2].lower() in message.lower(), message
            assert str(value).lower() in message.lower() or value in ("", [], {"a": 1}), message
        else:
            assert is_of_the_same_kind(value, default), f"{key}={value!r} was accepted"
            if key not in ("compile", "run_dir"):
                is_survived(odd)


def is_survived(cfg):
    """Train; a failure must be one that a user is told in one line."""
    with contextlib.suppress(ValueError, OSError, DataError, NumericsError, RunError):
        train(cfg)


A3 = {
    "latent_dim=": "latent_dim is empty; write latent_dim=VALUE",
    "latent_dim=8.0": "latent_dim must be a whole number, got 8.0",
    "latent_dim='8'": "latent_dim must be a whole number, got '8'",
    "latent_dim=true": "latent_dim must be a whole number, got True",
    "latent_dim=1e400": "latent_dim must be a whole number, got inf",
    "latent_dim=1000000000000000000000000000000": "latent_dim is too large: 1000000000000000000000000000000",
    "seed=1.5": "seed must be a whole number, got 1.5",
    "seed=4294967296": "seed must be a whole number in [0, 2**32), got 4294967296",
    "compile=1": "compile must be true or false, got 1",
    "find_lr=yess": "find_lr must be true or false, got 'yess'",
    "data_root=2024": "data_root must be text, got 2024 (as text: \"data_root='2024'\")",
    "loss.KLD_weight=nan": "loss.KLD_weight must be a finite number, got nan",
    "loss.KLD_weight=1e300": "loss.KLD_weight is too large: 1e+300",
    "loss.KLD_weight=much": "loss.KLD_weight must be a finite number, got 'much'",
    "loss.warmup_steps=0.5": "loss.warmup_steps must be a whole number, got 0.5",
    "dataset.flip=1": "dataset.flip must be true or false, got 1",
    "dataset.channels=x": "dataset.channels must be a whole number, got 'x'",
    "dataset.image_shape=[1,8]": "dataset.image_shape must be a list of 3 whole numbers, got [1, 8]",
    "model.hidden_dims=16": "model.hidden_dims must be a list of whole numbers, got 16",
    "model.hidden_dims=[16,x]": "model.hidden_dims must be a list of whole numbers, got [16, 'x']",
    "model.encoder.activation=1": "model.encoder.activation must be text, got 1",
    "optimizer.lr=fast": "optimizer.lr must be a finite number, got 'fast'",
    "optimizer.betas=x": "optimizer.betas must be a list of 2 finite numbers, got 'x'",
    "optimizer.betas=[0.9]": "optimizer.betas must be a list of 2 finite numbers, got [0.9]",
    "optimizer.betas=[0.9,1.5]": "optimizer.betas=[0.9, 1.5]: Invalid beta parameter at index 1: 1.5",
    "optimizer.eps=-1": "optimizer.eps=-1: Invalid epsilon value: -1",
    "+optimizer.foreach=true": "optimizer.fused=True or optimizer.foreach=True: `fused` and `foreach` cannot be",
    "optimizer._partial_=false": "optimizer._partial_ must be true, got False",
    "optimizer.schedule=cosine": "optimizer.schedule must name a class (_target_), got 'cosine'; choose one with "
    "optimizer/schedule=OPTION",
    "+optimizer.schedule.warmup_steps=5": "optimizer.schedule must name a class (_target_), got {'warmup_steps': 5}",
    "loss.likelihood=mse": "loss.likelihood must name a class (_target_), got 'mse'; choose one with loss=OPTION",
    "~posterior": "posterior must name a class (_target_), got nothing; choose one with posterior=OPTION",
    "~logger": "logger must be a dict of classes, got nothing; choose one with logger=OPTION",
    "callbacks.progress=false": "callbacks.progress must name a class (_target_) or be null, got False",
    "+callbacks.x={_target_:vae_lab.posteriors.Gaussian}": "callbacks.x must be a Callback of Lightning, got Gaussian",
    "callbacks.checkpoints.every_n_minutes=x": "callbacks.checkpoints.every_n_minutes must be a finite number, got 'x'",
    "trainer.max_steps=null": "trainer.max_steps must be a whole number, got None",
    "trainer.min_epochs=x": "trainer.min_epochs must be a whole number or null, got 'x'",
    "trainer.min_epochs=5": "trainer.min_epochs must be <= trainer.max_epochs=2, got 5",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch must be >= 1, got 0",
    "trainer.val_check_interval=0": "trainer.val_check_interval must be > 0, got 0",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val must be >= 0, got -1",
    "trainer.limit_val_batches=1.5": "trainer: You have passed invalid value 1.5 for limit_val_batches",
    "trainer.max_time=1h": "trainer.max_time must be DD:HH:MM:SS, got '1h'",
    "trainer.fast_dev_run=true": "trainer.fast_dev_run=True has no record; use trainer=debug",
    "trainer.use_distributed_sampler=true": "trainer.use_distributed_sampler must be false",
}


@pytest.mark.parametrize("override", A3)
def test_a3_a_wrong_value_names_its_key_and_itself(override, refuse):
    assert refuse(override).startswith(A3[override])


@pytest.mark.parametrize("override", ["seed=???", "seed=${oc.env:NOT_SET}", "seed=${nothing}", "seed=${seed}"])
def test_a3_a_value_that_cannot_be_found_names_its_key(override, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["vae-lab", "logger=none", override])
    with pytest.raises(SystemExit) as caught:
        main()
    GlobalHydra.instance().clear()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vae-lab: seed")


A4 = {
    "+foo=1": "nothing reads foo; remove it, or refer to it from another setting as ${foo}",
    "+sede=1": "nothing reads sede; did you mean seed? remove it",
    "+dataset.foo=1": "nothing reads dataset.foo",
    "+dataset.root=x": "nothing reads dataset.root",  # the bundled digits have none
    "+loss.foo=1": "nothing reads loss.foo",
    "+model.strides=[2]": "nothing reads model.strides (perhaps another option of model= does)",
    "+model.hiden_dims=[2]": "nothing reads model.hiden_dims (perhaps another option of model= does); "
    "did you mean model.hidden_dims?",
    "+model.encoder.foo=1": "there is no model.encoder.foo, because vae_lab.networks.mlp.MLPEncoder takes no foo",
    "+model.encoder.out_features=1": "model.encoder.out_features is set by the program; remove it",
    "+posterior.foo=1": "there is no posterior.foo, because vae_lab.posteriors.Gaussian takes no foo",
    "+objective.freebits=1": "there is no objective.freebits, because vae_lab.objectives.ELBO takes no freebits; "
    "did you mean free_bits?",
    "+optimizer.amsgard=true": "there is no optimizer.amsgard, because torch.optim.Adam takes no amsgard; "
    "did you mean amsgrad?",
    "+trainer.max_epoch=3": "there is no trainer.max_epoch, because lightning.pytorch.Trainer takes no max_epoch; "
    "did you mean max_epochs?",
    "+trainer.callbacks=[]": "trainer.callbacks is set by the program; remove it",
    "+trainer.enable_progress_bar=true": "trainer.enable_progress_bar is set by the program; remove it",
    "+callbacks.checkpoints.foo=1": "there is no callbacks.checkpoints.foo, because vae_lab.checkpoints.Checkpoints",
    "+callbacks.picture.num_images=1": "callbacks.picture has settings, but the chosen callbacks= option",
}


@pytest.mark.parametrize("override", A4)
def test_a4_what_nothing_reads_is_refused(override, refuse):
    assert refuse(override).startswith(A4[override])


@pytest.mark.parametrize(
    "overrides",
    [
        ["+width=8", "model.hidden_dims=['${width}']"],
        ["+sizes.small=8", "model.hidden_dims=['${sizes.small}']"],
        ["+sizes=[8]", "model.hidden_dims=${sizes}"],
        ["+sizes=[8]", "model.hidden_dims=['${sizes[0]}']"],
        ["+model.width=8", "model.hidden_dims=['${..width}']"],
        ["+loss.scale=2.0", "loss.KLD_weight='${.scale}'"],
        ["+folder=here", "data_root='${oc.env:NOT_SET,${folder}}'"],
        ["+trainer.limit_predict_batches=2", "+optimizer.amsgrad=true"],
    ],
    ids=str,
)
def test_a4_a_key_that_something_refers_to_is_welcome(overrides, config):
    build(config(*overrides), Preemption())


def test_a5_pixels_outside_the_range_of_the_likelihood_are_refused_at_the_first_batch(config, monkeypatch):
    to_pixels = ImageData.to_pixels
    monkeypatch.setattr(ImageData, "to_pixels", lambda *arguments, **more: to_pixels(*arguments, **more) * 2 - 1)
    cfg = config("callbacks=none", tiny=[o for o in BASES["default"] if not o.startswith("callbacks.")])
    with pytest.raises(ValueError, match=r"^loss=bce needs pixels in \[0, 1\], got -1 to 1$"):
        train(cfg)
    train(OmegaConf.merge(cfg, {"loss": {"likelihood": {"_target_": "vae_lab.likelihoods.Gaussian"}}}))


CPU = {
    "trainer.devices=4": "trainer.devices=4 on a CPU means 4 processes; use trainer.devices=1, or add",
    "trainer.devices='4'": "trainer.devices=4 on a CPU means 4 processes",
    "trainer.devices=0": "trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got 0",
    "trainer.devices=-1": "trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got -1",
    "trainer.devices=[0,1]": "trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got [0, 1]",
    "trainer.devices=all": "trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got 'all'",
    "trainer.accelerator=gpu": "trainer.accelerator must be one of auto, cpu on this machine, got 'gpu'",
    "trainer.accelerator=tpu": "trainer.accelerator must be one of auto, cpu on this machine, got 'tpu'",
    "trainer.precision=8": "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, mixed, got 8",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU; use bf16-mixed, 32-true or mixed",
    "trainer.strategy=xyz": "trainer.strategy must be one of auto, ddp, ddp_find_unused_parameters_true, got 'xyz'",
    "trainer.strategy=ddp_spawn": "trainer.strategy must be one of auto, ddp",
    "trainer.num_nodes=2": "trainer.num_nodes must be 1: a run stays on one machine, got 2",
    "trainer.sync_batchnorm=true": "trainer.sync_batchnorm=true needs GPUs",
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("vae_lab.trainer.MPSAccelerator.is_available", lambda: False)


@pytest.mark.parametrize("override", CPU)
def test_a6_a_device_that_is_not_there_is_refused_with_those_that_are(override, refuse, no_gpu):
    assert refuse(override).startswith(CPU[override])


def test_a6_more_processes_than_cpus_are_refused(refuse, no_gpu):
    message = refuse("trainer.strategy=ddp", "trainer.devices=99999")
    assert message.startswith("trainer.devices must be at most ")


@pytest.mark.parametrize("devices", [3, 99, 0, -2, [2], [0, 0], [], "3", "0,2", "x"])
def test_a6_a_gpu_that_is_not_there_is_refused_with_the_number_of_those_that_are(devices, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = config(tiny=["trainer.accelerator=gpu"])
    cfg.trainer.devices = devices
    with pytest.raises(
        ValueError, match=r"trainer\.devices must be a number of GPUs, at most 2, or a list .* 0 to 1, got"
    ):
        check_devices(cfg.trainer)
    for good in (1, 2, -1, "auto", [1], [1, 0], "2", "0,1"):
        cfg.trainer.devices = good
        check_devices(cfg.trainer)


SIZES = {
    "model=conv dataset.image_size=30": r"image_size=30 does not fit strides \[2, 2\]: .* of 4; nearest: 28 or 32",
    "model=conv dataset.image_size=2": r"image_size=2 does not fit strides \[2, 2\]: .* multiple of 4; nearest: 4 ",
    "model=resnet dataset.image_size=30": r"image_size=30 does not fit strides \[2, 2\]: .* nearest: 28 or 32",
    "model=resnet model.channels=[8,8,8,8,8]": r"image_size=8 does not fit strides \[2, 2, 2, 2, 2\]: .* nearest: 32 ",
    "model=conv dataset=sprites dataset.image_size=66": r"image_size=66 does not fit .* nearest: 64 or 68",
    "model=conv dataset=cifar10 dataset.image_size=33": r"image_size=33 does not fit .* nearest: 32 or 36",
    "model=conv dataset=mnist model.strides=[3,3] model.kernel_sizes=[3,3]": r"image_size=28 .* nearest: 27 or 36",
    "model=conv dataset=image_folder dataset.image_size=63": r"image_size=63 does not fit .* nearest: 60 or 64",
    "model=conv model.strides=[2]": r"model\.channels, .* one entry for each layer, got 2, 2 and 1",
    "model=conv model.channels=[]": r"model\.channels, .* one entry for each layer, got 0, 2 and 2",
    "model=conv model.channels=[0,8]": r"model\.channels must all be >= 1, got \[0, 8\]",
    "model=conv model.channels=[-8,8]": r"model\.channels must all be >= 1, got \[-8, 8\]",
    "model=conv model.kernel_sizes=[2,3] model.strides=[1,2]": r"model\.kernel_sizes: 2 does not go with stride 1",
    "model=conv model.dropout=1": r"model\.dropout must be in \[0, 1\), got 1",
    "model=resnet model.norm=layer": r"model\.norm must be batch, group or null, got 'layer'",
    "model=resnet model.num_blocks=-1": r"model\.num_blocks must be >= 0, got -1",
    "dataset=sprites dataset.image_size=8": r"image_size must be >= 16 for sprites, got 8",
    "dataset=sprites dataset.source.positions=100000": r"positions=100000 make .* GB of images, at most 16 GB",
}


@pytest.mark.parametrize("overrides", SIZES)
def test_a7_a_network_that_does_not_fit_its_images_is_refused_with_what_would(overrides):
    with pytest.raises(ValueError, match=SIZES[overrides]):
        build(compose_config(["logger=none", "trainer=cpu", "run_dir=nowhere", *overrides.split()]), Preemption())


COMBINED = {
    "callbacks=early_stopping dataset.val_size=0": "dataset.val_size must be > 0 with callbacks.early_stopping",
    "callbacks=early_stopping trainer.limit_val_batches=0": "trainer.limit_val_batches must be > 0 with callbacks",
    "callbacks=early_stopping callbacks.early_stopping.monitor=val/los": "callbacks.early_stopping.monitor must be",
    "callbacks=early_stopping callbacks.early_stopping.patience=-1": "callbacks.early_stopping.patience must be >= 0",
    "callbacks.checkpoints.monitor=val/los": "callbacks.checkpoints.monitor must be one of ",
    "posterior=deterministic callbacks.checkpoints.monitor=val/elbo": "callbacks.checkpoints.monitor must be one of ",
    "trainer.max_epochs=-1": "nothing ends the training, got trainer.max_epochs=-1 and trainer.max_steps=-1; set one",
    "trainer.max_epochs=null": "nothing ends the training, got trainer.max_epochs=None and trainer.max_steps=-1; set",
    "trainer.max_epochs=-1 trainer.max_time=00:00:01:00 optimizer/schedule=cosine": "optimizer/schedule=cosine needs",
}


@pytest.mark.parametrize("overrides", COMBINED)
def test_a3_settings_that_contradict_each_other_are_refused(overrides, refuse):
    assert refuse(*overrides.split()).startswith(COMBINED[overrides])


@pytest.mark.parametrize("end", ["trainer.max_steps=2", "trainer.max_time=00:00:00:01", "callbacks=early_stopping"])
def test_a3_training_ends_by_any_limit(end, config):
    build(config("trainer.max_epochs=-1", end), Preemption())


def test_a4_the_settings_of_an_experiment_do_not_pass_silently_to_another_model(refuse):
    message = refuse("experiment=conv_vae_mnist", "model=mlp", "dataset=digits", "dataset.image_size=32")
    assert message.startswith("nothing reads model.channels, model.kernel_sizes, model.strides, model.norm")


def test_a3_a_weight_without_effect_is_told(config, caplog):
    build(config("posterior=deterministic", "loss=mse"), Preemption())
    assert "no effect" not in caplog.text
    build(config("posterior=deterministic", "loss=mse", "loss.KLD_weight=4", "loss.free_bits=0.5"), Preemption())
    for setting in ("loss.KLD_weight=4", "loss.free_bits=0.5"):
        assert f"{setting} has no effect: a deterministic posterior has no KL" in caplog.text


def test_a3_what_is_refused_leaves_only_what_says_so(config, tmp_path):
    with pytest.raises(ValueError, match="KLD_weight"):
        train(config("loss.KLD_weight=-1"))
    left = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left <= {".hydra", "status.json", "train.log", ".lock"}
    assert "status.json" in left
