"""Images per second of vae-lab's training path against a bare PyTorch loop, and the peak memory of a run.

Both paths train the same network from the same config, with the same optimizer, on the same training images and for
the same number of batches. They run in one process, in interleaved rounds whose order alternates, so that
a machine that is busy or slows down meets both.

    bare        uint8 images in memory on the device, one randperm an epoch, gather, forward, loss, backward, step
    vae-lab     `build` and `fit` of a run, with metrics, progress bar, checkpoints, validation and pictures

    python benchmarks/throughput.py --data FOLDER_OF_MNIST

Where there is no MNIST, the images are sprites of the same size.
"""

import argparse
import contextlib
import gc
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from omegaconf import DictConfig
from torch import Tensor
from torch.nn import functional as F

from vae_lab.__main__ import CONF
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import Experiment, build
from vae_lab.training.train import fit, quiet_lightning

CASES = {  # name: overrides
    "mlp": ["experiment=mlp_vae_mnist"],
    "conv": ["experiment=conv_vae_mnist", "dataset.fit=pad"],
}
ACCELERATOR = {"cpu": "cpu", "cuda": "gpu"}
POSITIONS = 32  # of the sprites
read = {}  # images by source, so that only the first round reads or draws them


class Round(NamedTuple):
    """What one interleaved round measured, in seconds."""

    bare: float
    train: float  # vae-lab's training alone, what result.json calls train_seconds
    whole: float  # vae-lab's whole `fit`, with validation, checkpoints and pictures


def main() -> None:
    """Measure the chosen cases and print a table."""
    args = parse_arguments()
    quiet_lightning()
    if args.threads:
        torch.set_num_threads(args.threads)
    peak = None if args.no_memory else peak_memory_gb(args)  # first, while this process is small
    measured = {case: measure(args, case) for case in args.cases}
    print(f"\n{describe_machine(args.device)}")
    print("python", *sys.argv)
    for case, rounds in measured.items():
        print(f"{case:6}{summary(*rounds)}, {args.rounds} rounds")
    if peak is not None:
        print(f"peak memory of a fresh process, mlp, one epoch: {peak:.2f} GB")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="the folder that holds MNIST/")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--epochs", type=int, default=1, help="in each round")
    parser.add_argument("--steps", type=int, help="batches in each epoch at most; all, if not given")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", choices=ACCELERATOR, default="cpu")
    parser.add_argument("--threads", type=int, help="of both paths; torch's default, if not given")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory")
    return parser.parse_args(arguments)


def overrides(args: argparse.Namespace, case: str, positions: int = POSITIONS) -> list[str]:
    """The config of a case as overrides."""
    settings = [*CASES[case], *images(args.data, positions), f"dataset.batch_size={args.batch_size}", "logger=none"]
    steps = [f"trainer.limit_train_batches={args.steps}"] if args.steps else []
    return [*settings, *steps, f"trainer.accelerator={ACCELERATOR[args.device]}", f"trainer.max_epochs={args.epochs}"]


def images(data: str | Path, positions: int) -> list[str]:
    """MNIST where it is; sprites, 96 positions^2 of them, where it is not."""
    if (Path(data) / "MNIST").is_dir():
        return [f"data_root={data}"]
    return ["dataset=sprites", "dataset.image_size=32", f"dataset.source.positions={positions}"]


def measure(args: argparse.Namespace, case: str, positions: int = POSITIONS) -> tuple[list[Round], int]:
    """Run the rounds of a case, after one that warms up.

    Returns:
        The rounds, and the number of images that each path trains on in a round.
    """
    rounds = []
    for i in range(args.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            cfg = compose_config([*overrides(args, case, positions), f"run_dir={folder}"])
            bare, lab = prepare(cfg), prepare(cfg)
            steps = min(args.steps or sys.maxsize, -(-len(bare.data.splits["train"]) // args.batch_size))
            if i % 2:
                seconds = train_bare(bare, args.epochs, steps, args.device)
                train, whole = train_lab(cfg, lab, args.device)
            else:
                train, whole = train_lab(cfg, lab, args.device)
                seconds = train_bare(bare, args.epochs, steps, args.device)
        if i:
            rounds.append(Round(seconds, train, whole))
            ratio = f"ratio {seconds / train:.3f}"
            print(f"{case} {i}: bare {seconds:.2f} s, vae-lab {train:.2f} s, {ratio}", file=sys.stderr, flush=True)
    return rounds, lab.stopwatch.images


def compose_config(settings: list[str]) -> DictConfig:
    """The config that the command line would compose."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", settings)


def prepare(cfg: DictConfig) -> Experiment:
    """Build an experiment and read its images, before any clock runs."""
    with Preemption() as preemption:
        experiment = build(cfg, preemption)
    source, key = experiment.data.source, str(cfg.dataset.source)
    if key not in read:
        read[key] = source.read()
    source.read = lambda: read[key]
    experiment.data.setup("fit")
    gc.collect()
    return experiment


def train_bare(experiment: Experiment, epochs: int, steps: int, device: str) -> float:
    """Train without vae-lab's and Lightning's loops.

    Returns:
        Seconds.
    """
    vae, batch_size = experiment.lit.vae.to(device).train(), experiment.data.batch_size
    optimizer = experiment.lit.optimizer(vae.parameters(), lr=experiment.lit.lr)
    split = experiment.data.splits["train"]
    pixels = split.pixels[split.index].to(device)  # uint8 (N, C, H, W)
    # Lightning sets this at its import; without a GPU it slows every step of a fused optimizer down.
    nvml_check = os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    start = clock(device)
    for _ in range(epochs):
        order = torch.randperm(len(pixels), device=device)
        for index in order.split(batch_size)[:steps]:
            x = pixels.index_select(0, index).float().div_(255)
            negative_elbo(vae, x).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seconds = clock(device) - start
    if nvml_check is not None:
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = nvml_check
    return seconds


def negative_elbo(vae: torch.nn.Module, x: Tensor) -> Tensor:
    """BCE on logits plus the KL to N(0, I) in closed form, nats per image: (B, C, H, W) -> 0-dim."""
    mean, log_var = vae.encoder(x).chunk(2, dim=1)
    logits = vae.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
    bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
    return (bce + kl) / len(x)


class TrainClock(Callback):
    """Seconds of training alone, all work of the device included, which `result.json` counts only as it is given."""

    def __init__(self, device: str):
        self.device, self.seconds, self.since = device, 0.0, None

    def on_train_epoch_start(self, trainer, lit) -> None:
        self.since = clock(self.device)

    def pause(self, trainer, lit) -> None:
        if self.since is not None:
            self.seconds, self.since = self.seconds + clock(self.device) - self.since, None

    on_validation_start = on_train_epoch_end = pause


def train_lab(cfg: DictConfig, experiment: Experiment, device: str) -> tuple[float, float]:
    """Train as `vae-lab` does, with its progress bar drawn into a file as if that were a terminal.

    Returns:
        Seconds of training alone, and of everything in `fit`.
    """
    training = TrainClock(device)
    experiment.trainer.callbacks.insert(0, training)
    path = Path(cfg.run_dir) / "terminal.txt"
    os.environ["FORCE_COLOR"] = "1"  # rich then takes the file for a terminal
    with open(path, "w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
        start = clock(device)
        fit(cfg, experiment, checkpoint=None)
        whole = clock(device) - start
    del os.environ["FORCE_COLOR"]
    assert path.stat().st_size, "the progress bar was not drawn"
    for name in ("metrics.jsonl", "checkpoints/last.ckpt"):
        assert (path.parent / name).exists(), f"{name} was not written"
    return training.seconds, whole


def clock(device: str) -> float:
    """Seconds, when all work given to the device so far is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_gb(args: argparse.Namespace) -> float:
    """The largest resident size of the command `vae-lab` in the MLP case, one epoch, in GB (10^9 bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*overrides(args, "mlp"), "trainer.max_epochs=1", f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "vae_lab", *settings], check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def summary(rounds: list[Round], images: int) -> str:
    """Medians over the rounds, with the quartiles of the ratio."""
    bare, lab = (images / median(seconds) for seconds in ([r.bare for r in rounds], [r.train for r in rounds]))
    ratio = spread([r.bare / r.train for r in rounds], 3)
    whole = median(r.bare / r.whole for r in rounds)
    return f"ratio {ratio}, bare {bare:.0f} images/s, vae-lab {lab:.0f} images/s, whole fit {whole:.3f}"


def spread(values: list[float], digits: int = 1) -> str:
    """The median with the quartiles."""
    low, _, high = quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    return f"{median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def describe_machine(device: str) -> str:
    """Cores, versions and threads."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
