"""One fault tried on one program, in a folder of its own, and how what comes of it is judged.

The judgements know nothing of the program: they look at exit codes, at what was printed and at `checkpoints/last.ckpt`
in the run folder, which both programs write.
"""

import re
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from programs import Done, Program, command, environment, finish

EPOCHS, STEPS = 3, 8  # of the small run that most faults hit
LATE = (EPOCHS - 1) * STEPS  # the step at which the last epoch begins; the epochs before are saved then
MIDDLE = LATE + STEPS // 2
# Words by which a program admits that a run which it continues will not end as it would have.
ADMITS = re.compile("not resumable|unreliable|not exact|differ|from the beginning|from scratch", re.IGNORECASE)

SURVIVED, LOUD, SILENT = "survived", "failed loudly", "SILENT"
SKIPPED, BROKEN = "skipped", "not tried"


class Outcome(NamedTuple):
    """The verdict on one trial and a few words of evidence."""

    verdict: str
    evidence: str


class NotTried(Exception):  # noqa: N818, the program under test is not at fault
    """The fault could not be injected: SKIPPED where the machine cannot, BROKEN where the program did not get there."""

    def __init__(self, reason: str, verdict: str = SKIPPED):
        super().__init__(reason)
        self.verdict = verdict


class Trial:
    """A fault tried on a program.

    Args:
        program: the program.
        folder: of the trial; made here.
        shared: a folder for what the trials of a program have in common; it holds `pictures/`.
        data: the folder that holds `MNIST/raw`.
    """

    def __init__(self, program: Program, folder: Path, shared: Path, data: Path):
        self.program, self.folder, self.shared, self.data = program, folder, shared, data
        self.small = {"pictures": shared / "pictures", "logger": "csv", "width": 256, "epochs": EPOCHS, "steps": STEPS}
        self.run = folder / "run"
        folder.mkdir(parents=True)

    @property
    def checkpoint(self) -> Path:
        """What the run continues from."""
        return self.run / "checkpoints" / "last.ckpt"

    def overrides(self, *extra: str, **settings) -> list[str]:
        """The small run with other settings, those that are None left out, and overrides that both programs have."""
        named = {key: value for key, value in (self.small | {"run": self.run} | settings).items() if value is not None}
        return [*extra, *self.program.overrides(**named)]

    def start(self, overrides: list[str], plan: dict | None = None, before: tuple = (), **variables: str):
        """Start the program.

        Args:
            overrides: its arguments.
            plan: what `injection.py` shall do inside it.
            before: a command that starts the command.
            **variables: of the environment.
        """
        return subprocess.Popen(
            [*map(str, before), *command(self.program, overrides, plan)],
            cwd=self.folder,
            env=environment(self.shared / "home", **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def train(
        self, *extra: str, plan: dict | None = None, before: tuple = (), variables: dict | None = None, **settings
    ) -> Done:
        """Run the program to its end."""
        return finish(self.start(self.overrides(*extra, **settings), plan, before, **variables or {}))

    def resume(self, **settings) -> Done:
        """Continue the run."""
        overrides = self.program.continuing(self.run, **self.small | settings)
        return finish(self.start(overrides, self.final))

    @property
    def final(self) -> dict:
        """The plan that keeps the hash of the parameters with which a run ends."""
        return {"hash": str(self.folder / "hash.txt")}

    def run_undisturbed(self) -> None:
        """Run the program twice with nothing happening to it; the other runs are compared with these.

        Raises:
            SystemExit: if even that fails, or does not give the same parameters twice.
        """
        for run in (self.run, self.shared / "undisturbed"):
            done = self.train(run=run, plan={"hash": str(run.with_suffix(".txt"))})
            if done.exit_code != 0:
                raise SystemExit(f"{self.program.name} fails even when nothing happens to it: {done.reason}")
        if self.run.with_suffix(".txt").read_text() != run.with_suffix(".txt").read_text():
            raise SystemExit(f"{self.program.name} gives other parameters every time: nothing can be compared")

    def ends_undisturbed(self) -> bool:
        """Whether the parameters at the end are those of the small run to which nothing happens."""
        own = Path(self.final["hash"])
        return own.exists() and own.read_text() == (self.shared / "undisturbed.txt").read_text()

    def take_killed_run(self) -> None:
        """Continue with a run that was killed in the middle of its last epoch."""
        self.run = self.shared / "killed"  # every time at the same place, because checkpoints may know it
        copy = self.shared / "killed.copy"
        if copy.exists():
            shutil.rmtree(self.run)
            shutil.copytree(copy, self.run)
            return
        done = self.train(plan={"step": MIDDLE, "signal": signal.SIGKILL})
        if done.exit_code != -signal.SIGKILL:
            raise NotTried(f"the run ended before it could be killed: {done.reason}", BROKEN)
        shutil.copytree(self.run, copy)


def read_checkpoint(path: Path) -> dict | None:
    """A checkpoint; None if it is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return None if archive.testzip() else torch.load(path, weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError, zipfile.BadZipFile):
        return None


def step_of(path: Path) -> int:
    """The step at which a checkpoint was saved; 0 if there is none that can be read."""
    return (read_checkpoint(path) or {}).get("global_step", 0)


def refused(done: Done, culprit: str) -> Outcome:
    """Judge what must be refused, in words that name the culprit."""
    if done.exit_code == 0:
        return Outcome(SILENT, "exit 0, accepted")
    line = done.line_with(culprit)
    return Outcome(SURVIVED if line else LOUD, f"{done.ending}: {line or done.reason}")


def continued(trial: Trial, done: Done) -> Outcome:
    """Judge a run that was continued: its end must be that of the undisturbed one, bit for bit."""
    if done.exit_code != 0:
        return Outcome(LOUD, f"resume: {done.ending}: {done.reason}")
    if trial.ends_undisturbed():
        return Outcome(SURVIVED, "resume: bit-exact")
    if ADMITS.search(done.printed + done.errors):
        return Outcome(LOUD, "resume: exit 0, other parameters, with a warning")
    return Outcome(SILENT, "resume: exit 0, other parameters, no word of it")
