"""Training end to end, in process: what is recorded is what happened."""

import json

import pytest
import torch

import vae_lab
from vae_lab.data.batches import Batch, ImageData
from vae_lab.errors import NumericsError, RunError
from vae_lab.objectives.elbo import ELBO
from vae_lab.runs.folder import Run
from vae_lab.runs.measure import parameters_sha256
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build
from vae_lab.training.train import train

KEYS = {"loss", "elbo", "reconstruction", "kl", "mse", "active_units", "clamped"}


def read_result(cfg) -> dict:
    return json.loads((Run(cfg.run_dir).folder / "result.json").read_text())


def read_metrics(cfg) -> list[dict]:
    return [json.loads(line) for line in (Run(cfg.run_dir).folder / "metrics.jsonl").read_text().splitlines()]


def last_checkpoint(cfg):
    return Run(cfg.run_dir).folder / "checkpoints" / "last.ckpt"


def test_a_run_leaves_the_whole_folder(config):
    cfg = config(
        "callbacks.gallery={_target_:vae_lab.evaluation.gallery.Gallery,num_images:4,every_n_epochs:1,"
        "scatter_every_n_steps:null,scatter_until_step:0}"
    )
    best_value = train(cfg)
    folder = Run(cfg.run_dir).folder
    for name in (
        "status.json",
        "metrics.jsonl",
        "result.json",
        "train.log",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "pictures/training.gif",
        "pictures/curves.png",
    ):
        assert (folder / name).stat().st_size > 0 or name == "train.log", name
    assert not list(folder.rglob("*.tmp.*"))
    result = read_result(cfg)
    assert {f"val/{key}" for key in KEYS} <= set(result)
    assert result["best_value"] == best_value == result["val/loss"]
    assert result["steps"] == 6
    assert result["epochs"] == 2
    status = Run(cfg.run_dir).status
    assert status["state"] == "completed"
    assert set(status["times"][0]) == {"started", "ended"}
    assert status["versions"]["torch"] == torch.__version__


def test_metrics_have_steps_and_the_identities_hold(config):
    cfg = config("loss.KLD_weight=3")
    train(cfg)
    rows = read_metrics(cfg)
    validation = [row for row in rows if "val/loss" in row]
    assert [row["step"] for row in validation] == [3, 6]
    assert [row["epoch"] for row in validation] == [0, 1]
    for row in validation:
        # Means of float32 sums over images: equal up to their rounding.
        assert row["val/elbo"] == pytest.approx(-row["val/reconstruction"] - row["val/kl"], rel=1e-5)
        assert row["val/loss"] == pytest.approx(row["val/reconstruction"] + 3 * row["val/kl"], rel=1e-5)
        assert row["val/mse"] > 0
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == [3, 6]
    assert {"train/loss", "train/elbo", "train/reconstruction", "train/kl"} <= set(training[0])


def test_the_plain_autoencoder_reports_no_bound(config):
    cfg = config("posterior=deterministic", "loss=mse")
    train(cfg)
    assert {key for row in read_metrics(cfg) for key in row if key.startswith("val/")} == {
        "val/loss",
        "val/reconstruction",
        "val/mse",
    }


def test_the_validation_loss_does_not_depend_on_the_batch_size_or_the_warm_up(config):
    """A plain autoencoder draws no noise, so its validation mean must be the same however it is batched."""
    losses = []
    for batch_size in (7, 180):
        cfg = config(
            "posterior=deterministic",
            f"dataset.batch_size={batch_size}",
            "trainer.limit_val_batches=1.0",
            "callbacks.checkpoints=null",
            run_dir=f"batch_{batch_size}",
        )
        experiment = build(cfg, Preemption())
        Run(cfg.run_dir).folder.mkdir()
        experiment.trainer.validate(experiment.lit, experiment.data, verbose=False)
        losses.append(float(experiment.trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # float32 sums in another order


def test_best_is_kept_when_later_epochs_are_worse(config, monkeypatch):
    original = ELBO.forward

    def worse_later(self, vae, batch, context):
        terms = original(self, vae, batch, context)
        if context.stage == "val" and context.step > 3:  # after the first epoch
            terms["loss"] = terms["loss"] + 1000
        return terms

    monkeypatch.setattr(ELBO, "forward", worse_later)
    cfg = config()
    train(cfg)
    result = read_result(cfg)
    assert result["best_step"] == 3
    assert result["best_epoch"] == 0
    best, last = (vae_lab.load_run(cfg_folder(cfg), name).vae for name in ("best", "last"))
    assert parameters_sha256(best) != parameters_sha256(last)


def cfg_folder(cfg):
    """Give a composed config the `.hydra` folder that the command line would have written."""
    from omegaconf import OmegaConf

    folder = Run(cfg.run_dir).folder
    (folder / ".hydra").mkdir(exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return folder


def test_a_run_that_stops_within_an_epoch_is_validated_and_keeps_a_best_checkpoint(config):
    cfg = config("trainer.max_steps=2")
    train(cfg)
    assert read_result(cfg)["best_step"] == 2
    assert (Run(cfg.run_dir).folder / "checkpoints" / "best.ckpt").exists()


def test_the_same_seed_gives_the_same_model_and_another_seed_another(config):
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        cfg = config(f"seed={seed}", run_dir=f"run{number}")
        train(cfg)
        hashes.append(read_result(cfg)["parameters_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_run_that_diverges_in_its_first_step_leaves_finite_weights(config):
    cfg = config("optimizer.lr=1e12", "optimizer.fused=false")
    with pytest.raises(NumericsError, match="lower optimizer.lr"):
        train(cfg)
    state = torch.load(last_checkpoint(cfg), weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_a_finite_checkpoint(value, config, monkeypatch):
    original = ELBO.forward

    def broken(self, vae, batch, context):
        terms = original(self, vae, batch, context)
        if context.step == 4:
            terms["kl"] = terms["kl"] * value
            terms["loss"] = terms["reconstruction"] + terms["kl"]
        return terms

    monkeypatch.setattr(ELBO, "forward", broken)
    cfg = config()
    with pytest.raises(NumericsError, match=rf"at step 4 of epoch 1 .*kl={value}"):
        train(cfg)
    status = Run(cfg.run_dir).status
    assert status["state"] == "failed"
    assert "NumericsError" in status["reason"]
    state = torch.load(last_checkpoint(cfg), weights_only=True)
    assert state["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_pixels_outside_the_likelihoods_range_are_refused(config, monkeypatch):
    original = ImageData.to_pixels
    monkeypatch.setattr(
        ImageData, "to_pixels", lambda self, batch, training: Batch(original(self, batch, training).x * 2 - 1)
    )
    with pytest.raises(ValueError, match=r"loss=bce needs pixels in \[0, 1\], got -1 to"):
        train(config())


def test_load_run_gives_back_the_trained_model(config):
    cfg = config()
    train(cfg)
    folder = cfg_folder(cfg)
    vae, loaded = vae_lab.load_run(folder, "last")
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"vae.{name}" for name in vae.state_dict()} == set(saved)
    assert all(torch.equal(value, saved[f"vae.{name}"]) for name, value in vae.state_dict().items())
    assert loaded.latent_dim == 3
    images = vae.generate(torch.randn(16, 3)).numpy()
    assert images.shape == (16, 1, 8, 8)
    assert 0 <= images.min() <= images.max() <= 1
    assert not vae.training
    with pytest.raises(RunError, match="is not a run folder"):
        vae_lab.load_run(folder / "pictures")


def test_compiled_networks_keep_the_names_of_their_parameters(config):
    plain, compiled = (build(config(f"compile={yes}"), Preemption()).lit for yes in ("false", "true"))
    for lit, is_compiled in ((plain, False), (compiled, True)):
        for network in (lit.vae.encoder, lit.vae.decoder):
            assert (network._compiled_call_impl is not None) == is_compiled
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_the_learning_rate_finder_replaces_the_rate_and_records_it(config):
    cfg = config("find_lr=true", "trainer.limit_train_batches=null")
    train(cfg)
    assert read_result(cfg)["lr"] != cfg.optimizer.lr
    assert not list(Run(cfg.run_dir).folder.glob(".lr_find*"))


def test_bf16_mixed_trains_and_keeps_float32_sums(config):
    cfg = config("trainer.precision=bf16-mixed")
    train(cfg)
    assert read_result(cfg)["val/elbo"] < 0


def test_warm_up_reaches_the_final_weight_in_evaluation_at_once(config):
    cfg = config("loss.warmup_steps=1000")
    train(cfg)
    row = next(row for row in read_metrics(cfg) if "val/loss" in row)
    assert row["val/loss"] == pytest.approx(-row["val/elbo"], rel=1e-5)
    first = next(row for row in read_metrics(cfg) if "train_step/loss" in row)
    assert first["train_step/loss"] == pytest.approx(first["train_step/reconstruction"])  # weight 0 at step 0


@pytest.mark.parametrize("override", ["dataset.val_size=0", "dataset.val_size=1", "dataset.batch_size=100000"])
def test_odd_sizes_train_and_draw(override, config, tmp_path):
    tiny = ["logger=none", "trainer=cpu", "trainer.max_epochs=1", "callbacks.gallery.num_images=4", "latent_dim=3"]
    cfg = config(override, tiny=tiny)
    train(cfg)
    assert (tmp_path / "run" / "pictures" / "latents.png").exists()
    assert read_result(cfg)["steps"] > 0
    assert "train/loss" in read_result(cfg) or "val/loss" in read_result(cfg)


def test_a_run_without_validation_keeps_its_last_weights_as_best(config):
    cfg = config("trainer.limit_val_batches=0")
    train(cfg)
    assert vae_lab.load_run(cfg_folder(cfg)).cfg.latent_dim == 3
    assert "train/loss" in read_result(cfg)


def test_a_monitor_that_is_not_measured_is_refused_with_those_that_are(config):
    with pytest.raises(ValueError, match="must be one of val/active_units, val/clamped, val/elbo, .*got 'val/elb'"):
        train(config("callbacks.checkpoints.monitor=val/elb"))


def test_a_search_for_a_learning_rate_that_ends_too_early_says_so(config):
    with pytest.raises(ValueError, match="find_lr found nothing"):
        train(config("find_lr=true", "trainer.max_epochs=1"))


def test_a_cosine_needs_an_end(config):
    with pytest.raises(ValueError, match="cosine needs an end"):
        train(config("optimizer/schedule=cosine", "trainer.max_epochs=-1", "trainer.max_time=00:00:00:05"))
