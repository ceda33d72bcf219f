"""`vae-lab-eval`: the metrics of trained runs on a split that training never saw."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from vae_lab.config.arguments import read_arguments
from vae_lab.config.check import check_own, check_parts
from vae_lab.config.instantiate import build_objective
from vae_lab.data.batches import ImageData
from vae_lab.errors import OutOfMemoryError, Preempted, RunError, one_line
from vae_lab.evaluation.gallery import Painter, fixed_latents
from vae_lab.models.vae import VAE
from vae_lab.runs.files import cannot_write
from vae_lab.runs.folder import Run
from vae_lab.runs.signals import Preemption
from vae_lab.runs.trained import Stored, build_stored, read_stored
from vae_lab.training.build import READERS, build_data, build_metrics, check_seed, names_of_metrics
from vae_lab.training.devices import accelerators
from vae_lab.training.diagnosis import first_line, is_out_of_memory
from vae_lab.training.module import LitVAE, check_same_images
from vae_lab.training.result import print_result
from vae_lab.training.train import quiet_lightning

USAGE = """vae-lab-eval: metrics of trained runs; those of the test split are added to their result.json.

  vae-lab-eval RUN_DIR... [key=value]     a folder of a run, or of its export

  split=test         test, val or train
  checkpoint=best    best or last
  pictures=false     also draw all pictures from that checkpoint, into RUN_DIR/pictures
  samples=0          also draw this many samples from the prior, one PNG each, into RUN_DIR/samples
  batch_size=1000
  accelerator=auto   auto, cpu, gpu

  data_root=DIR and dataset.root=DIR say where the images are now."""
CHUNK = 256  # samples at a time
PARTS = ("dataset.source", "objective")  # what is built besides the model
DEFAULTS = {
    "split": "test",
    "checkpoint": "best",
    "pictures": False,
    "samples": 0,
    "batch_size": 1000,
    "accelerator": "auto",
    "data_root": None,
    "dataset.root": None,
}
ALLOWED = {
    "split": ("train", "val", "test"),
    "checkpoint": ("best", "last"),
    "batch_size": range(1, 10**9 + 1),
    "samples": range(1_000_000),  # their names have six digits
}


def evaluate_runs(arguments: list[str]) -> None:
    """Evaluate every run named on the command line.

    Args:
        arguments: run folders and key=value settings; see `USAGE`.

    Raises:
        ValueError: if a setting is wrong.
        RunError: if a folder is neither a run nor an export that can be loaded.
    """
    allowed = ALLOWED | {"accelerator": accelerators()}
    folders, settings = read_arguments(arguments, DEFAULTS, USAGE, allowed)
    if not folders:
        raise ValueError("no run folder given; usage: vae-lab-eval RUN_DIR... [key=value], or --help")
    quiet_lightning()
    for folder in folders:
        with preemptible(folder):
            result = evaluate(folder, settings)
        if settings["split"] == "test":  # the other splits have their values from training
            Run(folder).write_result(result)
        print_result(folder, result)


@contextmanager
def preemptible(folder: Path) -> Iterator[None]:
    """Stop on a signal with its exit code; Lightning would make an interruption a failure.

    Raises:
        Preempted: after saying so.
    """
    try:
        with Preemption():
            yield
    except Preempted as stop:
        name = signal.Signals(stop.code - 128).name
        print(f"vae-lab: {name} stopped the evaluation of {folder}, whose result is as it was", file=sys.stderr)
        raise


def evaluate(folder: Path, settings: dict) -> dict[str, float | str]:
    """Compute the metrics of one run, with the objective it was trained with; draw what is asked for.

    Returns:
        `{split}/{key}` in the units of `vae_lab.training.module`, and which checkpoint they belong to.
    """
    stored = read_stored(folder, settings["checkpoint"])
    cfg = stored.cfg
    with small_enough(settings):
        vae = build_stored(stored)
        for key in ("data_root", "dataset.root"):
            if settings[key] is not None:
                OmegaConf.update(cfg, key, settings[key])
        cfg.dataset.batch_size = settings["batch_size"]
        cfg.dataset.num_workers = 0  # the images are in memory, and a stranger's number could be anything
        data, lit = build_evaluated(stored, vae)
        data.prepare_data()
        check_same_images(data, stored.images)
        data.test_split = settings["split"]
        metrics = measure(lit, data, settings["accelerator"])
        if settings["pictures"]:
            Painter(vae.cpu(), data, folder).draw_all(stored.epoch)
        if settings["samples"]:
            write_samples(vae.cpu(), folder / "samples", settings["samples"])
    split = settings["split"]
    metrics = {key.replace("test/", f"{split}/"): float(value) for key, value in metrics.items()}
    return {**metrics, f"{split}/checkpoint": stored.checkpoint}


@contextmanager
def small_enough(settings: dict) -> Iterator[None]:
    """Say which settings need less memory, where there is not enough.

    Raises:
        OutOfMemoryError: with their values.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lower = f"lower batch_size={settings['batch_size']}, or choose accelerator=cpu"
        raise OutOfMemoryError(f"out of memory ({first_line(error)}): {lower}") from error


def build_evaluated(stored: Stored, vae: VAE) -> tuple[ImageData, LitVAE]:
    """Build what is evaluated from the config of a run, which may be a stranger's.

    Raises:
        ValueError: naming the setting that is wrong, or the config.
    """
    cfg = stored.cfg
    try:
        nodes = {key: cfg.get(key) for key in ("seed", "dataset", "objective", "metrics")}
        plain = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}
        check_parts(plain, PARTS)
        check_own({}, plain, READERS)
        check_seed(cfg.seed)
        data = build_data(cfg)
        objective = build_objective(cfg, vae)
        metrics = build_metrics(cfg, vae)
        # It takes no steps.
        lit = LitVAE(vae.eval(), objective, metrics, optimizer=None, schedule=None, lr=1.0, seed=cfg.seed)
        names_of_metrics(lit)
    except (ValueError, OmegaConfBaseException):
        raise  # it names the key
    except Exception as error:  # a config that is not one of ours can lack anything, anywhere
        raise ValueError(f"the config beside {stored.source} cannot be evaluated: {one_line(error)}") from error
    return data, lit.eval()


def measure(lit: LitVAE, data: ImageData, accelerator: str) -> dict[str, Tensor]:
    """The metrics of the split that `data` is set to, named after the test split."""
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        logger=False,
        plugins=[LightningEnvironment()],  # not what a launcher's variables say
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.test(lit, datamodule=data, verbose=False)
    return trainer.callback_metrics


def write_samples(vae: VAE, folder: Path, num: int) -> None:
    """Write `num` images decoded from the prior, one PNG each; the same ones at every call.

    Raises:
        ValueError: if the model has no prior.
        RunError: if they cannot be written.
    """
    if vae.prior is None:
        raise ValueError("samples need a prior, which posterior=deterministic does not have")
    latents = fixed_latents(num, vae.latent_dim)
    try:
        folder.mkdir(exist_ok=True)
        for start in range(0, num, CHUNK):
            with torch.no_grad():
                images = vae.generate(latents[start : start + CHUNK])
            for number, image in enumerate(images, start):
                to_pil_image(image.clamp(0, 1)).save(folder / f"{number:06d}.png")
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from error
