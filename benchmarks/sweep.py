"""What a sweep costs: vae-lab's launcher, Hydra's basic one, and a fresh process for each job. See README.md."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

GRID = {"loss": ["bce", "mse"], "latent_dim": ["2", "4", "8"], "seed": ["0", "1", "2", "3"]}  # 24 jobs
FIXED = ["trainer.max_epochs=3", "trainer=cpu", "logger=none", "callbacks.gallery=null", "callbacks.summary=null"]


def vae_lab(folder: Path, *arguments: str, threads: int | None = None) -> None:
    """Run the command in a folder; fails if it does."""
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "vae_lab", *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def sweep(folder: Path, launcher: str) -> None:
    """All jobs with one command."""
    grid = [f"{key}={','.join(values)}" for key, values in GRID.items()]
    vae_lab(folder, "-m", f"hydra/launcher={launcher}", *grid, *FIXED)


def fresh(folder: Path) -> None:
    """One command after the other."""
    for values in product(*GRID.values()):
        vae_lab(folder, *(f"{key}={value}" for key, value in zip(GRID, values, strict=True)), *FIXED)


WAYS = {
    "local": lambda folder: sweep(folder, "local"),
    "basic": lambda folder: sweep(folder, "basic"),
    "fresh": fresh,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, run in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                run(Path(folder))
                seconds[way].append(time.perf_counter() - start)
                trained = len(list(Path(folder).rglob("result.json")))
            print(f"{way}: {seconds[way][-1]:.1f} s, {trained} jobs", file=sys.stderr, flush=True)
    print("| | seconds | local is |\n| --- | --- | --- |")
    for way, taken in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds["local"], taken, strict=True)]
        spread = f"({min(taken):.1f} to {max(taken):.1f})"
        print(f"| {way} | {statistics.median(taken):.1f} {spread} | {statistics.median(ratios):.2f} of it |")


if __name__ == "__main__":
    main()
