"""A run that was killed anywhere and resumed ends with the same parameters and the same metrics as one that was not."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from command import EVERYTHING, record, status
from forks import Killed, train_until
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vae_lab.__main__ import CONF, main
from vae_lab.config.explain import quote
from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import load_checkpoint
from vae_lab.runs.files import durable_link
from vae_lab.runs.folder import RunFolder
from vae_lab.runs.resume import SAVED, continues_run, resume_arguments
from vae_lab.training.progress import Progress
from vae_lab.training.train import train

LONGER = [*EVERYTHING, "trainer.limit_train_batches=12", "trainer.log_every_n_steps=5"]
LONGER += ["optimizer.schedule.warmup_steps=5"]
VARIANTS = {
    "workers, step schedule": ["dataset.num_workers=2", "optimizer/schedule=step", "optimizer.schedule.step_size=7"],
    "accumulated, averaged": ["trainer.accumulate_grad_batches=5", "callbacks=ema", "callbacks.ema.decay=0.9"],
    "validated within epochs": ["trainer.val_check_interval=5", "callbacks=early_stopping"],
    "validated every other epoch": ["trainer.check_val_every_n_epoch=2", "trainer.precision=bf16-mixed"],
}


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_kills_change_nothing(variant, config, monkeypatch):
    overrides = VARIANTS[variant]
    cfg = config(*overrides, tiny=LONGER, run_dir="undisturbed")
    train(cfg)
    undisturbed = record(RunFolder(cfg.run_dir).folder)
    # Within an epoch; in validation; in the last epoch. ../faults/test_kills.py has more moments.
    for evaluation in (6, 13, 25):
        folder = f"killed_at_{evaluation}"
        cfg = config(*overrides, tiny=LONGER, run_dir=folder)
        train_until(evaluation, cfg, monkeypatch)
        cfg.resume = cfg.run_dir
        train(cfg)
        assert record(RunFolder(cfg.run_dir).folder) == undisturbed, evaluation


@pytest.mark.slow
def test_an_interrupted_extension_goes_on_by_itself(config, monkeypatch):
    cfg = config("trainer.max_epochs=1", tiny=LONGER)
    train(cfg)
    folder = RunFolder(cfg.run_dir).folder
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    train_until(5, cfg, monkeypatch)
    saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert saved.trainer.max_epochs == 3
    assert saved.resume is None
    train(cfg)
    assert json.loads((folder / "result.json").read_text())["epochs"] == 3


def test_a_run_cannot_go_back(config):
    cfg = config()
    train(cfg)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 1
    with pytest.raises(ValueError, match="trainer.max_epochs must be >= 2, where this run is already, got 1"):
        train(cfg)
    assert RunFolder(cfg.run_dir).status["state"] == "completed"


def test_the_best_checkpoint_of_a_run_that_stopped_within_an_epoch_is_remembered(config):
    cfg = config("trainer.limit_train_batches=12", "trainer.max_steps=14")
    train(cfg)
    folder = RunFolder(cfg.run_dir).folder
    best = json.loads((folder / "result.json").read_text())["best_step"]
    state = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    (kept,) = [value["best"] for key, value in state["callbacks"].items() if key.startswith("Checkpoints")]
    assert kept["step"] == best == 14


KEPT = ["trainer.max_epochs=4", "callbacks.checkpoints.keep=2", "callbacks.checkpoints.monitor=val/mse"]


def test_what_is_kept_is_kept_through_kills_and_extensions(config, monkeypatch):
    def kept(folder: str) -> dict:
        paths = sorted((Path(config(run_dir=folder).run_dir) / "checkpoints").glob("epoch_*"))
        return {path.name: load_checkpoint(path)["state_dict"]["vae.decoder.0.bias"].tolist() for path in paths}

    train(config(*KEPT, run_dir="undisturbed"))
    undisturbed = kept("undisturbed")
    assert list(undisturbed) == ["epoch_0003.ckpt", "epoch_0004.ckpt"]

    def disappear(source, target):
        if target.name == "epoch_0004.ckpt":
            raise Killed
        durable_link(source, target)

    for end, deadly in ((3, durable_link), (4, disappear)):
        cfg = config(*KEPT, f"trainer.max_epochs={end}", run_dir=f"ended_at_{end}")
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr("vae_lab.runs.checkpoints.durable_link", deadly)
            train(cfg)
        cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 4
        train(cfg)
        assert kept(f"ended_at_{end}") == undisturbed

    path = Path(cfg.run_dir) / "checkpoints" / "last.ckpt"
    content = load_checkpoint(path)
    (state,) = (state for name, state in content["callbacks"].items() if "Checkpoints" in name)
    state["kept"] = {"../../x": 0.0}
    path.unlink()
    torch.save(content, path)
    cfg.trainer.max_epochs = 5
    with pytest.raises(RunError, match=r"cannot be continued from: callbacks\.Checkpoints\.kept\.0 must be 0"):
        train(cfg)


def test_a_signal_while_the_last_pictures_are_drawn_is_not_lost(config, monkeypatch):
    monkeypatch.setattr(Progress, "on_train_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    cfg = config("callbacks.progress={_target_:vae_lab.training.progress.Progress}")
    with pytest.raises(SystemExit) as stopped:
        train(cfg)
    assert stopped.value.code == 143
    assert RunFolder(cfg.run_dir).status["state"] == "preempted"


@pytest.mark.fault
def test_c11_resuming_a_completed_run_does_nothing_and_says_so(config, capsys):
    cfg = config()
    train(cfg)
    before = {path: path.stat().st_mtime_ns for path in Path(cfg.run_dir).rglob("*")}
    capsys.readouterr()
    for resume in (cfg.run_dir, "auto"):
        cfg.resume = resume
        train(cfg)
        assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(cfg.run_dir).rglob("*")} == before


@pytest.mark.fault
def test_c9_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"missing is not a run folder: there is no"):
        resume_arguments([f"resume={tmp_path / 'missing'}"], CONF)
    with pytest.raises(ValueError, match="resume=auto needs the run's folder"):
        resume_arguments(["resume=auto"], CONF)


@pytest.mark.slow
@pytest.mark.fault
def test_c9_auto_starts_where_there_is_nothing_and_says_so_and_goes_on_where_there_is(
    config, monkeypatch, capsys, caplog
):
    cfg = config("resume=auto", tiny=LONGER, run_dir="auto")
    train_until(20, cfg, monkeypatch)
    assert "no checkpoint yet: starting from the beginning" in caplog.text
    caplog.clear()
    train(config("resume=auto", tiny=LONGER, run_dir="auto"))
    assert "starting from the beginning" not in caplog.text
    undisturbed = config(tiny=LONGER, run_dir="undisturbed")
    train(undisturbed)
    assert record(Path(cfg.run_dir)) == record(Path(undisturbed.run_dir))
    train(config("resume=auto", tiny=LONGER, run_dir="auto"))
    assert "already complete" in capsys.readouterr().out


def test_a_run_that_failed_before_its_first_checkpoint_is_in_nobodys_way(config):
    with pytest.raises(ValueError, match="loss.KLD_weight"):
        train(config("loss.KLD_weight=-1"))
    cfg = config()
    train(cfg)
    assert status(Path(cfg.run_dir))["state"] == "completed"


DIFFERENT = {
    "model.hidden_dims=[3]": r"model.hidden_dims was \[8\] and would be \[3\]",
    "loss.KLD_weight=2": "loss.KLD_weight was 1.0 and would be 2",
    "seed=1": "seed was 0 and would be 1",
    "trainer.precision=bf16-mixed": "trainer.precision was 32-true and would be bf16-mixed",
    "dataset.flip=false": "dataset.flip was True and would be False",
    "optimizer.lr=1": "optimizer.lr was 0.001 and would be 1",
}


@pytest.mark.fault
def test_c10_resuming_refuses_what_would_change_the_result_and_allows_the_rest(config, tmp_path):
    cfg = config(f"resume={tmp_path / 'run'}", tiny=LONGER)
    RunFolder(cfg.run_dir).write_config(config=cfg)

    def changed(*settings: str):
        other = cfg.copy()
        for key, _, value in (setting.partition("=") for setting in settings):
            OmegaConf.update(other, key, yaml.safe_load(value), force_add=True)
        return other

    refused = [(changed(setting), difference) for setting, difference in DIFFERENT.items()]
    refused.append((changed("dataset.flip=false", "loss.KLD_weight=2"), "dataset.flip was .*loss.KLD_weight was "))
    other_loss = r"loss.likelihood._target_ was \S+likelihoods.Bernoulli and would be \S+likelihoods.Gaussian"
    refused.append((config("loss=mse", f"resume={cfg.run_dir}", tiny=LONGER), other_loss))
    for other, difference in refused:
        with pytest.raises(ValueError, match=f"cannot continue with other settings: {difference}.*; only these may"):
            continues_run(other)
    for setting in ("trainer.max_epochs=9", "dataset.num_workers=2", "logger={csv: {}}", "callbacks.gallery={}"):
        assert continues_run(changed(setting))
    folder = f"resume={cfg.run_dir}"
    with pytest.raises(ValueError, match="model cannot change when a run continues"):
        resume_arguments([folder, "model=conv"], CONF)
    arguments = resume_arguments([folder, "trainer.max_epochs=9", "logger=csv"], CONF)
    assert "trainer.max_epochs=9" in arguments
    assert "csv" in ConfigStore.instance().load(f"{SAVED}.yaml").node.logger


def test_a_damaged_config_or_status_is_named(config):
    cfg = config(tiny=LONGER)
    folder = Path(cfg.run_dir)
    RunFolder(folder).write_config(config=cfg)
    cfg.resume = cfg.run_dir
    for name, content in (("status.json", '{"state": "comp'), (".hydra/config.yaml", "a: [1")):
        (folder / name).write_text(content)
        with pytest.raises(RunError, match=f"{name} is damaged"):
            train(cfg)


def test_a_folder_with_an_odd_name_is_resumed(config, monkeypatch):
    cfg, name = config("trainer.max_epochs=1"), "it's a,b=größe"
    parent = Path(cfg.run_dir).parent
    cfg.run_dir = str(parent / name)
    train(cfg)
    monkeypatch.chdir(parent)
    monkeypatch.setattr(sys, "argv", ["vae-lab", f"resume={name}", "trainer.max_epochs=2", "logger=csv"])
    main()
    assert (parent / name / "csv" / "metrics.csv").exists()


ODD_NAMES = [
    *("it's", "end\\", "end\\\\", "back\\slash", "\\'", "\\\\'x", "new\nline", "end\\\n", "a b,c=d"),
    *('q"q', "~t", "#x", "$x", "-dash", "größe", "brack[1]{2}", "%(x)s"),
]


@pytest.mark.fault
def test_c9_odd_names_mean_themselves():
    for name in ODD_NAMES:
        for text in (name, f"/a/{name}", f"/a/{name}/b"):
            assert OverridesParser.create().parse_override(f"resume={quote(text)}").value() == text


@pytest.mark.fault
def test_c9_a_folder_whose_name_is_a_setting_for_hydra_is_refused(config, tmp_path):
    cfg = config("trainer.max_epochs=1")
    cfg.run_dir = str(tmp_path / "x")
    train(cfg)
    (tmp_path / "x").rename(tmp_path / "x${now:%Y}y")
    with pytest.raises(RunError, match="rename that folder"):
        resume_arguments([f"resume={tmp_path}/x${{now:%Y}}y", "trainer.max_epochs=2"], CONF)


def test_other_command_lines_are_left_alone():
    assert resume_arguments(["model=conv", "resume=null", "-m"], CONF) == ["model=conv", "resume=null", "-m"]
