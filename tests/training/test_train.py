"""Training end to end, in process: what is recorded is what happened."""

import json
from pathlib import Path

import pytest
import torch

import vae_lab
from vae_lab.errors import RunError
from vae_lab.evaluation.gallery import Gallery
from vae_lab.loggers.wandb import WandbLogger
from vae_lab.objectives.elbo import ELBO
from vae_lab.runs.folder import RunFolder
from vae_lab.runs.measurements import parameters_sha256
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build
from vae_lab.training.train import train

KEYS = {"loss", "elbo", "reconstruction", "kl", "mse", "active_units", "clamped"}
GALLERY = (
    "callbacks.gallery={_target_:vae_lab.evaluation.gallery.Gallery,num_images:4,every_n_epochs:1,"
    "scatter_every_n_steps:null,scatter_until_step:0}"
)


def read_result(cfg) -> dict:
    return json.loads((Path(cfg.run_dir) / "result.json").read_text())


def read_metrics(cfg) -> list[dict]:
    return [json.loads(line) for line in (Path(cfg.run_dir) / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_whole_folder(config):
    cfg = config(GALLERY)
    best_value, folder = train(cfg), Path(cfg.run_dir)
    files = ("status.json", "metrics.jsonl", "result.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    for name in (*files, "pictures/training.gif", "pictures/curves.png"):
        assert (folder / name).stat().st_size > 0, name
    assert (folder / "train.log").exists()
    assert not list(folder.rglob("*.tmp.*"))
    result, status = read_result(cfg), RunFolder(folder).status
    assert {f"val/{key}" for key in KEYS} <= set(result)
    assert result["best_value"] == best_value == result["val/loss"]
    assert (result["steps"], result["epochs"]) == (6, 2)
    assert status["state"] == "completed"
    assert set(status["times"][0]) == {"started", "ended", "command", "commit", "host", "hardware"}
    hardware = status["times"][0]["hardware"]
    assert hardware["cpu"]
    assert hardware["cores"] >= 1
    assert hardware["memory_gb"] >= 1
    assert isinstance(hardware["gpus"], list)
    assert status["versions"]["torch"] == torch.__version__

    run = vae_lab.load_run(folder, "last")
    vae, loaded = run.vae, run.cfg
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"vae.{name}" for name in vae.state_dict()} == set(saved)
    assert all(torch.equal(value, saved[f"vae.{name}"]) for name, value in vae.state_dict().items())
    assert (loaded.latent_dim, vae.training) == (3, False)
    images = vae.generate(torch.randn(16, 3)).numpy()
    assert images.shape == (16, 1, 8, 8)
    assert 0 <= images.min() <= images.max() <= 1
    with pytest.raises(RunError, match="is not a run folder"):
        vae_lab.load_run(folder / "pictures")


def test_metrics_have_steps_and_the_identities_hold(config):
    cfg = config("loss.KLD_weight=3", "loss.warmup_steps=1000")
    train(cfg)
    rows = read_metrics(cfg)
    validation = [row for row in rows if "val/loss" in row]
    assert [(row["step"], row["epoch"]) for row in validation] == [(3, 1), (6, 2)]
    for row in validation:
        # Means of float32 sums over images: equal up to their rounding. Evaluation knows no warm-up.
        assert row["val/elbo"] == pytest.approx(-row["val/reconstruction"] - row["val/kl"], rel=1e-5)
        assert row["val/loss"] == pytest.approx(row["val/reconstruction"] + 3 * row["val/kl"], rel=1e-5)
        assert row["val/mse"] > 0
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == [3, 6]
    assert {"train/loss", "train/elbo", "train/reconstruction", "train/kl"} <= set(training[0])
    first = next(row for row in rows if "train_step/loss" in row)
    assert first["train_step/loss"] == pytest.approx(first["train_step/reconstruction"])  # weight 0 at step 0


def test_the_validation_loss_does_not_depend_on_the_batch_size(config):
    """A plain autoencoder draws no noise, so its validation mean must be the same however it is batched."""
    losses = []
    for size in (7, 180):
        everything = ["trainer.limit_val_batches=1.0", "callbacks.checkpoints=null"]
        cfg = config("posterior=deterministic", f"dataset.batch_size={size}", *everything, run_dir=f"batch_{size}")
        experiment = build(cfg, Preemption())
        Path(cfg.run_dir).mkdir(exist_ok=True)
        experiment.trainer.validate(experiment.lit, experiment.data, verbose=False)
        losses.append(float(experiment.trainer.callback_metrics["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # float32 sums in another order


def test_best_is_kept_when_later_epochs_are_worse(config, monkeypatch):
    original = ELBO.forward

    def worse_later(self, vae, batch, context):
        terms = original(self, vae, batch, context)
        is_later = context.stage == "val" and context.step > 3
        return terms | {"loss": terms["loss"] + 1000} if is_later else terms

    monkeypatch.setattr(ELBO, "forward", worse_later)
    cfg = config()
    train(cfg)
    assert (read_result(cfg)["best_step"], read_result(cfg)["best_epoch"]) == (3, 1)
    best, last = (vae_lab.load_run(cfg.run_dir, name).vae for name in ("best", "last"))
    assert parameters_sha256(best) != parameters_sha256(last)


def test_a_limit_of_time_that_has_passed_is_refused_and_the_same_one_is_not(config):
    cfg = config("trainer.max_time=00:00:10:00")
    train(cfg)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    cfg.trainer.max_time = "00:00:00:00"
    with pytest.raises(
        ValueError, match="trainer.max_time must be >= 1 s, which this run took so far, got 00:00:00:00"
    ):
        train(cfg)
    cfg.trainer.max_time = "00:00:10:00"
    train(cfg)
    assert read_result(cfg)["epochs"] == 3


def test_a_tracker_forgets_the_end_of_a_run_that_goes_on(config, monkeypatch):
    told = []
    monkeypatch.setattr(WandbLogger, "_tell", lambda self, order, value: told.append((order, value)))
    cfg = config("logger=wandb")
    train(cfg)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    train(cfg)
    first, void, last = (value for order, value in told if order == "summary" and value)
    assert void == dict.fromkeys(first)
    assert (first["best_epoch"], last["best_epoch"]) == (2, 3)


@pytest.mark.parametrize("overrides", [pytest.param([], marks=pytest.mark.slow), ["trainer.max_steps=2"]])
def test_a_run_killed_while_its_last_pictures_are_drawn_is_ended_by_its_continuation(overrides, config, monkeypatch):
    cfg = config(GALLERY, *overrides)
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "on_run_end", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(cfg)
    interrupted = read_metrics(cfg)
    cfg.resume = cfg.run_dir
    train(cfg)
    folder, result = Path(cfg.run_dir), read_result(cfg)
    assert (result["best_step"], result["epochs"], result["best_epoch"]) == ((2, 1, 1) if overrides else (6, 2, 2))
    assert [row["epoch"] for row in read_metrics(cfg)] == [row["epoch"] for row in interrupted]
    for name in ("checkpoints/best.ckpt", "pictures/training.gif", "pictures/curves.png"):
        assert (folder / name).exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_another_seed_another(config):
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        cfg = config(f"seed={seed}", "trainer.max_epochs=1", run_dir=f"run{number}")
        train(cfg)
        hashes.append(read_result(cfg)["parameters_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_the_learning_rate_finder_replaces_the_rate_and_records_it(config):
    cfg = config("find_lr=true", "trainer.limit_train_batches=null", "trainer.gradient_clip_val=1.0")
    train(cfg)
    assert read_result(cfg)["lr"] != cfg.optimizer.lr
    assert not list(Path(cfg.run_dir).glob(".lr_find*"))


def test_a_search_for_a_learning_rate_that_ends_too_early_says_so(config):
    with pytest.raises(ValueError, match="find_lr found nothing"):
        train(config("find_lr=true", "trainer.max_epochs=1"))


def test_bf16_clips_with_a_fused_optimizer(config):
    cfg = config("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0", "trainer.max_epochs=1")
    train(cfg)
    assert read_result(cfg)["val/elbo"] < 0


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["dataset.val_size=0"], ["dataset.val_size=1", "dataset.batch_size=100000"]])
def test_odd_sizes_train_and_draw(overrides, config):
    tiny = ["logger=none", "trainer=cpu", "trainer.max_epochs=1", "callbacks.gallery.num_images=4", "latent_dim=3"]
    cfg = config(*overrides, tiny=tiny)
    train(cfg)
    assert (Path(cfg.run_dir) / "pictures" / "latents.png").exists()
    assert read_result(cfg)["steps"] > 0
    assert ("val/loss" if len(overrides) > 1 else "train/loss") in read_result(cfg)
    assert vae_lab.load_run(cfg.run_dir).cfg.latent_dim == 3  # the last weights, where there is no best validation
