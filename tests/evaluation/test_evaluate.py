"""`vae-lab-eval`: the metrics on the test split, from a run folder alone."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from vae_lab import load_run
from vae_lab.compare.runs import find_runs
from vae_lab.errors import DataError, OutOfMemoryError, Preempted, RunError
from vae_lab.evaluation.evaluate import DEFAULTS, evaluate, evaluate_runs
from vae_lab.training.build import build_data
from vae_lab.training.module import LitVAE

KEYS = {f"test/{key}" for key in ("loss", "elbo", "reconstruction", "kl", "mse", "active_units", "clamped")}


def change(run_dir, key, value):
    """Change a setting in the stored config."""
    path = run_dir / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(path)
    OmegaConf.update(cfg, key, value, merge=False)
    path.write_text(OmegaConf.to_yaml(cfg))


def read_result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_test_metrics_are_added_to_the_result(run_dir, capsys):
    before = read_result(run_dir)
    evaluate_runs([f"{run_dir}/"])
    result = read_result(run_dir)
    assert set(result) - set(before) == KEYS | {"test/checkpoint", "test/step"}
    assert {key: result[key] for key in before} == before
    assert result["test/elbo"] == pytest.approx(-result["test/reconstruction"] - result["test/kl"], rel=1e-5)
    assert "test/elbo" in capsys.readouterr().out


def test_values_of_the_last_weights_beside_those_of_the_best_are_told(run_dir, capsys):
    told = "test/ is of the last weights"
    evaluate_runs([str(run_dir), "checkpoint=last"])
    assert told not in capsys.readouterr().out  # which are the best ones here
    path, result = run_dir / "result.json", read_result(run_dir)
    path.write_text(json.dumps({**result, "best_step": 1}))
    assert find_runs([run_dir])[1] == ["test/ is of the last weights, val/ of the best ones: run."]
    evaluate_runs([str(run_dir), "checkpoint=last"])
    assert f"{told} (step 2), val/ of the best ones (step 1)" in capsys.readouterr().out


def test_the_mse_is_that_of_the_posterior_mean_over_the_whole_split(run_dir):
    evaluate_runs([str(run_dir), "batch_size=7"])
    run = load_run(run_dir)
    vae, cfg = run.vae, run.cfg
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


def test_pictures_and_samples_on_demand(run_dir, monkeypatch):
    evaluate_runs([str(run_dir), "pictures=true", "samples=5"])
    for name in ("traversals", "interpolation", "latents", "curves"):
        assert (run_dir / "pictures" / f"{name}.png").exists()
    before = {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()}
    assert len(before) == 5
    monkeypatch.setattr("vae_lab.evaluation.evaluate.CHUNK", 2)  # many are drawn in parts
    evaluate_runs([str(run_dir), "samples=5"])
    assert {path.name: path.read_bytes() for path in (run_dir / "samples").iterdir()} == before
    (run_dir / "samples" / "mine.png").touch()
    evaluate_runs([str(run_dir), "samples=2"])  # those of before are not of this call
    assert {path.name for path in (run_dir / "samples").iterdir()} == {"000000.png", "000001.png", "mine.png"}


def test_more_metrics_and_what_is_left_in_files(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vae_lab.training.classifier.STEPS", 3)
    before = read_result(run_dir)
    files = [f"latents={tmp_path / 'codes.npz'}", f"samples={tmp_path / 'samples.npz'}", "num_samples=5"]
    evaluate_runs([str(run_dir), "metrics=all", "metrics.nll.samples=20", *files, "decode=[[-1, 2.5], [0, 0]]"])
    result = read_result(run_dir)
    more = {key.removeprefix("test/") for key in set(result) - set(before) - KEYS}
    assert {"nll_is20", "fid_digits-cnn_n180", "accuracy_digits-cnn", "psnr", "kl_z0"} <= more
    assert result["test/nll_is20"] < -result["test/elbo"]  # a tighter bound
    with np.load(run_dir / "images_test.npz") as values:
        assert values["nll_is20"].mean() == pytest.approx(result["test/nll_is20"], rel=1e-5)
        assert values["step"] == result["test/step"]
    with np.load(tmp_path / "codes.npz") as found:
        assert found["codes"].shape == (180, 2)
        assert found["labels"].shape == (180, 1)
        assert len(set(found["images"])) == 180
        assert 0.1 < found["scale_factor"] < 10
    with np.load(tmp_path / "samples.npz") as found:
        assert found["arr_0"].shape == (5, 8, 8, 1)
        assert found["arr_0"].dtype == np.uint8
        assert found["latents"].shape == (5, 2)
    assert (run_dir / "pictures" / "decoded.png").exists()
    # The classifier is read again, not trained; options are named one by one; the values of earlier calls are kept.
    monkeypatch.setattr("vae_lab.training.classifier.STEPS", None)
    evaluate_runs([str(run_dir), "metrics=samples,nll", "metrics.nll.samples=3", "decode=4"])
    again = read_result(run_dir)
    assert again["test/fid_digits-cnn_n180"] == result["test/fid_digits-cnn_n180"]
    with np.load(run_dir / "images_test.npz") as values:
        assert {"nll_is20", "nll_is3"} <= set(values)
    for wrong, message in (
        ("metrics=fid", "metrics must be all or some of default, .*, got fid"),
        ("metrics.nll.samples=5", "there is no metrics.nll.samples; the metrics are terms, "),
        ("decode=[[1, 2, 3]]", "decode must be 1 to 1000 points of 2 finite numbers"),
        ("decode=none.npz", "decode=none.npz cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_runs([str(run_dir), wrong])
    with pytest.raises(ValueError, match="samples=s.npz is one file, for one run, got 2"):
        evaluate_runs([str(run_dir), str(run_dir), "samples=s.npz"])


@pytest.mark.parametrize(
    "override",
    [
        *("split=all", "checkpoint=first", "batch_size=0", "samples=-1"),
        *("samples=[1", "pictures=1", "data_root=", "batch_size=!!python/name:os.system"),
        *("accelerator=tpu", "accelerator=[1]", "sampler=flow"),
    ],
)
def test_wrong_settings_are_refused_by_name(override):
    with pytest.raises(ValueError, match=override.split("=")[0]) as caught:
        evaluate_runs(["run", override])
    assert len(str(caught.value).splitlines()) == 1


def test_without_arguments_it_says_what_is_missing():
    with pytest.raises(ValueError, match="no run folder given"):
        evaluate_runs([])


def test_a_stranger_does_not_choose_the_number_of_workers(run_dir):
    change(run_dir, "dataset.num_workers", 10**6)  # processes
    evaluate_runs([str(run_dir)])
    assert "test/elbo" in read_result(run_dir)


def test_other_images_are_refused(run_dir):
    change(run_dir, "dataset.split_seed", 1)  # as if the folder now held other pictures
    with pytest.raises(DataError, match="not those that the run was trained on"):
        evaluate_runs([str(run_dir)])


# A stored config may be a stranger's

ELBO = {"kld_weight": 1.0, "warmup_steps": 0, "free_bits": 0.0}

ODD_CONFIGS = {
    "seed": ["abc", 1.5, None, -1, True, [0]],
    "dataset.source": [[], None, "x", {"_target_": "vae_lab.objectives.elbo.ELBO"} | ELBO],
    "dataset.source._target_": ["vae_lab.models.posteriors.Gaussian", "vae_lab.data.image_folder.ImageFolder"],
    "dataset.source._partial_": [True],
    "dataset.flip": ["abc"],
    "dataset.val_size": [[]],
    "dataset": [[], None, 1],
    "objective": [[], None, 5, {"_target_": "vae_lab.models.posteriors.Gaussian"}],
    "objective._partial_": [True],
    "objective.kld_weight": ["abc", []],
}


@pytest.mark.fault
@pytest.mark.parametrize("key", ODD_CONFIGS)
def test_a3_an_odd_value_in_a_stored_config_is_one_line(key, run_dir):
    path = run_dir / ".hydra" / "config.yaml"
    before = path.read_text()
    for value in ODD_CONFIGS[key]:
        path.write_text(before)
        change(run_dir, key, value)
        with pytest.raises(ValueError, match=r"\A.+\Z") as caught:
            evaluate_runs([str(run_dir)])
        assert not isinstance(caught.value.__cause__, AssertionError)
        assert "test/elbo" not in read_result(run_dir)


@pytest.mark.fault
def test_f5_out_of_memory_names_the_batch_size(run_dir, monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    monkeypatch.setattr(LitVAE, "test_step", fail)
    with pytest.raises(OutOfMemoryError, match=r"\Aout of memory \(.+\): lower batch_size=77") as caught:
        evaluate_runs([str(run_dir), "batch_size=77"])
    assert caught.value.exit_code == 1


@pytest.mark.fault
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_c6_a_signal_stops_the_evaluation_and_says_so(number, run_dir, monkeypatch, capsys):
    before = read_result(run_dir)
    monkeypatch.setattr(LitVAE, "test_step", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(Preempted) as caught:
        evaluate_runs([str(run_dir)])
    assert caught.value.code == 128 + number
    assert capsys.readouterr().err.startswith(f"vae-lab: {number.name} stopped the evaluation of {run_dir}")
    assert read_result(run_dir) == before


@pytest.mark.fault
def test_h2_samples_that_cannot_be_written_are_named(run_dir):
    (run_dir / "samples").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*samples: File exists; move .*samples away"):
        evaluate_runs([str(run_dir), "samples=2"])


@pytest.mark.fault
def test_c8_damaged_metrics_keep_no_picture_from_being_drawn(run_dir, caplog):
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write("gar\n5\n")
    evaluate_runs([str(run_dir), "pictures=true"])
    assert "lines are damaged" in caplog.text
    assert (run_dir / "pictures" / "curves.png").exists()
