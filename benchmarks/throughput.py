"""Images per second of training, side by side: a bare PyTorch loop, Lightning in two ways, and vae-lab.

All paths train the same network from the same config with the same optimizer, on the same training images and for the
same number of batches, in one process and in interleaved rounds whose order changes, so that a machine that is busy or
slows down meets all of them.

    bare        uint8 images in memory on the device, one randperm an epoch, gather, forward, loss, backward, step
    barebones   the same in a LightningModule under `Trainer(barebones=True)`, which switches everything off
    tutorial    as tutorials show it: a PIL image for each item, ToTensor, a DataLoader, `self.log`, the Trainer's bar
    vae-lab     `build` and `fit` of a run, with its record, progress bar, checkpoints, validation and pictures
    graph       the same with trainer.cuda_graph=true, on a GPU

    python benchmarks/throughput.py --data FOLDER_OF_MNIST

Where there is no MNIST, the images are sprites of the same size.
"""

import argparse
import contextlib
import gc
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.functional import to_pil_image, to_tensor

from vae_lab.__main__ import CONF
from vae_lab.runs.process import keep_memory
from vae_lab.runs.signals import Preemption
from vae_lab.training.build import Experiment, build
from vae_lab.training.train import fit, quiet_lightning

COLOUR = ["dataset=sprites", "dataset.image_size=32", "dataset.channels=3"]
CASES = {  # name: overrides
    "mlp": ["experiment=mlp_vae_mnist"],
    "conv": ["experiment=conv_vae_mnist", "dataset.fit=pad"],
    "resnet": [*COLOUR, "model=resnet", "latent_dim=16"],
    "gan": ["experiment=gan_mnist"],
    "vq": [*COLOUR, "model=conv", "model.spatial=true", "posterior=vq", "posterior.revive_below=0", "loss=mse"],
}
PATHS = ("bare", "barebones", "tutorial", "vae-lab", "graph")
ACCELERATOR = {"cpu": "cpu", "cuda": "gpu"}
POSITIONS = 32  # of the sprites
read = {}  # images by source, so that only the first round reads or draws them
Seconds = dict[str, float]  # of training, by path; of the whole fit of vae-lab as "whole"


def main() -> None:
    """Measure the chosen cases and print a table."""
    args = parse_arguments()
    quiet_lightning()
    keep_memory()  # as the command does
    if args.threads:
        torch.set_num_threads(args.threads)
    peak = None if args.no_memory else peak_memory_gb(args)  # first, while this process is small
    print(describe_machine(args.device))
    print("python", *sys.argv)
    for case in args.cases:
        for size in args.batch_size:
            rounds, images = measure(args, case, size)
            print(f"{case}, batch {size}, {args.rounds} rounds\n{table(rounds, images)}", flush=True)
    if peak is not None:
        print(f"peak memory of a fresh process, mlp, one epoch: {peak:.2f} GB")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="the folder that holds MNIST/")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["mlp", "conv"])
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS[:-1]))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--epochs", type=int, default=1, help="in each round")
    parser.add_argument("--steps", type=int, help="batches in each epoch at most; all, if not given")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[64])
    parser.add_argument("--device", choices=ACCELERATOR, default="cpu")
    parser.add_argument("--threads", type=int, help="of all paths; torch's default, if not given")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all paths")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak memory")
    return parser.parse_args(arguments)


def overrides(args: argparse.Namespace, case: str, batch_size: int, positions: int = POSITIONS) -> list[str]:
    """The config of a case as overrides."""
    data = [f"dataset.source.positions={positions}"] if COLOUR[0] in CASES[case] else images(args.data, positions)
    settings = [*CASES[case], *data, f"dataset.batch_size={batch_size}", "logger=none", *args.set]
    steps = [f"trainer.limit_train_batches={args.steps}"] if args.steps else []
    return [*settings, *steps, f"trainer.accelerator={ACCELERATOR[args.device]}", f"trainer.max_epochs={args.epochs}"]


def images(data: str | Path, positions: int) -> list[str]:
    """MNIST where it is; sprites, 96 positions^2 of them, where it is not."""
    if (Path(data) / "MNIST").is_dir():
        return [f"data_root={data}"]
    return ["dataset=sprites", "dataset.image_size=32", f"dataset.source.positions={positions}"]


def measure(
    args: argparse.Namespace, case: str, batch_size: int, positions: int = POSITIONS
) -> tuple[list[Seconds], int]:
    """Run the rounds of a case, after one that warms up.

    Returns:
        The seconds of each round, and the number of images that each path trains on in a round.
    """
    rounds = []
    for i in range(args.rounds + 1):
        seconds = {}
        for path in args.paths[i % len(args.paths) :] + args.paths[: i % len(args.paths)]:
            with tempfile.TemporaryDirectory() as folder:
                graph = ["trainer.cuda_graph=true"] if path == "graph" else []
                cfg = compose_config([*overrides(args, case, batch_size, positions), *graph, f"run_dir={folder}"])
                experiment = prepare(cfg)
                total = len(experiment.data.splits["train"])
                steps = min(args.steps or sys.maxsize, -(-total // batch_size))
                if path in ("vae-lab", "graph"):
                    seconds[path], whole = train_lab(cfg, experiment, args.device)
                    seconds.setdefault("whole", whole)
                else:
                    run = {"bare": train_bare, "barebones": train_barebones, "tutorial": train_tutorial}[path]
                    seconds[path] = run(experiment, args.epochs, steps, args.device)
        if i:
            rounds.append(seconds)
            print(case, i, *(f"{path} {value:.2f} s" for path, value in seconds.items()), file=sys.stderr, flush=True)
    return rounds, args.epochs * min(steps * batch_size, total)


def compose_config(settings: list[str]) -> DictConfig:
    """The config that the command line would compose."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", settings)


def prepare(cfg: DictConfig) -> Experiment:
    """Build an experiment and read its images, before any clock runs."""
    with Preemption() as preemption:
        experiment = build(cfg, preemption)
    source, key = experiment.data.source, OmegaConf.to_yaml(cfg.dataset.source, resolve=True)
    if key not in read:
        read[key] = source.read()
    source.read = lambda: read[key]
    experiment.data.setup("fit")
    gc.collect()
    return experiment


def train_bare(experiment: Experiment, epochs: int, steps: int, device: str) -> float:
    """Train without any loop but this one.

    Returns:
        Seconds.
    """
    lit, batch_size = experiment.lit.to(device).train(), experiment.data.batch_size
    optimizers = lit.new_optimizers()
    split = experiment.data.splits["train"]
    pixels = split.pixels[split.index].to(device)  # uint8 (N, C, H, W)
    # Lightning sets this at its import; without a GPU it slows every step of a fused optimizer down.
    nvml_check = os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    start = clock(device)
    for _ in range(epochs):
        order = torch.randperm(len(pixels), device=device)
        for index in order.split(batch_size)[:steps]:
            x = pixels.index_select(0, index).float().div_(255)
            computed = losses(lit.vae, lit.adversary, x)
            for optimizer in optimizers:
                with cast(experiment, device):
                    loss = next(computed)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    seconds = clock(device) - start
    if nvml_check is not None:
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = nvml_check
    return seconds


def cast(experiment: Experiment, device: str) -> contextlib.AbstractContextManager:
    """Autocast, where the run is in bf16-mixed."""
    is_mixed = experiment.trainer.precision == "bf16-mixed"
    return torch.autocast(device, torch.bfloat16) if is_mixed else contextlib.nullcontext()


def losses(vae: nn.Module, adversary: nn.Module | None, x: Tensor) -> Iterator[Tensor]:
    """The loss of each optimizer on images (B, C, H, W), each computed when it is asked for."""
    if adversary is not None:
        yield from game(vae, adversary, x)
    elif hasattr(vae.posterior, "book"):
        yield quantized(vae, x)
    else:
        yield negative_elbo(vae, x)


def game(generator: nn.Module, discriminator: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """The non-saturating loss of a generator, then that of a discriminator of standardised images."""

    def judge(images: Tensor) -> Tensor:
        return discriminator((images - x.mean()) / x.std(correction=0))

    def draw() -> Tensor:
        return generator.decoder(torch.randn(len(x), generator.latent_dim).to(x.device)).sigmoid()

    discriminator.requires_grad_(False)
    yield F.softplus(-judge(draw())).mean()
    discriminator.requires_grad_(True)
    with torch.no_grad():
        fake = draw()
    yield F.softplus(-judge(x)).mean() + F.softplus(judge(fake)).mean()


def quantized(vae: nn.Module, x: Tensor) -> Tensor:
    """A VQ-VAE with a book of running means: Gaussian pixels of variance 1/2, the commitment, log K for each code."""
    posterior = vae.posterior
    z = vae.encoder(x).float().movedim(1, -1)  # (B, h, w, D)
    flat = z.detach().flatten(0, -2)
    with torch.no_grad():
        book, use = posterior.book, posterior.use
        index = (book.square().sum(1) - 2 * flat @ book.T).argmin(1)
        codes = F.embedding(index, book).view_as(z)
        one_hot = F.one_hot(index, len(book)).float()
        count = one_hot.sum(0)
        use.lerp_(count, 1 - posterior.decay)
        step = (1 - posterior.decay) / use.clamp(min=1e-30)
        book += step[:, None] * (one_hot.T @ flat - count[:, None] * book)
    output = vae.decoder((codes + (z - z.detach())).movedim(-1, 1)).float()
    squares = F.mse_loss(output, x, reduction="sum") + posterior.commitment * (z - codes).square().sum()
    constant = 0.5 * math.log(math.pi) * x[0].numel() + math.log(len(book)) * (len(index) // len(x))
    return squares / len(x) + constant


def negative_elbo(vae: nn.Module, x: Tensor) -> Tensor:
    """BCE on logits plus the KL to N(0, I) in closed form, nats per image: (B, C, H, W) -> 0-dim."""
    mean, log_var = vae.encoder(x).float().chunk(2, dim=1)
    logits = vae.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)).float()
    bce = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
    return (bce + kl) / len(x)


class Plain(LightningModule):
    """What both of Lightning's paths train."""

    def __init__(self, experiment: Experiment, logs: bool):
        super().__init__()
        self.vae, self.adversary = experiment.lit.vae, experiment.lit.adversary
        self.new_optimizers, self.logs = experiment.lit.new_optimizers, logs
        self.automatic_optimization = self.adversary is None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        x = batch[0] if batch[0].is_floating_point() else batch[0].float().div_(255)
        computed = losses(self.vae, self.adversary, x)
        for optimizer in [None] if self.automatic_optimization else self.optimizers():
            loss = next(computed)
            if optimizer is not None:
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        if self.logs:
            self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        return loss if self.automatic_optimization else None

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return self.new_optimizers()


class Items(Dataset):
    """One image at a time, decoded anew at every visit."""

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.images = [to_pil_image(x) for x in pixels]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return to_tensor(self.images[index]), int(self.labels[index][0]) if self.labels.shape[1] else 0


class Gathered(TensorDataset):
    """Whole batches at a time."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        index = torch.as_tensor(indices)
        return [tensor.index_select(0, index) for tensor in self.tensors]


def train_lightning(experiment: Experiment, loader: DataLoader, logs: bool, device: str, **settings) -> float:
    """Train with Lightning's Trainer.

    Returns:
        Seconds of training.
    """
    training = TrainClock(device)
    settings |= {"accelerator": ACCELERATOR[device], "devices": 1, "precision": experiment.trainer.precision}
    with (
        open(os.devnull, "w") as sink,
        contextlib.redirect_stderr(sink),
        contextlib.redirect_stdout(sink),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        Trainer(callbacks=[training], **settings).fit(Plain(experiment, logs), loader)
    return training.seconds


def train_barebones(experiment: Experiment, epochs: int, steps: int, device: str) -> float:
    """Lightning with everything switched off, and images gathered batch by batch."""
    split = experiment.data.splits["train"]
    loader = DataLoader(
        Gathered(split.pixels[split.index]), experiment.data.batch_size, shuffle=True, collate_fn=lambda batch: batch
    )
    return train_lightning(
        experiment, loader, False, device, barebones=True, max_epochs=epochs, limit_train_batches=steps
    )


def train_tutorial(experiment: Experiment, epochs: int, steps: int, device: str) -> float:
    """Lightning as tutorials show it."""
    split = experiment.data.splits["train"]
    index = split.index[: steps * experiment.data.batch_size]
    loader = DataLoader(Items(split.pixels[index], split.labels[index]), experiment.data.batch_size, shuffle=True)
    with tempfile.TemporaryDirectory() as folder:
        return train_lightning(experiment, loader, True, device, max_epochs=epochs, default_root_dir=folder)


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
        settings = [*overrides(args, "mlp", 64), "trainer.max_epochs=1", f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "vae_lab", *settings], check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def table(rounds: list[Seconds], images: int) -> str:
    """A line for each path: images per second, and the ratio to the bare loop with its quartiles."""
    return "\n".join(
        f"  {path:10}{images / median(r[path] for r in rounds):8.0f} images/s"
        f"  ratio {spread([r['bare'] / r[path] for r in rounds], 3)}"
        for path in rounds[0]
    )


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
