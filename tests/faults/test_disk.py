"""Full disks, folders without permission, and two processes in one folder: nothing lost, one line that says why."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from command import TINY, finish, record, start, status
from composed import composed
from forks import can_mount, fork, hold, train_in_fork, wait

from vae_lab.__main__ import main
from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import DurableCheckpointIO, load_checkpoint
from vae_lab.runs.metrics_file import MetricsFile
from vae_lab.runs.process import RANKS
from vae_lab.training.module import LitVAE
from vae_lab.training.train import train

pytestmark = pytest.mark.fault
NOBODY = 65534


def test_h1_a_folder_in_use_is_refused_and_free_again_when_its_user_is_killed(config, command):
    cfg = config()
    folder = Path(cfg.run_dir)
    pid = hold(folder / ".lock")
    try:
        with pytest.raises(RunError, match=rf"{folder} is locked by process {pid} on "):
            train(cfg)
        code, text = command("vae-lab", *TINY, f"hydra.run.dir={folder}")
        assert code == 5
        assert f"is locked by process {pid} on " in text
        assert [path.name for path in folder.iterdir()] == [".lock"]
    finally:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
    train(cfg)
    assert status(folder)["state"] == "completed"


@pytest.fixture
def folder_of_nobody():
    """A folder of a user for whom folders can be read-only; root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


@contextmanager
def as_nobody():
    """Give up the rights of root for a while."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_h2_a_folder_that_becomes_read_only_stops_the_run_at_the_next_save(folder_of_nobody, config, monkeypatch):
    cfg = config()
    folder = folder_of_nobody / "run"
    cfg.run_dir = str(folder)
    original = LitVAE.on_validation_epoch_start

    def closing(lit):
        if lit.current_epoch == 1:
            (folder / "checkpoints").chmod(0o555)
        original(lit)

    monkeypatch.setattr(LitVAE, "on_validation_epoch_start", closing)
    refusal = r"cannot write .*\.ckpt: Permission denied; check the permissions of"
    with as_nobody(), pytest.raises(RunError, match=refusal):
        train(cfg)
    assert status(folder)["state"] == "failed"
    assert load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_h2_a_file_where_a_folder_should_be_is_named_with_the_remedy(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    for folder in ("taken", "taken/run"):
        code, text = command("vae-lab", *TINY, f"hydra.run.dir={folder}")
        assert (code, text.partition(":")[0]) == (5, "vae-lab"), text
        assert re.search(r"cannot write taken.*: (File exists|Not a directory); move taken.* away", text)
    assert (tmp_path / "taken").is_file()


@pytest.mark.parametrize("name", ["result.json", "checkpoints/last.ckpt"])
def test_h2_a_folder_where_a_file_should_be_is_named(name, run_dir, command):
    path = run_dir / name
    path.unlink()
    path.mkdir()
    code, text = command("vae-lab", f"resume={run_dir}", "trainer.max_steps=4")
    assert code == 5 or name == "checkpoints/last.ckpt"  # of which there is another
    assert name in command.printed


def test_h2_a_read_only_folder_is_refused_at_the_start(folder_of_nobody, monkeypatch, capfd):
    folder_of_nobody.chmod(0o555)
    monkeypatch.chdir(folder_of_nobody)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(sys, "argv", ["vae-lab", "logger=none", "hydra.run.dir=run"])
    with as_nobody():
        code = wait(fork(main))
    assert code == 5
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("vae-lab: ")]
    assert "cannot write run: Permission denied; check the permissions of" in line
    assert list(folder_of_nobody.iterdir()) == []


MODEL = ["model.hidden_dims=[300]", "latent_dim=8"]  # checkpoints of 0.6 MB

# In a mount namespace of its own: a disk of 4 MB; a run that meets a full disk, and goes on when there is space again.
FULL_DISK = """
import os, sys
from contextlib import suppress
from pathlib import Path
from vae_lab import __main__ as commands
from vae_lab.runs.checkpoints import load_checkpoint

def run(*arguments):
    sys.argv = ["vae-lab", *arguments]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    code = 0
    try:
        commands.main()
    except SystemExit as stop:
        code = stop.code
    print("code", code, "step", load_checkpoint(Path("disk/run/checkpoints/last.ckpt"))["global_step"])

run(*sys.argv[1:], "hydra.run.dir=disk/run", "trainer.max_epochs=1")
with suppress(OSError), open("disk/filler", "wb", buffering=0) as file:
    while file.write(bytes(4096)):
        pass
run("resume=disk/run", "trainer.max_epochs=3")
print(*os.listdir("disk/run/checkpoints"))
os.unlink("disk/filler")
run("resume=disk/run", "trainer.max_epochs=3")
os.system("cp -r disk/run copy")
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs unshare -m")
def test_h3_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_when_there_is_space(tmp_path):
    tiny = ["logger=none", "callbacks.gallery=null", "callbacks.summary=null", "trainer=cpu", *MODEL]
    tiny += ["trainer.limit_train_batches=4", "trainer.limit_val_batches=2"]
    train(composed(*tiny, "trainer.max_epochs=3", f"run_dir={tmp_path / 'undisturbed'}"))
    (tmp_path / "disk").mkdir()
    (tmp_path / "script.py").write_text(FULL_DISK)
    mounted = 'mount -t tmpfs -o size=4m tmpfs disk && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", sys.executable, "script.py", *tiny]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_LAB", "WANDB", "HYDRA"))}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    reached = [line for line in lines if line.startswith("code ")]
    assert reached == ["code 0 step 4", "code 5 step 4", "code 0 step 12"], done.stderr
    assert not any(".tmp." in line for line in lines)
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vae-lab: ")]
    assert "No space left on device" in line
    assert "bytes free" in line
    assert record(tmp_path / "copy") == record(tmp_path / "undisturbed")


def test_a_full_disk_names_the_bytes_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(
        RunError, match=r"No space left on device \(4,000 bytes needed, [\d,]+ bytes free\); free space"
    ):
        DurableCheckpointIO().save_checkpoint({"w": torch.zeros(1000)}, tmp_path / "last.ckpt")


def test_metrics_that_cannot_be_written_stop_the_run(config, monkeypatch):
    monkeypatch.setattr(MetricsFile, "__init__", lambda self, folder: setattr(self, "path", Path("/dev/full")))
    monkeypatch.setattr(MetricsFile, "truncate", lambda self, size: None)
    monkeypatch.setattr(MetricsFile, "sync", lambda self: 0)
    with pytest.raises(RunError, match="cannot write /dev/full: No space left on device"):
        train(config())


def test_h4_a_missing_or_full_tmpdir_does_not_matter(config, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", None)
    cfg = config()
    assert train_in_fork(cfg) == 0
    assert load_checkpoint(Path(cfg.run_dir) / "checkpoints" / "last.ckpt")["global_step"] == 6


def test_h5_leftovers_of_dead_processes_are_cleared_and_those_of_live_ones_stay(config):
    cfg = config()
    checkpoints = Path(cfg.run_dir) / "checkpoints"
    checkpoints.mkdir(parents=True)
    dead = wait(pid := fork(lambda: None)) or pid
    leftovers = [checkpoints / f"last.ckpt.tmp.{dead}", checkpoints.parent / f"status.json.tmp.{dead}"]
    leftovers.append(checkpoints.parent / ".lr_find_0b4d.ckpt")  # as Lightning names it
    kept = [checkpoints / f"export.tmp.{end}" for end in (os.getpid(), "notes", "", "1.png")]
    for path in (*leftovers, *kept):
        path.write_bytes(b"half")
    train(cfg)
    assert not any(path.exists() for path in leftovers)
    assert all(path.read_bytes() == b"half" for path in kept)


@pytest.mark.slow
def test_d5_runs_that_start_in_the_same_instant_have_folders_of_their_own(tmp_path):
    """Whatever ranks a launcher gave them."""
    ranks = dict.fromkeys(RANKS, "1") | {"LOCAL_RANK": "abc", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}
    processes = [start(*TINY, cwd=tmp_path, env=ranks | {"TORCHELASTIC_RUN_ID": "1"}) for _ in range(2)]
    assert [finish(process).returncode for process in processes] == [0] * 2
    folders = list(tmp_path.glob("outputs/*/*"))
    assert len(folders) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    files = {".hydra", ".lock", "status.json", "metrics.jsonl", "result.json", "checkpoints", "train.log"}
    assert all({path.name for path in folder.iterdir()} == files for folder in folders)
    assert {status(folder)["pid"] for folder in folders} == {process.pid for process in processes}
