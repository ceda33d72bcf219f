"""A run that is killed at any moment and resumed ends as one that was not: the same parameters, the same metrics."""

import io
import json
import os
import pydoc
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from command import EVERYTHING, finish, message, record, start, status, wait_until
from composed import composed
from forks import Forked, at_call, fork, train_in_fork, wait

from vae_lab.__main__ import main
from vae_lab.errors import RunError
from vae_lab.models.vae import VAE
from vae_lab.runs.checkpoints import Checkpoints, DurableCheckpointIO, load_checkpoint
from vae_lab.runs.files import is_alive
from vae_lab.runs.signals import SAME_REQUEST
from vae_lab.training.module import LitVAE
from vae_lab.training.steps import Steps
from vae_lab.training.train import train

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cfg = composed(*EVERYTHING, f"run_dir={tmp_path_factory.mktemp('undisturbed')}")
    train(cfg)
    return record(Path(cfg.run_dir))


def resume(cfg) -> tuple[str, list[dict]]:
    cfg.resume = cfg.run_dir
    train(cfg)
    assert status(Path(cfg.run_dir))["state"] == "completed"
    assert not list(Path(cfg.run_dir).rglob("*.tmp.*"))
    return record(Path(cfg.run_dir))


def send(*numbers: int):
    def action():
        for number in numbers:
            os.kill(os.getpid(), number)

    return action


MOMENTS = {
    "while the data is read": ("vae_lab.data.batches.ImageData", "setup", 0),
    "before the first checkpoint": (LitVAE, "on_fit_start", 0),
    "in the first batch": (LitVAE, "training_step", 0),
    "within an epoch": (LitVAE, "training_step", 13),
    "before an epoch's last batch": (LitVAE, "training_step", 7),
    "before a validation": (LitVAE, "on_validation_epoch_start", 1),
    "in a validation": (VAE, "encoding_once", 3),
    "after a validation": (Checkpoints, "on_validation_end", 1),
    "at an epoch's end": (Checkpoints, "on_train_epoch_end", 0),
    "while a checkpoint is put together": (LitVAE, "on_save_checkpoint", 5),
    "between the bytes and the name of a checkpoint": (os, "replace", 11),
    "while bytes go to the disk": (os, "fsync", 17),
    "at the very end": (Checkpoints, "on_train_end", 0),
    "before the result is written": ("vae_lab.runs.folder.RunFolder", "write_result", 0),
}


FAST = ("within an epoch", "while a checkpoint is put together")


@pytest.mark.parametrize("moment", [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MOMENTS])
def test_c3_a_kill_at_any_moment_changes_nothing(moment, config, undisturbed):
    is_same_after_a_kill(MOMENTS[moment], config(tiny=EVERYTHING), undisturbed)


def is_same_after_a_kill(moment: tuple, cfg, undisturbed) -> None:
    owner, hook, number = moment
    owner = pydoc.locate(owner) if isinstance(owner, str) else owner
    code = train_in_fork(cfg, lambda: at_call(owner, hook, number, send(signal.SIGKILL)))
    assert code == -signal.SIGKILL
    assert resume(cfg) == undisturbed


MORE = {  # state besides the model's weights: an adversary with its optimizer, a book with its running means
    "two players": ["objective=vae_gan", "objective.adversary.channels=[4]", "objective.adversarial_start=5"],
    "a book": ["posterior=vq", "posterior.num_codes=8", "posterior.code_dim=1", "loss.warmup_steps=0"],
}
BETWEEN_DESCENTS = (Steps, "_descend", 11)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_c3_a_kill_changes_nothing_either_with(name, config):
    settings = [*EVERYTHING, *MORE[name]]
    whole = config(tiny=settings, run_dir="whole")
    train(whole)
    moments = (MOMENTS["while a checkpoint is put together"], MOMENTS["after a validation"], BETWEEN_DESCENTS)
    for number, moment in enumerate(moments):
        cfg = config(tiny=settings, run_dir=f"killed_{number}")
        is_same_after_a_kill(moment, cfg, record(Path(whole.run_dir)))


@pytest.mark.slow
def test_c1_kills_at_random_moments_change_nothing(config, undisturbed):
    began = time.monotonic()
    assert train_in_fork(config(tiny=EVERYTHING, run_dir="timed")) == 0
    seconds = time.monotonic() - began
    moments, killed = random.Random(0), 0
    for number in range(5):
        cfg = config(tiny=EVERYTHING, run_dir=f"killed_{number}")
        pid = fork(lambda cfg=cfg: train(cfg))
        time.sleep(moments.uniform(0, 0.7 * seconds))
        os.kill(pid, signal.SIGKILL)
        killed += wait(pid) == -signal.SIGKILL
        if not (Path(cfg.run_dir) / ".hydra" / "config.yaml").exists():
            train(cfg)  # killed before it began: there is nothing to resume, and nothing in the way
            assert record(Path(cfg.run_dir)) == undisturbed
        else:
            assert resume(cfg) == undisturbed, number
    assert killed >= 2  # the others had ended in time


@pytest.mark.slow
def test_c1_a_run_that_is_killed_again_and_again_gets_there(config, undisturbed):
    cfg = config(tiny=EVERYTHING)
    for number in (3, 2, 4, 1):
        cfg.resume = cfg.run_dir if (Path(cfg.run_dir) / ".hydra").exists() else None
        prepare = lambda number=number: at_call(LitVAE, "training_step", number, send(signal.SIGKILL))  # noqa: E731
        assert train_in_fork(cfg, prepare) == -signal.SIGKILL
    assert resume(cfg) == undisturbed


@pytest.mark.slow
def test_c2_a_kill_within_a_write_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/shm")  # another file system, where Lightning would write first
    path = tmp_path / "last.ckpt"
    weights = torch.randn(12_500_000)  # 50 MB
    DurableCheckpointIO().save_checkpoint({"step": 0, "w": weights}, path)
    moments = random.Random(0)

    def save_for_ever():
        for step in range(1, 10**6):
            DurableCheckpointIO().save_checkpoint({"step": step, "w": weights}, path)

    half_written = 0
    for _ in range(20):
        pid = fork(save_for_ever)
        time.sleep(moments.uniform(0.02, 0.3))
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
        assert torch.equal(load_checkpoint(path)["w"], weights)
        half_written += bool(list(tmp_path.glob("*.tmp.*")))
    assert half_written > 0  # some kills hit a write


# Signals that ask


ASKED = [(signal.SIGTERM, "training_step"), (signal.SIGINT, "validation_step")]
ALIKE = [(signal.SIGUSR1, "validation_step"), (signal.SIGUSR2, "training_step"), (signal.SIGHUP, "validation_step")]
ALIKE += [(signal.SIGXCPU, "training_step")]
SELDOM = [*EVERYTHING, "callbacks.checkpoints.every_n_minutes=10"]


@pytest.mark.parametrize(("number", "hook"), [*ASKED, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALIKE)])
def test_c5_c6_c7_a_signal_saves_and_stops(number, hook, config, undisturbed):
    """Sent twice at once, as to the process and to its group, it is one request."""

    def prepare():
        signal.signal(number, signal.SIG_DFL)  # whatever the tests were started under, such as nohup
        at_call(LitVAE, hook, {"t": 3, "v": 1}[hook[0]], send(number, number))

    cfg = config(tiny=SELDOM)
    assert train_in_fork(cfg, prepare) == 128 + number
    folder = Path(cfg.run_dir)
    assert status(folder)["state"] == "preempted"
    assert status(folder)["reason"] == f"signal {int(number)}"
    # The batch in which it came is done and saved, or the epoch that the validation closes.
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == {"t": 4, "v": 16}[hook[0]]
    if number in (signal.SIGTERM, signal.SIGINT):  # the others are saved by the same code
        cfg.callbacks.checkpoints.every_n_minutes = 1e-9
        assert resume(cfg) == undisturbed


def test_c6_a_second_signal_stops_at_once(config, undisturbed):
    cfg = config(tiny=SELDOM)

    def interrupt_twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(SAME_REQUEST + 0.1)

    assert train_in_fork(cfg, lambda: at_call(LitVAE, "training_step", 11, interrupt_twice)) == 130
    folder = Path(cfg.run_dir)
    assert status(folder)["state"] == "preempted"
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 8  # of the epoch before
    assert resume(cfg) == undisturbed


def test_a_signal_that_nohup_ignores_is_ignored(config, undisturbed):
    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        at_call(LitVAE, "training_step", 3, send(signal.SIGHUP))

    cfg = config(tiny=EVERYTHING)
    assert train_in_fork(cfg, prepare) == 0
    assert record(Path(cfg.run_dir)) == undisturbed


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


ENDLESS = [
    *EVERYTHING, "trainer.max_epochs=100000", "dataset.num_workers=2", "callbacks.checkpoints.every_n_minutes=10",
    "hydra.run.dir=run",
]  # fmt: skip
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers through /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sends a signal")
def test_c5_a_signal_to_each_worker_is_left_to_the_run_and_one_to_the_group_stops_it_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vae-lab", *ENDLESS])
    metrics = tmp_path / "run/metrics.jsonl"

    def begin() -> None:
        os.setsid()
        sys.stderr = open("errors", "w")  # noqa: SIM115
        main()

    def wait_for_metrics(size: int) -> None:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size > size and len(children(pid)) >= 2):
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.01)

    pid = fork(begin)
    wait_for_metrics(0)
    for worker in children(pid):
        with suppress(ProcessLookupError):  # its epoch is over
            os.kill(worker, signal.SIGTERM)
    wait_for_metrics(3 * metrics.stat().st_size)
    workers = children(pid)
    os.killpg(pid, signal.SIGTERM)
    assert wait(pid, 30) == 143
    said = (tmp_path / "errors").read_text()
    assert said.count("SIGTERM: saving a checkpoint") == 1
    assert "continue with: " in said
    assert status(tmp_path / "run")["state"] == "preempted"
    assert not any(map(is_alive, workers))
    assert load_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] > 0


@pytest.mark.slow
@needs_proc
def test_c12_a_killed_worker_is_one_line_and_leaves_nobody(tmp_path):
    process = start(*ENDLESS, cwd=tmp_path)
    wait_until(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(children(process.pid)) >= 2, process)
    workers = children(process.pid)
    os.kill(workers[0], signal.SIGKILL)
    done = finish(process, timeout=30)
    assert done.returncode == 5, done.stderr
    assert "a worker of dataset.num_workers=2 died" in message(done)
    assert "dataset.num_workers=0" in message(done)
    assert status(tmp_path / "run")["state"] == "failed"
    assert not any(map(is_alive, workers))


@pytest.mark.slow
def test_c5_two_processes_with_an_adversary_stop_together_and_go_on(tmp_path):
    ddp = [
        *EVERYTHING, "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=6",
        "trainer.accumulate_grad_batches=2", "callbacks.checkpoints.every_n_minutes=10", "objective=vae_gan",
        "objective.adversary.channels=[4]", "objective.adversarial_start=0",
    ]  # fmt: skip
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = finish(Forked(*ddp, f"hydra.run.dir={whole}", cwd=tmp_path))
    assert done.returncode == 0, done.stderr
    assert status(whole)["state"] == "completed"
    sha, rows = record(whole)
    assert sum("val/loss" in row for row in rows) == 2  # each epoch once
    assert "val/discriminator_loss" in json.loads((whole / "result.json").read_text())
    stop = "+callbacks.stop={_target_:signal_at.SignalAt,batch:9,number:15}"
    trust = {"VAE_LAB_TRUST": "signal_at", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = finish(Forked(*ddp, stop, f"hydra.run.dir={run}", cwd=tmp_path, env=trust))
    assert done.returncode == 143, done.stderr
    assert status(run)["state"] == "preempted"
    assert load_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 5
    done = finish(Forked(f"resume={run}", "~callbacks.stop", cwd=tmp_path))
    assert done.returncode == 0, done.stderr
    assert record(run) == (sha, rows)


# Damaged checkpoints


def flip_in_a_weight(content: bytes) -> bytes:
    """Flip one bit where torch itself would notice nothing."""
    weights = torch.load(io.BytesIO(content), weights_only=True)["state_dict"].values()
    start = content.index(max(weights, key=lambda value: value.nbytes).numpy().tobytes())
    return content[: start + 3] + bytes([content[start + 3] ^ 1]) + content[start + 4 :]


def test_c8_a_damaged_checkpoint_is_named_and_the_one_before_used(config, undisturbed, caplog):
    cfg = config(tiny=EVERYTHING)
    code = train_in_fork(cfg, lambda: at_call(LitVAE, "training_step", 13, send(signal.SIGKILL)))
    assert code == -signal.SIGKILL
    last = Path(cfg.run_dir) / "checkpoints" / "last.ckpt"
    with open(last, "r+b") as file:  # in place, as a bad disk does
        damaged = flip_in_a_weight(file.read())  # ../runs/test_checkpoint_files.py has more
        file.seek(0)
        file.truncate()
        file.write(damaged)
    assert resume(cfg) == undisturbed
    assert f"{last} is damaged" in caplog.text
    assert "using previous.ckpt of step" in caplog.text


def test_c8_without_any_good_checkpoint_nothing_is_overwritten(config):
    cfg = config(tiny=EVERYTHING)
    train_in_fork(cfg, lambda: at_call(LitVAE, "training_step", 13, send(signal.SIGKILL)))
    checkpoints = sorted((Path(cfg.run_dir) / "checkpoints").iterdir())
    for path in checkpoints:
        path.write_bytes(path.read_bytes()[:-50])
    before = [path.read_bytes() for path in checkpoints]
    with pytest.raises(RunError, match=r"no checkpoint can be read: .*last\.ckpt is damaged"):
        resume(cfg)
    assert [path.read_bytes() for path in checkpoints] == before
