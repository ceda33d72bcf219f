"""Which folders are runs or sweeps, and in which state a run is, also one that was killed. No torch."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from vae_lab.runs.files import is_alive

STATES = ("completed", "running", "preempted", "interrupted", "failed")
SWEEP = "multirun.yaml"  # which Hydra writes into the folder of every sweep
QUIET_SECONDS = 600  # after which a run that should be running is said to be silent


def run_folders(top: Path) -> tuple[list[Path], list[Path]]:
    """The run folders at and below a folder, and the folders of sweeps; links are not followed."""
    runs: list[Path] = []
    sweeps: list[Path] = []

    def look(here: str) -> None:
        if os.path.isfile(f"{here}/status.json") or os.path.isfile(f"{here}/.hydra/config.yaml"):
            runs.append(Path(here))
            return
        if os.path.isfile(f"{here}/{SWEEP}"):
            sweeps.append(Path(here))
        with suppress(OSError), os.scandir(here) as entries:  # one that may not be read holds nothing
            below = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
            for folder in below:
                look(folder)

    look(os.fspath(top))
    return runs, sweeps


def state_of(folder: Path, status: dict) -> tuple[str, str]:
    """The state and its reason; a run that says it is running may have been killed since."""
    state, reason = str(status.get("state", "interrupted")), str(status.get("reason", ""))
    if state not in STATES:
        return "failed", f"its status.json says {state!r}"
    if not status:
        return "interrupted", "there is no status.json"
    if state != "running":
        return state, "" if state == "completed" else reason
    lock = folder / ".lock"
    owner = lock.read_bytes()[:200].decode(errors="replace").split() if lock.is_file() else []  # process PID on HOST
    if owner[1:2] and owner[1].isdigit() and owner[3:] == [socket.gethostname()] and not is_alive(int(owner[1])):
        return "interrupted", f"process {owner[1]} has ended without a word"
    quiet = time.time() - max((p.stat().st_mtime for p in folder.glob("*.json*")), default=time.time())
    return "running", f"no sign of it for {quiet / 3600:.1f} hours" if quiet > QUIET_SECONDS else ""
