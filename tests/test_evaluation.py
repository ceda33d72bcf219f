"""`vae-lab-eval`: the metrics on the test split, from a run folder alone."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from vae_lab.build import build_data
from vae_lab.errors import DataError, RunError
from vae_lab.evaluation import DEFAULTS, evaluate, evaluate_runs
from vae_lab.train import train
from vae_lab.trained import load_run

KEYS = {f"test/{key}" for key in ("loss", "elbo", "reconstruction", "kl", "mse", "active_units", "clamped")}


@pytest.fixture
def run_dir(config, tmp_path):
    train(config("trainer.limit_val_batches=1.0"))
    return tmp_path / "run"


def read_result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_test_metrics_are_added_to_the_result(run_dir, capsys):
    before = read_result(run_dir)
    evaluate_runs([f"{run_dir}/"])
    result = read_result(run_dir)
    assert set(result) - set(before) == KEYS | {"test/checkpoint"}
    assert {key: result[key] for key in before} == before
    assert result["test/elbo"] == pytest.approx(-result["test/reconstruction"] - result["test/kl"], rel=1e-5)
    assert "test/elbo" in capsys.readouterr().out


def test_the_mse_is_that_of_the_posterior_mean_over_the_whole_split(run_dir):
    evaluate_runs([str(run_dir), "batch_size=7"])
    vae, cfg = load_run(run_dir)
    data = build_data(cfg)
    data.setup("test")
    x, _ = data.examples("test", 10**6)
    assert len(x) == 180
    with torch.no_grad():
        mse = (vae.reconstruct(x) - x).square().mean()
    # Another order of float32 sums.
    assert read_result(run_dir)["test/mse"] == pytest.approx(float(mse), rel=1e-5)


def test_best_and_last_validation_agree_with_training(run_dir):
    """The evaluation of the best checkpoint, batched as in training, gives the numbers of the best validation."""
    before = read_result(run_dir)
    settings = {**DEFAULTS, "split": "val", "batch_size": 16}
    assert evaluate(run_dir, settings)["val/loss"] == pytest.approx(before["best_value"])
    evaluate_runs([str(run_dir), "split=val"])
    assert read_result(run_dir) == before


def test_pictures_and_samples_on_demand(run_dir):
    evaluate_runs([str(run_dir), "pictures=true", "samples=3"])
    assert len(list((run_dir / "samples").glob("*.png"))) == 3
    for name in ("traversals", "interpolation", "latents", "curves"):
        assert (run_dir / "pictures" / f"{name}.png").exists()


@pytest.mark.parametrize(
    "override",
    [
        *("split=all", "split=", "checkpoint=first", "batch_size=0", "batch_size=1e3", "batch_size=true", "samples=-1"),
        *("samples=[1", "pictures=perhaps", "pictures=1", "data_root=", "batch_size=!!python/name:os.system"),
        *("accelerator=tpu", "accelerator=[1]"),
    ],
)
def test_wrong_settings_are_refused_by_name(override):
    with pytest.raises(ValueError, match=override.split("=")[0]) as caught:
        evaluate_runs(["run", override])
    assert len(str(caught.value).splitlines()) == 1


def test_a_stranger_does_not_choose_the_number_of_workers(run_dir):
    cfg = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    cfg.dataset.num_workers = 10**6  # processes
    OmegaConf.save(cfg, run_dir / ".hydra" / "config.yaml")
    evaluate_runs([str(run_dir)])
    assert "test/elbo" in read_result(run_dir)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        evaluate_runs([str(tmp_path)])
    with pytest.raises(RunError, match="metric=fid is not a run folder"):
        evaluate_runs(["metric=fid"])


def test_without_arguments_it_says_how_to_be_used(capsys):
    with pytest.raises(ValueError, match="no run folder given"):
        evaluate_runs([])
    evaluate_runs(["--help"])
    assert "split=test" in capsys.readouterr().out


def test_other_images_are_refused(run_dir):
    cfg = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    cfg.dataset.split_seed = 1  # as if the folder now held other pictures
    OmegaConf.save(cfg, run_dir / ".hydra" / "config.yaml")
    with pytest.raises(DataError, match="not those that the run was trained on"):
        evaluate_runs([str(run_dir)])
