"""The command `vae-lab` in a process of its own, as a user starts it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Two batches of the bundled digits.
TINY = [
    "logger=none", "callbacks.gallery=null", "callbacks.summary=null", "trainer=cpu", "trainer.max_steps=2",
    "trainer.limit_val_batches=1", "model.hidden_dims=[8]", "latent_dim=2",
]  # fmt: skip

# Shuffling, noise, dropout, batch norm, flips, a learning-rate schedule and a KL warm-up, all on; saved at every batch.
# So that a moment is the number of a call, an execution is one step.
EVERYTHING = [
    "logger=none", "callbacks.gallery=null", "callbacks.summary=null", "callbacks.progress=null",
    "callbacks.checkpoints.every_n_minutes=1e-9", "trainer=cpu", "trainer.steps_per_execution=1",
    "trainer.max_epochs=2", "trainer.limit_train_batches=8", "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=3",
    "dataset.batch_size=16", "dataset.flip=true", "dataset.binarize=dynamic", "model=conv", "model.channels=[4,4]",
    "model.hidden_dims=[8]", "model.dropout=0.2", "latent_dim=2", "optimizer/schedule=cosine", "loss.warmup_steps=20",
]  # fmt: skip


def start(*arguments: str | Path, cwd: Path, module: str = "vae_lab", **popen) -> subprocess.Popen:
    """Start a command; `env` adds to an environment without settings of ours."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_LAB", "WANDB", "HYDRA"))}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=variables | {"OMP_NUM_THREADS": "1"} | popen.pop("env", {}),
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen,
    )


def finish(process: subprocess.Popen, timeout: float = 120) -> subprocess.CompletedProcess:
    """Wait for a command to end; one that does not is killed and the test fails."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def vae_lab(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    return finish(start(*arguments, cwd=cwd, env=environment))


def wait_until(condition: Callable[[], object], process: subprocess.Popen, timeout: float = 60) -> None:
    """Wait for something that a running command does."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def record(folder: Path) -> tuple[str, list[dict]]:
    """The parameter hash of a run and its metrics without the times."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return result["parameters_sha256"], [{k: v for k, v in line.items() if k != "time"} for line in lines]


def status(folder: Path) -> dict:
    """What `status.json` says."""
    return json.loads((folder / "status.json").read_text())


def message(done: subprocess.CompletedProcess) -> str:
    """The one line on stderr that says why a command failed; progress may stand before it, a traceback may not."""
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vae-lab: ")]
    return line
