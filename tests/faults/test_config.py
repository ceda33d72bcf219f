"""Unknown and contradictory settings: refused in one line with the remedy, before data or a tracker is touched."""

import pytest
from composed import composed
from omegaconf import OmegaConf
from refusals import refused

from vae_lab.data.batches import Batch, ImageData
from vae_lab.data.standard import Digits
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build
from vae_lab.training.train import train

pytestmark = pytest.mark.fault


@pytest.fixture
def line_of(command, tmp_path, monkeypatch):
    """What `vae-lab` says with an argument, on one line; it must end with exit code 2 and write nothing."""
    monkeypatch.chdir(tmp_path)

    def run(argument):
        code, line = command("vae-lab", argument)
        assert code == 2
        assert command.printed == f"{line}\n"
        assert list(tmp_path.iterdir()) == []
        return line.removeprefix("vae-lab: ")

    return run


A1 = {
    "model=cnv": "there is no model=cnv; did you mean conv? (options of model: conv, linear, mlp, resnet, unpadded)",
    "model=": "there is no model= (options of model: conv, linear, mlp, resnet, unpadded)",
    "optimizer/schedule=cosin": "there is no optimizer/schedule=cosin; did you mean cosine? (options of",
    "modell=conv": "there is no key modell; did you mean model?",
    "optimzer/schedule=cosine": "there is no key optimzer/schedule; did you mean optimizer/schedule?",
    "logger=null": "logger=null: the option of a group is a name",
    "+model=conv": "model has an option already: choose another with model=OPTION, without the +",
    "--config-name=nope": "Cannot find primary config 'nope'",
}


@pytest.mark.parametrize("argument", A1)
def test_a1_an_unknown_option_is_refused_with_the_options_there_are(argument, line_of):
    assert line_of(argument).startswith(A1[argument])


A2 = {
    "model.latnt_dim=8": "there is no key model.latnt_dim; did you mean latent_dim?",
    "beta=4": "there is no key beta; did you mean loss.KLD_weight?",
    "trainer.epochs=3": "there is no key trainer.epochs; did you mean trainer.max_epochs? "
    "(if lightning.pytorch.Trainer takes it: +trainer.epochs=VALUE)",
    "model.strides=[2]": "there is no key model.strides; it belongs to model=conv",
    "latent_dim.x=1": "there is no key latent_dim.x",
    "+trainer.max_epochs=3": "trainer.max_epochs exists already: change it with trainer.max_epochs=VALUE",
    "latent_dim:8": "latent_dim:8: not of the form key=value",
    "dataset=digits,mnist": "dataset=digits,mnist: several options of a group are a sweep, which needs -m: vae-lab -m",
    "dataset=[digits,mnist]": "dataset must be one option, got [digits,mnist]; to try several: vae-lab -m",
    "~trainer.max_time": "~trainer.max_time: it is null already",
    "~trainer.nothing": "~trainer.nothing: there is no such key",
    "callbacks.checkpoints.save_top_k=3": "there is no key callbacks.checkpoints.save_top_k; callbacks.checkpoints has "
    "monitor, mode, every_n_minutes",
    "data_root=/a/b (1)": "data_root=/a/b (1): a value with ( ) needs quotes: 'data_root=\"/a/b (1)\"'",
    "latent_dim=choice(null,8)": "latent_dim=choice(null,8): a function takes no null; list the values instead, "
    "latent_dim=null,a,b",
    "latent_dim=chose(4,8)": "latent_dim=chose(4,8): Unknown function 'chose'",
    "data_root=/a=b": "data_root=/a=b: a value with = needs quotes: 'data_root=\"/a=b\"'",
    "data_root=/a,b": "data_root=/a,b: a sweep over several values needs -m; one value that is a list is written "
    "data_root=[/a,b]; one that holds a comma, 'data_root=\"/a,b\"'",
}


@pytest.mark.parametrize("argument", A2)
def test_a2_an_unknown_key_is_refused_with_the_nearest_one(argument, line_of):
    line = line_of(argument)
    assert line.startswith(A2[argument])
    assert not any(word in line for word in ("struct", "object_type", "HYDRA", "hydra.cc", "Traceback"))


A4 = {
    "+foo=1": "nothing reads foo; remove it, or refer to it from another setting as ${foo}",
    "+dataset.foo=1": "nothing reads dataset.foo",
    "+dataset.seed=1": "nothing reads dataset.seed",  # the run's is meant
    "+model.strides=[2]": "nothing reads model.strides (perhaps another option of model= does)",
    "+model.hiden_dims=[2]": "nothing reads model.hiden_dims (perhaps another option of model= does); "
    "did you mean model.hidden_dims?",
    "+model.encoder.foo=1": "there is no model.encoder.foo, because vae_lab.models.networks.mlp.MLPEncoder takes no "
    "foo",
    "+model.encoder.out_features=1": "model.encoder.out_features is set by the program; remove it",
    "+posterior.foo=1": "there is no posterior.foo, because vae_lab.models.posteriors.Gaussian takes no foo",
    "+objective.freebits=1": "there is no objective.freebits, because vae_lab.objectives.elbo.ELBO takes no freebits; "
    "did you mean free_bits?",
    "+optimizer.amsgard=true": "there is no optimizer.amsgard, because torch.optim.Adam takes no amsgard; "
    "did you mean amsgrad?",
    "+trainer.max_epoch=3": "there is no trainer.max_epoch, because lightning.pytorch.Trainer takes no max_epoch; "
    "did you mean max_epochs?",
    "+trainer.callbacks=[]": "trainer.callbacks is set by the program; remove it",
}


@pytest.mark.parametrize("override", A4)
def test_a4_what_nothing_reads_is_refused(override, config):
    assert refused(config(override)).startswith(A4[override])


@pytest.mark.parametrize(
    "overrides",
    [
        ["+width=8", "model.hidden_dims=['${width}']"],
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
    monkeypatch.setattr(
        ImageData, "to_pixels", lambda *arguments, **more: Batch(to_pixels(*arguments, **more).x * 2 - 1)
    )
    cfg = config("callbacks=none", tiny=["logger=none", "trainer=cpu", "trainer.max_steps=1"])
    with pytest.raises(ValueError, match=r"^loss=bce needs pixels in \[0, 1\], got -1 to 1$"):
        train(cfg)
    train(OmegaConf.merge(cfg, {"loss": {"likelihood": {"_target_": "vae_lab.models.likelihoods.Gaussian"}}}))


SIZES = {
    "model=conv dataset.image_size=30": r"image_size=30 does not fit strides \[2, 2\]: .* of 4; nearest: 28 or 32",
    "model=resnet model.channels=[8,8,8,8,8]": r"image_size=8 does not fit strides \[2, 2, 2, 2, 2\]: .* nearest: 32 ",
    "model=conv dataset=cifar10 dataset.image_size=33": r"image_size=33 does not fit .* nearest: 32 or 36",
    "model=conv dataset=mnist model.strides=[3,3] model.kernel_sizes=[3,3]": r"image_size=28 .* nearest: 27 or 36",
    "model=conv dataset=image_folder dataset.root=a dataset.image_size=63": r"image_size=63 .* nearest: 60 or 64",
    "dataset=sprites dataset.image_size=8": r"image_size must be >= 16 for sprites, got 8",
    "dataset=sprites dataset.source.positions=100000": r"positions=100000 make .* GB of images, at most 16 GB",
}


@pytest.mark.parametrize("overrides", SIZES)
def test_a7_a_network_that_does_not_fit_its_images_is_refused_with_what_would(overrides):
    with pytest.raises(ValueError, match=SIZES[overrides]):
        build(composed("logger=none", "trainer=cpu", "run_dir=nowhere", *overrides.split()), Preemption())


COMBINED = {
    "callbacks=early_stopping dataset.val_size=0": "dataset.val_size must be > 0 with callbacks.early_stopping",
    "callbacks=early_stopping trainer.limit_val_batches=0": "trainer.limit_val_batches must be > 0 with callbacks",
    "callbacks=early_stopping callbacks.early_stopping.monitor=val/los": "callbacks.early_stopping.monitor must be",
    "callbacks=early_stopping callbacks.early_stopping.monitor=train/loss": "callbacks.early_stopping.check_on_train_",
    "callbacks=early_stopping callbacks.early_stopping.patience=-1": "callbacks.early_stopping.patience must be >= 0",
    "callbacks.checkpoints.monitor=val/los": "callbacks.checkpoints.monitor must be one of ",
    "posterior=deterministic callbacks.checkpoints.monitor=val/elbo": "callbacks.checkpoints.monitor must be one of ",
    "posterior=deterministic prior=mixture": "prior: vae_lab.models.priors.Mixture has no effect",
    "trainer.max_epochs=-1": "nothing ends the training, got trainer.max_epochs=-1 and trainer.max_steps=-1; set one",
    "trainer.max_epochs=null": "nothing ends the training, got trainer.max_epochs=None and trainer.max_steps=-1; set",
    "trainer.max_epochs=-1 trainer.max_time=00:00:01:00 optimizer/schedule=cosine": "optimizer/schedule=cosine needs",
}


@pytest.mark.parametrize("overrides", COMBINED)
def test_a3_settings_that_contradict_each_other_are_refused(overrides, config):
    assert refused(config(*overrides.split())).startswith(COMBINED[overrides])


@pytest.mark.parametrize("end", ["trainer.max_steps=2", "trainer.max_time=00:00:00:01", "callbacks=early_stopping"])
def test_a3_training_ends_by_any_limit(end, config):
    build(config("trainer.max_epochs=-1", end), Preemption())


def test_a3_early_stopping_survives_an_epoch_that_ends_before_its_validation(config):
    train(config("callbacks=early_stopping", "trainer.max_steps=1"))


def test_a4_the_settings_of_an_experiment_do_not_pass_silently_to_another_model(config):
    message = refused(config("experiment=conv_vae_mnist", "model=mlp", "dataset=digits", "dataset.image_size=32"))
    assert message.startswith("nothing reads model.channels, model.kernel_sizes, model.strides, model.norm")


def test_a3_a_weight_without_effect_is_told(config, caplog):
    build(config("posterior=deterministic", "loss=mse"), Preemption())
    assert "no effect" not in caplog.text
    build(config("posterior=deterministic", "loss=mse", "loss.KLD_weight=4", "loss.free_bits=0.5"), Preemption())
    for setting in ("loss.KLD_weight=4", "loss.free_bits=0.5"):
        assert f"{setting} has no effect: a deterministic posterior has no KL" in caplog.text
    build(config("posterior=vq", "posterior.num_codes=8", "loss.warmup_steps=2"), Preemption())
    assert "loss.warmup_steps=2 has no effect: the KL of codes is a constant, log K for each" in caplog.text


def test_a3_what_is_refused_reads_no_data_and_leaves_only_what_says_so(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Digits, "read", lambda self: pytest.fail("data was read"))
    with pytest.raises(ValueError, match="KLD_weight"):
        train(config("loss.KLD_weight=-1"))
    left = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left <= {".hydra", "status.json", "train.log", ".lock"}
    assert "status.json" in left
