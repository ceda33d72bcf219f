"""What a run does on a GPU, as a table, within minutes and without network; a dry run where there is no GPU.

    python benchmarks/gpu.py [--data FOLDER_OF_MNIST] [--only NAME] [--budget SECONDS]

Where there is no MNIST, the images are sprites. A row that fails says why and does not stop the others; a row for which
too little of the budget is left is not run. The exit code is 1 if a row failed. On a CPU every row is small, and those
that need a GPU say so.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import inputs
import throughput
import torch
from faults import shorten
from programs import LAB, TIMEOUT, Done, finish
from trial import SKIPPED, SURVIVED, NotTried, Trial, continued

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
ACCELERATOR = f"trainer.accelerator={throughput.ACCELERATOR[DEVICE]}"
HERE = LAB._replace(words=LAB.words | {"epochs": ("trainer.max_epochs={}", "trainer.limit_val_batches=1", ACCELERATOR)})
# One batch of the digits whose first activations take 193 GB, more than any GPU has, with few parameters.
HUGE = [
    *("dataset.image_size=256", "dataset.batch_size=1437", "model=conv", "model.channels=[2048,8]"),
    *("model.kernel_sizes=[4,8]", "model.strides=[2,8]", "model.hidden_dims=[]", "latent_dim=2"),
]
POSITIONS = throughput.POSITIONS if ON_GPU else 4  # of the sprites
CALM = ["logger=none", "callbacks.gallery=null", "callbacks.summary=null"]


class Failed(Exception):  # noqa: N818, a verdict on what was tried
    """A row's promise was not kept; the words say how."""


def default_run(trial: Trial) -> str:
    """What `vae-lab` does without an argument."""
    return trained(trial, *([] if ON_GPU else ["trainer.max_epochs=3"]))


def recipe(trial: Trial, precision: str) -> str:
    """The convolutional recipe, clipped."""
    if precision == "16-mixed" and not ON_GPU:
        raise NotTried("16-mixed needs a GPU")
    short = ["trainer.max_epochs=2"] if ON_GPU else ["trainer.max_steps=10"]
    clipped = [f"trainer.precision={precision}", "trainer.gradient_clip_val=1", *CALM]
    return trained(trial, *throughput.CASES["conv"], *throughput.images(trial.data, POSITIONS), *clipped, *short)


def compiled(trial: Trial) -> str:
    """torch.compile, which takes its time to compile."""
    return trained(trial, "compile=true", *CALM, f"trainer.max_epochs={30 if ON_GPU else 2}", timeout=240)


def trained(trial: Trial, *overrides: str, timeout: float = TIMEOUT) -> str:
    """Run a command to its end.

    Returns:
        The bound, the speed, and the first warning.

    Raises:
        Failed: with the line that says why.
    """
    done = finish(trial.start([ACCELERATOR, f"hydra.run.dir={trial.run}", *overrides]), timeout)
    if done.exit_code != 0:
        raise Failed(f"{done.ending}: {done.reason}")
    result = json.loads((trial.run / "result.json").read_text())
    speed = f"{result['images_per_second']:.0f} images/s"
    return f"{result['steps']} steps, elbo {result['val/elbo']:.1f}, {speed}{warned(done)}"


def warned(done: Done) -> str:
    """The first line on stderr that speaks of a warning, none of which is wanted."""
    lines = [line for line in done.errors.splitlines() if re.search("warn", line, re.IGNORECASE)]
    return f"; warned: {shorten(lines[0], 100)}" if lines else ""


def kill_and_resume(trial: Trial, model: str) -> str:
    """SIGKILL within an epoch, then `resume=`: equal parameters, as two undisturbed runs have."""
    trial.program = HERE._replace(always=(*LAB.always, f"model={model}"))
    inputs.ordinary_pictures(trial.shared / "pictures" / "a")
    trial.run_undisturbed()
    trial.take_killed_run()
    verdict, evidence = continued(trial, trial.resume())
    if verdict != SURVIVED:
        raise Failed(evidence)
    return evidence


def sweep(trial: Trial, jobs: int) -> str:
    """A sweep of the launcher `local`, two jobs on each device; on a CPU one for each core."""
    if jobs == 2 and not ON_GPU:
        raise NotTried("no device to share")
    seeds = f"seed={','.join(map(str, range(jobs)))}"
    where = [ACCELERATOR, f"hydra.sweep.dir={trial.run}", "sweep.jobs_per_device=2"]
    length = f"trainer.max_epochs={10 if ON_GPU else 1}"
    done = finish(trial.start(["-m", "hydra/launcher=local", seeds, *where, *CALM, length]))
    if done.exit_code != 0:
        raise Failed(f"{done.ending}: {done.reason}")
    folders = [path.parent for path in trial.run.rglob("result.json")]
    times = [json.loads((folder / "status.json").read_text())["times"][-1] for folder in folders]
    most = max(sum(a["started"] <= b["started"] < a["ended"] for a in times) for b in times)
    if len(folders) != jobs or ON_GPU and most < 2:
        raise Failed(f"{len(folders)} of {jobs} jobs have a result, at most {most} at a time")
    return f"{jobs} jobs, up to {most} at a time{warned(done)}"


def out_of_memory(trial: Trial) -> str:
    """A batch that no memory holds: exit code 1 and a line of advice."""
    limit = () if ON_GPU else ("sh", "-c", 'ulimit -v 16000000 && exec "$@"', "sh")
    done = finish(trial.start([ACCELERATOR, f"hydra.run.dir={trial.run}", *HUGE, *CALM], before=limit))
    if done.exit_code != 1 or "out of memory" not in done.reason or "dataset.batch_size=718" not in done.reason:
        raise Failed(f"{done.ending}: {done.reason}")
    return f"{done.ending}: {done.reason}"


def equal_paths(trial: Trial, model: str) -> str:
    """The same parameters whatever the number of steps in an execution, and from a CUDA graph."""
    ways = {"one step": ["trainer.steps_per_execution=1"], "auto": [], "CUDA graph": ["trainer.cuda_graph=true"]}
    length = f"trainer.max_steps={200 if ON_GPU else 5}"
    started = {
        way: trial.start([f"model={model}", ACCELERATOR, f"hydra.run.dir={trial.run}/{way}", *CALM, length, *settings])
        for way, settings in ways.items()
    }
    ended = {way: finish(process) for way, process in started.items()}
    if broken := [f"{way}: {done.reason}" for way, done in ended.items() if done.exit_code]:
        raise Failed("; ".join(broken))
    hashes = {way: json.loads((trial.run / way / "result.json").read_text())["parameters_sha256"] for way in ways}
    is_captured = "is a CUDA graph" in (trial.run / "CUDA graph" / "train.log").read_text()
    if ON_GPU and not is_captured:
        raise Failed("nothing was captured")
    if hashes["auto"] != hashes["one step"]:
        raise Failed("the parameters depend on the steps in an execution")
    same = "the same" if hashes["CUDA graph"] == hashes["auto"] else "other"
    return f"the same parameters for any number of steps; the CUDA graph has {same}"


def speed(trial: Trial, case: str, batch_size: int, precision: str = "32-true") -> str:
    """Images per second against a bare loop, in interleaved rounds."""
    size = ["--rounds", "3", "--steps", "300", "--epochs", "2"] if ON_GPU else ["--rounds", "1", "--steps", "1"]
    data = trial.data if ON_GPU else trial.folder  # where there is no MNIST, but few sprites
    paths = ["--paths", "bare", "vae-lab", *(["graph"] if ON_GPU else [])]
    setting = ["--set", f"trainer.precision={precision}", "callbacks.gallery=null", "callbacks.summary=null"]
    args = throughput.parse_arguments(["--data", str(data), "--device", DEVICE, *size, *paths, *setting])
    rounds, images = throughput.measure(args, case, batch_size, POSITIONS)
    bare = images / median(seconds["bare"] for seconds in rounds)
    ratios = [
        f"{path} {throughput.spread([seconds['bare'] / seconds[path] for seconds in rounds], 3)}"
        for path in rounds[0]
        if path not in ("bare", "whole")
    ]
    return f"bare {bare:.0f} images/s; ratio {', '.join(ratios)}"


class Row(NamedTuple):
    """One line of the table: what is tried, seconds that it takes on a GPU and on a CPU, and the function."""

    what: str
    on_gpu: float
    on_cpu: float
    run: Callable[[Trial], str]


ROWS = [
    Row("default run", 25, 15, default_run),
    *(Row(f"conv recipe, {name}, clipped", 25, 15, partial(recipe, precision=name))
      for name in ("32-true", "bf16-mixed", "16-mixed")),
    *(Row(f"kill and resume, {model}", 50, 35, partial(kill_and_resume, model=model)) for model in ("mlp", "conv")),
    Row("two jobs share a device", 25, 0, partial(sweep, jobs=2)),
    Row("sweep of eight, two on a device", 40, 25, partial(sweep, jobs=8)),
    Row("out of memory", 25, 10, out_of_memory),
    *(Row(f"equal paths, {model}", 25, 25, partial(equal_paths, model=model)) for model in ("mlp", "conv")),
    *(Row(f"throughput, {case}, batch {size}", 25, 5, partial(speed, case=case, batch_size=size))
      for case in ("mlp", "conv") for size in (64, 512, 4096)),
    Row("throughput, conv, batch 512, bf16-mixed", 25, 5, partial(speed, case="conv", batch_size=512,
                                                                   precision="bf16-mixed")),
    *(Row(f"throughput, {case}, batch 64", 25, 5, partial(speed, case=case, batch_size=64)) for case in ("gan", "vq")),
    Row("compile=true", 60, 40, compiled),
]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Try the chosen rows and print the table.

    Returns:
        1 if a row failed; else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("VAE_LAB_DATA", "data"), help="holds MNIST/")
    parser.add_argument("--only", default="", metavar="NAME", help="the rows with this in their name")
    parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="for all rows together")
    args = parser.parse_args(arguments)
    rows = [row for row in ROWS if args.only in row.what]
    if args.list:
        print(*(row.what for row in rows), sep="\n")
        return 0
    throughput.quiet_lightning()
    versions = f"python {platform.python_version()}, lightning {importlib.metadata.version('lightning')}"
    print(f"{throughput.describe_machine(DEVICE)}, {versions}")
    images = "MNIST" if (args.data / "MNIST").is_dir() else "sprites"
    print(f"{'a GPU' if ON_GPU else 'no GPU: a dry run'}; images: {images}\n", flush=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        deadline = time.monotonic() + args.budget
        for number, row in enumerate(rows):
            start = time.monotonic()
            fits = start + (row.on_gpu if ON_GPU else row.on_cpu) <= deadline
            trial = Trial(HERE, Path(folder) / str(number), Path(folder) / f"{number}.shared", args.data.absolute())
            result, figures = attempt(row, trial) if fits else ("not run", "time")
            results.append(result)
            print(f"{row.what:33}{result:8}{time.monotonic() - start:6.1f} s  {figures}", flush=True)
    return int("FAILED" in results)


def attempt(row: Row, trial: Trial) -> tuple[str, str]:
    """Run a row.

    Returns:
        The result, and the figures or what failed.
    """
    trial.shared.mkdir()
    try:
        return "ok", shorten(row.run(trial), 300)
    except NotTried as reason:
        return ("skipped" if reason.verdict == SKIPPED else "FAILED"), shorten(str(reason), 300)
    except Failed as reason:
        return "FAILED", shorten(str(reason), 300)
    except (Exception, SystemExit) as error:  # whatever it is, the other rows are tried
        return "FAILED", shorten(f"{type(error).__name__}: {error}", 300)


if __name__ == "__main__":
    sys.exit(main())
