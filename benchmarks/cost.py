"""What an epoch, a sweep and the start of a command cost as the work grows: seconds of processor time, and memory.

    python benchmarks/cost.py [--only images pixels latents jobs runs] [--repeats 3]

Every measurement is a forked process of its own, which has imported everything already: seconds are of the user and the
system, of all processes that it starts, and of several repeats the least disturbed counts. A plot of each is written
into `benchmarks/results/`, its figures are printed.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from throughput import compose_config

import vae_lab.compare.command  # noqa: F401, so that no measurement imports it
import vae_lab.sweep.launcher  # noqa: F401
from vae_lab.__main__ import main as call
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build
from vae_lab.training.train import fit, quiet_lightning

RESULTS = Path(__file__).parent / "results"
QUIET = ["logger=none", "trainer=cpu", "callbacks.gallery=null", "callbacks.summary=null", "callbacks.progress=null"]
TINY = [*QUIET, "model.hidden_dims=[8]", "latent_dim=2", "trainer.limit_val_batches=1"]
SUBREAPER = 36  # of Linux's prctl: what outlives its parent becomes a child of this process
EPOCHS = 3  # of which the first is not counted
COLOURS = ("#3b6ea5", "#c8743a", "#5b8f5b", "#8a6ba8")


class Cost(NamedTuple):
    """What one measurement took."""

    seconds: float
    megabytes: float


def main() -> None:
    """Measure what is asked for, print it and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PLOTS, default=list(PLOTS))
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_lightning()
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    machine = f"{platform.machine()}, torch {torch.__version__}, 1 thread, {date.today()}"
    print(machine)
    for name in args.only:
        title, axis, unit, measure = PLOTS[name]
        lines: dict[str, list[tuple[int, Cost]]] = {}
        for _ in range(args.repeats):
            for what, size, cost in measure():
                before = dict(lines.get(what, [])).get(size, cost)
                least = Cost(*map(min, zip(cost, before, strict=True)))
                lines[what] = [*(pair for pair in lines.get(what, []) if pair[0] != size), (size, least)]
        print(f"{title}\n| {axis} | {unit} | MB |\n| --- | --- | --- |")
        for what, points in lines.items():
            for size, cost in points:
                print(f"| {size:,} {what} | {cost.seconds:.3g} | {cost.megabytes:.0f} |", flush=True)
        draw(RESULTS / f"cost_{name}.png", title, axis, unit, lines, machine)


def forked(work: Callable[[Path], float | None], folder: Path) -> Cost:
    """Do some work in a process of its own; its seconds are what it returns, or else all that it took."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setpgid(0, 0)
            os.chdir(folder)
            sys.modules["__main__"].__spec__ = find_spec("vae_lab.__main__")  # the jobs of a sweep import it
            log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            os.write(write, json.dumps(work(folder)).encode())
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    os.close(write)
    said = os.read(read, 100)
    os.close(read)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, (folder / "log.txt").read_text()
    spent = usage.ru_utime + usage.ru_stime
    with contextlib.suppress(ChildProcessError):
        while True:  # until none of its group is left: the jobs of a sweep outlive it
            _, _, other = os.wait4(-child, 0)
            spent += other.ru_utime + other.ru_stime
    seconds = json.loads(said)
    return Cost(spent if seconds is None else seconds, usage.ru_maxrss / 1024)


def command(*arguments: str) -> Callable[[Path], None]:
    """The work of a command line."""

    def work(folder: Path) -> None:
        sys.argv = ["vae-lab", *arguments]
        with contextlib.suppress(SystemExit):
            call()
            return
        raise RuntimeError("the command failed")

    return work


class Clock(Callback):
    """Processor time at the beginning of each epoch."""

    def __init__(self):
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer, lit) -> None:
        self.times.append(time.process_time())


def epoch(*settings: str) -> Callable[[Path], float]:
    """The work of training; its seconds are those of an epoch, with its validation and checkpoints."""

    def work(folder: Path) -> float:
        cfg = compose_config([*QUIET, f"trainer.max_epochs={EPOCHS}", f"run_dir={folder}/run", *settings])
        clock = Clock()
        with Preemption() as preemption:
            experiment = build(cfg, preemption)
        experiment.data.setup("fit")
        experiment.trainer.callbacks.insert(0, clock)
        fit(cfg, experiment, checkpoint=None)
        return median(np.diff(clock.times)[1:])

    return work


def pictures(folder: Path, num: int, side: int) -> list[str]:
    """A file of grey noise as a dataset."""
    pixels = np.random.default_rng(0).integers(0, 256, (num, side, side), np.uint8)
    np.save(folder / "images.npy", pixels)
    return ["dataset=arrays", f"dataset.root={folder}/images.npy", f"dataset.image_size={side}"]


def images():
    for num in (2_000, 8_000, 32_000, 128_000):
        with tempfile.TemporaryDirectory() as name:
            yield "", num, forked(epoch(*pictures(Path(name), num, 28)), Path(name))


def pixels():
    for side in (16, 32, 64, 128):
        with tempfile.TemporaryDirectory() as name:
            yield "", side**2, forked(epoch(*pictures(Path(name), 500, side), "model=conv"), Path(name))


def latents():
    for dim in (2, 16, 128, 1024):
        with tempfile.TemporaryDirectory() as name:
            yield "", dim, forked(epoch(*pictures(Path(name), 8_000, 28), f"latent_dim={dim}"), Path(name))


def jobs():
    for num in (2, 8, 32):
        with tempfile.TemporaryDirectory() as name:
            seeds = ",".join(map(str, range(num)))
            total = forked(command("-m", f"seed={seeds}", "trainer.max_steps=1", *TINY), Path(name))
            yield "", num, Cost(total.seconds / num, total.megabytes)


def runs():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        forked(command(*TINY, "trainer.max_steps=1", "hydra.run.dir=outputs/first"), folder)
        forked(command(*TINY, "trainer.max_steps=1", "hydra.run.dir=outputs/second", "seed=1"), folder)
        made = 2
        for num in (2, 100, 1_000, 10_000):
            for number in range(made, num):
                old = (
                    f"sweeps/old{number % 40}/seed={number}" if number % 2 else f"2026-01-{number % 28 + 1:02}/{number}"
                )
                copy_run(folder / "outputs/first", folder / "outputs" / old)
            made = num
            new = f"hydra.run.dir=outputs/new{num}"
            yield "start of a run", num, forked(command(*TINY, "trainer.max_steps=1", new), folder)
            longer = command(f"resume=outputs/new{num}", "trainer.max_steps=2")
            yield "its continuation", num, forked(longer, folder)
            pair = command("-m", "seed=0,1", "trainer.max_steps=1", f"sweep.name=new{num}", *TINY)
            yield "sweep of two", num, forked(pair, folder)
            yield "comparison of two", num, forked(command("compare", "outputs/first", "outputs/second"), folder)


def copy_run(run: Path, other: Path) -> None:
    """A run as another folder with the same files."""
    for path in run.rglob("*"):
        if path.is_file():
            target = other / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)


PLOTS: dict[str, tuple[str, str, str, Callable]] = {
    "images": ("Images in the dataset (MLP, 28x28)", "images", "CPU seconds per epoch", images),
    "pixels": ("Size of an image (conv, 500 images)", "pixels", "CPU seconds per epoch", pixels),
    "latents": ("Size of the latent (MLP, 8,000 images)", "latents", "CPU seconds per epoch", latents),
    "jobs": ("Jobs of a sweep", "jobs", "CPU seconds per job", jobs),
    "runs": ("Past runs in outputs/", "past runs", "CPU seconds per command", runs),
}


def draw(path: Path, title: str, axis: str, unit: str, lines: dict[str, list[tuple[int, Cost]]], machine: str) -> None:
    """Seconds and memory against size, side by side."""
    figure = Figure((7, 2.9), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, label, place in zip(figure.subplots(1, 2), (unit, "peak memory, MB"), (0, 1), strict=True):
        for (what, points), colour in zip(lines.items(), COLOURS, strict=False):
            sizes, values = zip(*((size, cost[place]) for size, cost in points), strict=True)
            axes.plot(sizes, values, "o-", color=colour, markersize=4, linewidth=1.4, label=what)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        if place == 0 and values[-1] > 4 * values[0]:
            axes.set_yscale("log")
            axes.plot(sizes, [values[-1] * size / sizes[-1] for size in sizes], ":", color="#999999", linewidth=1)
            axes.text(sizes[0], values[-1] * sizes[0] / sizes[-1], "   in proportion", color="#777777", fontsize=7)
        else:
            axes.set_ylim(0, 1.25 * max(cost[place] for points in lines.values() for _, cost in points))
        axes.set_xlabel(axis, fontsize=8)
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        figure.axes[0].legend(fontsize=7, frameon=False, ncols=2)
    figure.supxlabel(machine, x=0.995, ha="right", fontsize=6, color="#888888")
    FigureCanvasAgg(figure).print_png(path)


if __name__ == "__main__":
    main()
