"""A model that is exported and read back is the same model, and its files say nothing about the machine."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from omegaconf import OmegaConf

import vae_lab
from vae_lab.__main__ import CONF
from vae_lab.config.nested import leaves
from vae_lab.config.roles import PLACES
from vae_lab.errors import NumericsError, RunError
from vae_lab.evaluation.evaluate import evaluate_runs
from vae_lab.runs.export import export_run
from vae_lab.runs.measurements import parameters_sha256
from vae_lab.training.train import train


@pytest.fixture
def make_run(config, trained, tmp_path):
    """Train a tiny experiment; returns its folder, for any change."""

    def make(*overrides: str, **options) -> Path:
        if not overrides:
            return Path(shutil.copytree(trained, tmp_path / "run"))
        cfg = config(*overrides, **options)
        train(cfg)
        return Path(cfg.run_dir)

    return make


def read(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def change_weights(path: Path, by: float = 1) -> None:
    """Give a checkpoint other weights, without touching the files that are other names of it."""
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {name: value + by for name, value in content["state_dict"].items()}
    path.unlink()
    torch.save(content, path)


@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_the_same_weights_come_back(model, make_run, capsys):
    tiny = ["logger=none", "callbacks.gallery=null", "callbacks.summary=null", "trainer=cpu", "trainer.max_steps=2"]
    run_dir = make_run(f"model={model}", *([] if model == "mlp" else ["model.channels=[4,4]"]), tiny=tiny)
    export_run([str(run_dir)])
    printed = capsys.readouterr().out
    folder = run_dir / "export"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert str(folder / "model.safetensors") in printed
    assert str(folder / "config.json") in printed
    (vae, cfg), (shared, shared_cfg) = ((r.vae, r.cfg) for r in map(vae_lab.load_run, (run_dir, folder)))
    assert parameters_sha256(shared) == parameters_sha256(vae) == read(folder)["parameters_sha256"]
    assert not shared.training
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    assert shared_cfg.latent_dim == cfg.latent_dim
    x = torch.rand(5, *vae.image_shape)
    assert torch.equal(shared.reconstruct(x), vae.reconstruct(x))


def test_the_export_is_evaluated_as_the_run_is(make_run):
    run_dir = make_run("loss.KLD_weight=2", "dataset.binarize=threshold")
    evaluate_runs([str(run_dir)])
    export_run([str(run_dir)])
    evaluate_runs([str(run_dir / "export")])
    run, shared = (json.loads((folder / "result.json").read_text()) for folder in (run_dir, run_dir / "export"))
    assert shared["test/checkpoint"] == "best"
    assert {key: run[key] for key in shared} == shared
    metrics = read(run_dir / "export")["metrics"]
    assert metrics["test/elbo"] == run["test/elbo"]
    assert metrics["val/loss"] == run["val/loss"]


def test_numbers_do_not_outlive_their_weights(make_run, config):
    run_dir = make_run("seed=0")
    export_run([str(run_dir)])
    evaluate_runs([str(run_dir), str(run_dir / "export")])
    first = json.loads((run_dir / "result.json").read_text())
    assert (first["test/checkpoint"], first["test/step"]) == ("best", first["best_step"])

    train(config("trainer.max_epochs=3", f"resume={run_dir}"))
    result = json.loads((run_dir / "result.json").read_text())
    assert result["best_step"] > first["best_step"]  # else this test tests nothing
    assert not [key for key in result if key.startswith("test/")]
    assert result["parameters_sha256"] == parameters_sha256(vae_lab.load_run(run_dir, "last").vae)
    export_run([str(run_dir)])
    shared = read(run_dir / "export")
    assert not (run_dir / "export" / "result.json").exists()
    assert not [key for key in shared["metrics"] if key.startswith("test/")]
    assert shared["epoch"] == shared["metrics"]["best_epoch"] == result["best_epoch"] == 3
    assert shared["parameters_sha256"] == result["parameters_sha256"]  # the last weights are the best ones

    evaluate_runs([str(run_dir)])
    (run_dir / "result.json").write_text(json.dumps(first))  # as if the continuation had been killed
    export_run([str(run_dir)])
    assert read(run_dir / "export")["metrics"] == {}
    evaluate_runs([str(run_dir)])
    result = json.loads((run_dir / "result.json").read_text())
    assert result["test/step"] > first["test/step"]
    assert not [key for key in result if key.startswith(("val/", "best_"))]


def test_the_images_of_an_export_are_where_its_reader_says(make_run, data_root, tmp_path, capsys):
    (tmp_path / "MNIST").symlink_to(data_root / "MNIST")
    run_dir = make_run("dataset=mnist", f"data_root={tmp_path}", "trainer.max_steps=2", "dataset.val_size=16")
    export_run([str(run_dir)])
    assert "left out  dataset.root, dataset.source.root" in capsys.readouterr().out
    assert read(run_dir / "export")["config"]["dataset"]["source"]["root"] is None
    evaluate_runs([str(run_dir / "export"), f"data_root={tmp_path}", "split=val"])
    assert "val/elbo" in capsys.readouterr().out


def test_a_checkpoint_is_chosen(make_run):
    run_dir = make_run()
    change_weights(run_dir / "checkpoints" / "last.ckpt")
    hashes = {}
    for name in ("best", "last"):
        export_run([str(run_dir), f"checkpoint={name}", f"out={run_dir / name}"])
        hashes[name] = parameters_sha256(vae_lab.load_run(run_dir / name).vae)
        assert hashes[name] == parameters_sha256(vae_lab.load_run(run_dir, name).vae)
        assert read(run_dir / name)["checkpoint"] == name
    assert hashes["best"] != hashes["last"]
    # The result is that of the best checkpoint.
    assert "val/loss" in read(run_dir / "best")["metrics"]
    assert not any(key.startswith(("val/", "best_")) for key in read(run_dir / "last")["metrics"])
    with pytest.raises(RunError, match="holds the best checkpoint, not the last one"):
        vae_lab.load_run(run_dir / "best", "last")


def test_the_places_and_secrets_of_a_machine_are_not_in_the_files(make_run, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_API_KEY", "a-planted-secret")
    monkeypatch.setenv("MY_WORDS", "words")
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path / "pictures"))
    run_dir = make_run()
    cfg = OmegaConf.load(run_dir / ".hydra" / "config.yaml")
    cfg.dataset.update({"root": "${data_root}", "secret": "${oc.env:MY_API_KEY}", "url": "https://me:hunter2@host"})
    cfg.dataset.words = "${oc.env:MY_WORDS}"
    OmegaConf.save(cfg, run_dir / ".hydra" / "config.yaml")
    export_run([str(run_dir)])
    for path in (run_dir / "export").iterdir():
        content = path.read_bytes().decode(errors="replace")
        for text in (str(tmp_path), "hunter2", "a-planted", "oc.env", os.uname().nodename):
            assert text not in content, (path, text)
    dataset = read(run_dir / "export")["config"]["dataset"]
    assert (dataset["root"], dataset["words"]) == (None, "words")
    assert not {"optimizer", "trainer", "callbacks", "logger", "run_dir", "data_root"} & set(
        read(run_dir / "export")["config"]
    )
    assert vae_lab.load_run(run_dir / "export").cfg.dataset.root == str(tmp_path / "pictures")


def test_an_export_is_written_anew_but_over_no_other_files(make_run, tmp_path):
    run_dir = make_run()
    export_run([str(run_dir)])
    before = {path.name: path.read_bytes() for path in (run_dir / "export").iterdir()}
    (run_dir / "export" / "encoder.onnx").write_text("of the weights that lay here")
    export_run([str(run_dir)])
    assert {path.name: path.read_bytes() for path in (run_dir / "export").iterdir()} == before
    for name in ("config.json", "model.safetensors", "decoder.onnx"):
        other = tmp_path / f"with_{name}"
        other.mkdir()
        (other / name).write_text('{"architectures": ["Other"]}')
        with pytest.raises(RunError, match="choose another folder with out=DIR"):
            export_run([str(run_dir), f"out={other}"])
        assert [path.read_text() for path in other.iterdir()] == ['{"architectures": ["Other"]}']
    with pytest.raises(RunError, match="is a run folder; choose another folder with out=DIR"):
        export_run([str(run_dir), f"out={run_dir}"])
    assert (run_dir / "result.json").is_file()


def test_an_export_that_was_interrupted_between_its_files_is_not_read(make_run, monkeypatch):
    run_dir = make_run()
    export_run([str(run_dir)])
    change_weights(run_dir / "checkpoints" / "best.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr("vae_lab.runs.export.write_json", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_run([str(run_dir)])
    with pytest.raises(RunError, match="its weights are not those that were exported"):
        vae_lab.load_run(run_dir / "export")
    export_run([str(run_dir)])
    vae_lab.load_run(run_dir / "export")


def test_the_places_of_an_export_are_the_defaults_of_the_config():
    places = {"data_root": OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))["data_root"]}
    for name in ("image_folder", "mnist"):  # the cache is of the first, the root of the second has a default
        places |= leaves({"dataset": OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{name}.yaml"))})
    assert {key: places[key] for key in PLACES} == PLACES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one run folder, got 0"),
        (["a", "b"], "expected one run folder, got 2"),
        (["a", "checkpoint=first"], "checkpoint must be best, last or one that was kept, as epoch_0010, got 'first'"),
        (["a", "out="], "out is empty"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        export_run(arguments)


def test_what_is_no_run_is_refused(tmp_path, make_run):
    with pytest.raises(RunError, match="is not a run folder"):
        export_run([str(tmp_path / "nowhere")])
    run_dir = make_run()
    export_run([str(run_dir)])
    with pytest.raises(RunError, match="is an export already"):
        export_run([str(run_dir / "export")])
    (run_dir / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(RunError, match="no checkpoint at"):
        export_run([str(run_dir), "checkpoint=last"])


@pytest.mark.fault
def test_f1_weights_that_are_not_finite_are_not_exported(make_run):
    run_dir = make_run()
    change_weights(run_dir / "checkpoints" / "best.ckpt", by=float("nan"))
    with pytest.raises(NumericsError, match=r"best\.ckpt is not worth an export: \S+ is not finite"):
        export_run([str(run_dir)])
    assert not (run_dir / "export").exists()
