"""Faults that hit a run from outside: signals, kills, disks, trackers, and other runs at the same time."""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from programs import TIMEOUT, Done, command, environment, finish, run_at_terminal
from trial import (
    BROKEN,
    EPOCHS,
    LATE,
    LOUD,
    MIDDLE,
    SILENT,
    STEPS,
    SURVIVED,
    NotTried,
    Outcome,
    Trial,
    continued,
    read_checkpoint,
    step_of,
)

KILLS = 5
# Checkpoints of 38 MB, time enough to be killed, and a loss that falls for as long, because not all programs save else.
WIDE = {"width": 2048, "epochs": 200, "steps": 2, "lr": "1e-5"}


def stop(trial: Trial, number: signal.Signals) -> Outcome:
    """A signal that asks to stop, in the middle of an epoch that is not the last: the rest of it may be taken first."""
    asked = MIDDLE - STEPS
    done = trial.train(plan=trial.final | {"step": asked, "signal": number})
    lost = max(0, asked - step_of(trial.checkpoint))
    evidence = f"{done.ending}, {lost} of {asked} steps lost"
    if done.exit_code == 0:
        return Outcome(SILENT, evidence)
    verdict, resumed = continued(trial, trial.resume())
    if verdict == SURVIVED and lost:
        verdict = LOUD
    return Outcome(verdict, f"{evidence}; {resumed}")


def kill(trial: Trial) -> Outcome:
    """SIGKILL in the middle of an epoch."""
    trial.take_killed_run()
    return continued(trial, trial.resume())


def kill_at_epoch_end(trial: Trial) -> Outcome:
    """SIGKILL in the first batch of an epoch."""
    done = trial.train(plan=trial.final | {"step": LATE + 1, "signal": signal.SIGKILL})
    if done.exit_code != -signal.SIGKILL:
        raise NotTried(done.reason, BROKEN)
    return continued(trial, trial.resume())


def kill_while_saving(trial: Trial) -> Outcome:
    """SIGKILL as soon as the last checkpoint is being replaced, or some milliseconds later; TMPDIR elsewhere."""
    other = other_file_system(trial.folder)
    chance = random.Random(0)
    intact, damaged = 0, None
    try:
        for i in range(KILLS):
            trial.run = trial.folder / f"run{i}"
            kill_one_save(trial, delay=i * chance.uniform(0, 0.005), temporary=other)
            if read_checkpoint(trial.checkpoint):
                intact += 1
            else:
                damaged = trial.run
    finally:
        shutil.rmtree(other)
    evidence = f"{intact} of {KILLS} checkpoints intact"
    if damaged is None:
        return Outcome(SURVIVED, evidence)
    trial.run = damaged
    done = trial.resume(**WIDE)
    return Outcome(LOUD if done.exit_code else SILENT, f"{evidence}; resume: {done.ending}: {done.reason}")


def other_file_system(folder: Path) -> Path:
    """A new folder on another file system."""
    for place in ("/dev/shm", "/run/shm", "/tmp", "/var/tmp"):
        if os.access(place, os.W_OK) and os.stat(place).st_dev != os.stat(folder).st_dev:
            return Path(tempfile.mkdtemp(dir=place))
    raise NotTried("no second file system")


def kill_one_save(trial: Trial, delay: float, temporary: Path) -> None:
    """Start a run and kill it, `delay` seconds after a save begins."""
    flag = trial.folder / f"{trial.run.name}.saved"
    overrides = trial.overrides(**WIDE)
    process = trial.start(overrides, {"step": 5, "touch": str(flag)}, TMPDIR=str(temporary))
    wait_until(flag.exists, process)
    before = last_files(trial)
    wait_until(lambda: last_files(trial) != before, process)
    time.sleep(delay)
    process.kill()
    process.communicate()


def last_files(trial: Trial) -> dict[str, tuple[int, int]]:
    """Inode and size of the last checkpoint and of what a program writes beside it to replace it."""
    found = {}
    for path in trial.checkpoint.parent.glob("last*"):
        try:
            found[path.name] = (path.stat().st_ino, path.stat().st_size)
        except FileNotFoundError:  # renamed just now
            found[path.name] = (0, 0)
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait for what a process does.

    Raises:
        NotTried: if it ends without doing so, or does not within `TIMEOUT`; it is dead then.
    """
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process.poll() is not None:
            raise NotTried(f"the run ended too early: {finish(process).reason}", BROKEN)
        if time.monotonic() > deadline:
            process.kill()
            raise NotTried(f"the run did not get there in {TIMEOUT:.0f} s: {finish(process).reason}", BROKEN)
        time.sleep(0.0005)


def full_disk(trial: Trial) -> Outcome:
    """A disk of 64 MB that fills up between two saves of 5 MB."""
    mount = ["unshare", "--map-root-user", "--mount"]
    attempt = [*mount, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    if not shutil.which(mount[0]) or subprocess.run(attempt, capture_output=True, check=False).returncode:
        raise NotTried("no permission to mount a small file system")
    trial.run.mkdir()
    script = 'mount -t tmpfs -o size=64m tmpfs "$0" && "$@"; code=$?; cp -a "$0" "$0.kept"; exit $code'
    inside = [*mount, "sh", "-c", script, trial.run]
    done = trial.train(before=inside, plan={"step": LATE + 1, "fill": str(trial.run)})
    trial.run = trial.run.with_name("run.kept")  # what was on the disk before it was unmounted
    if not (trial.run / "filler").exists():
        raise NotTried(f"the run ended before the disk was full: {done.reason}", BROKEN)
    return unsaved(trial, done, "No space left|disk")


def locked_folder(trial: Trial) -> Outcome:
    """The folder of the checkpoints becomes read-only while the run goes on."""
    as_user = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override")  # root could write nevertheless
    if as_user and not shutil.which(as_user[0]):
        raise NotTried("no setpriv to take root's permission away")
    folder = trial.checkpoint.parent
    done = trial.train(before=as_user, plan={"step": LATE + 1, "lock": str(folder)})
    if folder.exists():
        folder.chmod(0o755)  # so that it can be deleted
    return unsaved(trial, done, "permission")


def unsaved(trial: Trial, done: Done, reason: str) -> Outcome:
    """Judge a run that could not save its last epoch: it must say why, and the checkpoint before must be there."""
    step = step_of(trial.checkpoint)
    kept = f"checkpoint of step {step} is intact" if step else "no checkpoint can be read"
    evidence = f"{done.ending}, {kept}"
    if done.exit_code == 0:
        return Outcome(SILENT, evidence)
    line = done.line_with(reason)
    good = step == LATE and line
    return Outcome(SURVIVED if good else LOUD, f"{evidence}: {line or done.reason}")


def nan(trial: Trial) -> Outcome:
    """A learning rate with which the loss becomes NaN."""
    done = trial.train(lr="1e12")
    saved = read_checkpoint(trial.checkpoint)
    finite = saved is not None and all(value.isfinite().all() for value in saved["state_dict"].values())
    evidence = f"{done.ending}, last.ckpt {'finite' if finite else 'NaN' if saved else 'missing'}"
    if done.exit_code == 0:
        return Outcome(SURVIVED if finite else SILENT, evidence)
    line = done.line_with("nan|inf|finite")
    return Outcome(SURVIVED if finite and line else LOUD, f"{evidence}: {line or done.reason}")


def two_at_once(trial: Trial) -> Outcome:
    """Two runs that start in the same second, in the folders that the program chooses."""
    gate = trial.folder / "gate"
    gate.mkdir()
    processes = [trial.start(trial.overrides(run=None), {"gate": str(gate)}) for _ in range(2)]
    try:
        for process in processes:
            wait_until((gate / f"ready.{process.pid}").exists, process)
        time.sleep(1 - time.time() % 1)  # a second begins
        (gate / "go").touch()
        both = [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    folders = {path.parents[1] for path in trial.folder.rglob("last.ckpt")}
    evidence = f"{both[0].ending} and {both[1].exit_code}, {len(folders)} folder{'s' * (len(folders) != 1)}"
    if any(done.exit_code for done in both):
        return Outcome(LOUD, f"{evidence}: {max(both, key=lambda done: bool(done.exit_code)).reason}")
    return Outcome(SURVIVED if len(folders) == 2 else SILENT, evidence)


def sweep(trial: Trial) -> Outcome:
    """Three jobs in one process, with Hydra's own launcher, and SIGTERM in the middle of the second."""
    total = EPOCHS * STEPS
    extra = ("--multirun", "hydra/launcher=basic", "seed=0,1,2", f"hydra.sweep.dir={trial.run}")
    done = trial.train(*extra, run=None, plan={"step": total + MIDDLE, "signal": signal.SIGTERM})
    jobs = sorted(path for path in trial.run.iterdir() if path.is_dir())
    steps = [step_of(job / "checkpoints" / "last.ckpt") for job in jobs] + [0] * (3 - len(jobs))
    evidence = f"{done.ending}, jobs at step {', '.join(map(str, steps))} of {total}"
    if done.exit_code == 0:
        return Outcome(SILENT if min(steps) < total else SURVIVED, evidence)
    return Outcome(SURVIVED if steps[0] == total and steps[1] >= MIDDLE else LOUD, evidence)


def no_key(trial: Trial) -> Outcome:
    """W&B without a key, at a terminal where nobody answers."""
    arguments = command(trial.program, trial.overrides(logger="wandb"), trial.final)
    return tracked(trial, run_at_terminal(arguments, cwd=trial.folder, env=environment(trial.shared / "home")))


def dead_server(trial: Trial) -> Outcome:
    """W&B with a key, and no server at its address."""
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "10"}
    return tracked(trial, trial.train(logger="wandb", plan=trial.final, variables=server))


def tracked(trial: Trial, done: Done) -> Outcome:
    """Judge a run whose tracker is out of reach: it must train as if there were none."""
    if done.exit_code != 0:
        return Outcome(LOUD, f"{done.ending}: {done.reason}")
    same = trial.ends_undisturbed()
    return Outcome(SURVIVED if same else SILENT, f"exit 0, {'same' if same else 'other'} parameters as without it")
