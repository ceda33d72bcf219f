"""A run that was killed anywhere and resumed ends with the same parameters and the same metrics as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from vae_lab.checkpoints import load_checkpoint
from vae_lab.errors import RunError
from vae_lab.objectives import ELBO
from vae_lab.progress import Progress
from vae_lab.resume import resume_arguments
from vae_lab.runs import Run
from vae_lab.train import train

BATCHES = 12  # in an epoch of the runs below

# Shuffling, noise, dropout, batch norm, flips, a learning-rate schedule and a KL warm-up, all on.
EVERYTHING = [
    "logger=none",
    "callbacks.gallery=null",
    "callbacks.summary=null",
    "callbacks.progress=null",
    "callbacks.checkpoints.every_n_minutes=1e-9",
    "trainer=cpu",
    "trainer.max_epochs=3",
    f"trainer.limit_train_batches={BATCHES}",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=5",
    "dataset.batch_size=16",
    "dataset.flip=true",
    "dataset.binarize=dynamic",
    "model=conv",
    "model.channels=[4,4]",
    "model.hidden_dims=[8]",
    "model.dropout=0.2",
    "latent_dim=2",
    "optimizer/schedule=cosine",
    "optimizer.schedule.warmup_steps=5",
    "loss.warmup_steps=20",
]
VARIANTS = {
    "plain": [],
    "workers": ["dataset.num_workers=2"],
    "accumulate": ["trainer.accumulate_grad_batches=5"],
    "validate_within_epochs": ["trainer.val_check_interval=5"],
    "step_schedule": ["optimizer/schedule=step", "optimizer.schedule.step_size=7"],
    "early_stopping": ["callbacks=early_stopping"],
    "validate_every_other_epoch": ["trainer.check_val_every_n_epoch=2", "trainer.precision=bf16-mixed"],
}


class Killed(BaseException):
    """Stands for the moment at which a process disappears."""


def record(folder) -> tuple[str, list[dict]]:
    """The parameter hash of a run and its metrics without the times."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result["parameters_sha256"], [{k: v for k, v in line.items() if k != "time"} for line in lines]


def kill_at(monkeypatch, evaluation: int) -> None:
    """Kill the run at the n-th evaluation of the objective, in training or validation."""
    original, calls = ELBO.__call__, iter(range(10**9))

    def deadly(self, vae, x, step):
        if next(calls) == evaluation:
            raise Killed
        return original(self, vae, x, step)

    monkeypatch.setattr(ELBO, "__call__", deadly)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kills_change_nothing(variant, config, monkeypatch):
    overrides = VARIANTS[variant]
    cfg = config(*overrides, tiny=EVERYTHING, run_dir="undisturbed")
    train(cfg)
    undisturbed = record(Run(cfg.run_dir).folder)
    # In the first batch; within an epoch; at an epoch's end; in validation; in the last epoch.
    for evaluation in (0, 6, 11, 13, 33):
        folder = f"killed_at_{evaluation}"
        cfg = config(*overrides, tiny=EVERYTHING, run_dir=folder)
        with monkeypatch.context() as context:
            kill_at(context, evaluation)
            with pytest.raises(Killed):
                train(cfg)
        cfg.resume = cfg.run_dir
        train(cfg)
        assert record(Run(cfg.run_dir).folder) == undisturbed, evaluation


def test_more_epochs_continue_a_completed_run(config):
    constant = [setting for setting in EVERYTHING if "schedule" not in setting]  # the cosine ends with the last epoch
    cfg = config("trainer.max_epochs=3", tiny=constant, run_dir="at_once")
    train(cfg)
    at_once = record(Run(cfg.run_dir).folder)
    for epochs, resume in ((1, False), (3, True)):
        cfg = config(f"trainer.max_epochs={epochs}", tiny=constant, run_dir="extended")
        cfg.resume = cfg.run_dir if resume else None
        train(cfg)
    assert record(Run(cfg.run_dir).folder) == at_once


def test_an_interrupted_extension_goes_on_by_itself(config, monkeypatch):
    cfg = config("trainer.max_epochs=1", tiny=EVERYTHING)
    train(cfg)
    folder = Run(cfg.run_dir).folder
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    with monkeypatch.context() as context:
        kill_at(context, 5)
        with pytest.raises(Killed):
            train(cfg)
    saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
    assert saved.trainer.max_epochs == 3
    assert saved.resume is None
    train(cfg)
    assert json.loads((folder / "result.json").read_text())["epochs"] == 3


def test_a_run_cannot_go_back(config):
    cfg = config(tiny=EVERYTHING)
    train(cfg)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 1
    with pytest.raises(ValueError, match="trainer.max_epochs must be >= 3, where this run is already, got 1"):
        train(cfg)
    assert Run(cfg.run_dir).status["state"] == "completed"


def test_the_best_checkpoint_of_a_run_that_stopped_within_an_epoch_is_remembered(config):
    tiny = [setting for setting in EVERYTHING if "schedule" not in setting]
    cfg = config("trainer.max_steps=14", tiny=tiny)
    train(cfg)
    folder = Run(cfg.run_dir).folder
    best = json.loads((folder / "result.json").read_text())["best_step"]
    state = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    (kept,) = [value["best"] for key, value in state["callbacks"].items() if key.startswith("Checkpoints")]
    assert kept["step"] == best == 14


def test_a_signal_while_the_last_pictures_are_drawn_is_not_lost(config, monkeypatch):
    monkeypatch.setattr(Progress, "on_train_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    cfg = config("callbacks.progress={_target_:vae_lab.progress.Progress}", tiny=EVERYTHING)
    with pytest.raises(SystemExit) as stopped:
        train(cfg)
    assert stopped.value.code == 143
    assert Run(cfg.run_dir).status["state"] == "preempted"


def start(arguments: list[str], **popen) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "vae_lab", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
    )


def wait_for(path, process) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run of some seconds, undisturbed."""
    folder = tmp_path_factory.mktemp("long") / "undisturbed"
    arguments = [*EVERYTHING, "trainer.max_epochs=40", "callbacks.checkpoints.every_n_minutes=0.003"]
    process = start([*arguments, f"hydra.run.dir={folder}"])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return arguments, record(folder), folder.parent


@pytest.mark.parametrize(
    ("number", "exit_code", "state"),
    [(signal.SIGKILL, -9, "running"), (signal.SIGTERM, 143, "preempted"), (signal.SIGINT, 130, "preempted")],
)
def test_signals_on_the_command_line(number, exit_code, state, long_run):
    arguments, undisturbed, parent = long_run
    folder = parent / f"signal_{number.name}"
    process = start([*arguments, f"hydra.run.dir={folder}"])
    wait_for(folder / "checkpoints" / "last.ckpt", process)
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code, errors
    status = Run(folder).status
    assert status["state"] == state
    if state == "preempted":
        assert status["reason"] == f"signal {int(number)}"
        assert "continue with: vae-lab resume=" in errors
    process = start([f"resume={folder}"])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert record(folder) == undisturbed
    assert Run(folder).status["state"] == "completed"
    assert len(Run(folder).status["times"]) == 2


def test_resuming_a_completed_run_does_nothing_and_says_so(long_run):
    _, _, parent = long_run
    folder = parent / "undisturbed"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    process = start([f"resume={folder}"])
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "already complete" in output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_resuming_nothing_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"cannot resume .*missing.*: there is no"):
        resume_arguments([f"resume={tmp_path / 'missing'}"])


def test_resuming_refuses_what_would_change_the_result(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    for override in ("model.hidden_dims=[3]", "loss.KLD_weight=2", "seed=1", "trainer.precision=bf16", "logger=none"):
        with pytest.raises(ValueError, match=f"{override.split('=')[0]} cannot change"):
            resume_arguments([f"resume={tmp_path}", override])
    assert "trainer.max_epochs=9" in resume_arguments([f"resume={tmp_path}", "trainer.max_epochs=9"])


def test_other_command_lines_are_left_alone():
    assert resume_arguments(["model=conv", "resume=null", "-m"]) == ["model=conv", "resume=null", "-m"]
