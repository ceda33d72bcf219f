"""The two programs that `faults.py` compares: how each is told the same settings, started and continued."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
TRACEBACK = "Traceback (most recent call last):"
OF_HYDRA = ("Error executing job with overrides", "Set the environment variable HYDRA_FULL_ERROR")
LAST_LINES = 4
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
TIMEOUT = 120.0  # seconds after which a process that does not end is killed
SILENCE = 30.0  # seconds after which a program that was speaking at a terminal is taken to wait for an answer


class Program(NamedTuple):
    """A program and what it calls the settings.

    Attributes:
        name: in the table.
        target: what the interpreter is given.
        always: overrides of every run.
        words: for each setting the overrides that express it, with {} for the value.
        resume: overrides that continue the run in the folder {}.
        repeats_settings: whether a command that continues a run must repeat the overrides of the first.
    """

    name: str
    target: tuple[str, ...]
    always: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    resume: tuple[str, ...]
    repeats_settings: bool

    def overrides(self, **settings) -> list[str]:
        """The overrides of a run, its settings in this program's words."""
        named = [word.format(value) for key, value in settings.items() for word in self.words[key]]
        return [*self.always, *named]

    def continuing(self, run: Path, **settings) -> list[str]:
        """The overrides that continue a run."""
        again = self.overrides(**settings) if self.repeats_settings else []
        return [*again, *(word.format(run) for word in self.resume)]


BOTH = {
    "run": ("hydra.run.dir={}",),
    "logger": ("logger={}",),
    "epochs": ("trainer.max_epochs={}", "trainer.limit_val_batches=1", "trainer.accelerator=cpu"),
    "steps": ("trainer.limit_train_batches={}",),
    "unknown": ("model.latnt_dim={}",),
    "target": ("+callbacks.mine._target_={}",),
}
PLAIN = Program(
    name="plain",
    target=(str(HERE / "plain.py"),),
    always=("batch_size=8", "trainer.enable_progress_bar=false"),
    words=BOTH
    | {
        "pictures": ("dataset.root={}",),
        "mnist": ("dataset=mnist", "dataset.root={}", "model.channels=1"),
        "width": ("model.hidden_dim={}",),
        "lr": ("model.lr={}",),
        "kld_weight": ("model.kld_weight={}",),
    },
    resume=("hydra.run.dir={}", "ckpt_path=last"),
    repeats_settings=True,
)
LAB = Program(
    name="vae-lab",
    target=("-m", "vae_lab"),
    always=(
        *("dataset.batch_size=8", "dataset.image_size=16"),
        *("callbacks.gallery=null", "callbacks.summary=null", "callbacks.progress=null"),
    ),
    words=BOTH
    | {
        "pictures": ("dataset=image_folder", "dataset.root={}"),
        "mnist": ("dataset=mnist", "data_root={}"),
        "width": ("model.hidden_dims=[{}]",),
        "lr": ("optimizer.lr={}",),
        "kld_weight": ("loss.KLD_weight={}",),
    },
    resume=("resume={}",),
    repeats_settings=False,
)


class Done(NamedTuple):
    """How a process ended.

    Attributes:
        exit_code: None if it had to be killed, because it hung.
        printed: on standard output.
        errors: on standard error; everything, if the process ran at a terminal.
    """

    exit_code: int | None
    printed: str
    errors: str

    @property
    def ending(self) -> str:
        """The exit code in words."""
        return "never ends" if self.exit_code is None else f"exit {self.exit_code}"

    @property
    def failure(self) -> list[str]:
        """The lines that tell of the failure: what follows a traceback's or Hydra's heading, or else the last lines."""
        lines = [COLOURS.sub("", line) for line in self.errors.splitlines() if line.strip()]
        starts = [i for i, line in enumerate(lines) if line.startswith((TRACEBACK, OF_HYDRA[0]))]
        told = lines[starts[0] :] if starts else lines[-LAST_LINES:]
        return [line for line in told if not line.startswith((" ", *OF_HYDRA))]  # no frames, no echoed command line

    @property
    def reason(self) -> str:
        """The line that says what the failure was."""
        lines = self.failure
        if TRACEBACK in lines[:-1]:
            return lines[len(lines) - lines[::-1].index(TRACEBACK)]
        return next(iter(lines if OF_HYDRA[0] in self.errors else lines[::-1]), "no word")

    def line_with(self, culprit: str) -> str:
        """A line of the failure that names the culprit, a regular expression; empty if none does."""
        lines = [self.reason, *self.failure]
        return next((line for line in lines if re.search(culprit, line, re.IGNORECASE)), "")


def command(program: Program, overrides: list[str], plan: dict | None) -> list[str]:
    """The command line of a run, with a fault planted by `injection.py` if there is a plan."""
    planted = [str(HERE / "injection.py"), json.dumps(plan)] if plan else []
    return [sys.executable, *planted, *program.target, *overrides]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """An environment without settings and keys of the person who runs the benchmark."""
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_LAB", "WANDB", "HYDRA"))}
    path = os.pathsep.join(filter(None, (str(HERE.parent), kept.get("PYTHONPATH"))))  # also where nothing is installed
    own = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return kept | own | variables


def finish(process: subprocess.Popen, timeout: float = TIMEOUT) -> Done:
    """Wait for a process to end."""
    try:
        printed, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return Done(None, *process.communicate())
    return Done(process.returncode, printed, errors)


def run_at_terminal(arguments: list[str], **popen) -> Done:
    """Run a command at a terminal of its own at which nobody answers."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, **popen)
    os.close(theirs)
    output, deadline, ended = b"", time.monotonic() + TIMEOUT, False
    while not ended and time.monotonic() < deadline:
        if not select.select([ours], [], [], SILENCE if output else TIMEOUT)[0]:
            break
        try:
            output += os.read(ours, 2**16)
        except OSError:  # the other side is closed
            ended = True
    if not ended:
        process.kill()
    process.wait()
    os.close(ours)
    return Done(process.returncode if ended else None, "", output.decode(errors="replace"))
