"""`vae-lab-eval`: the metrics of trained runs on a split that training never saw."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import OmegaConf
from torchvision.transforms.functional import to_pil_image

from vae_lab.arguments import check_choice, read_arguments
from vae_lab.build import build_data
from vae_lab.gallery import Painter, fixed_latents
from vae_lab.instantiate import instantiate
from vae_lab.module import LitVAE, check_same_images
from vae_lab.result import print_result
from vae_lab.runs import Run
from vae_lab.train import quiet_lightning
from vae_lab.trained import build_stored, read_stored
from vae_lab.trainer import accelerators
from vae_lab.vae import VAE

USAGE = """vae-lab-eval: metrics of trained runs; those of the test split are added to their result.json.

  vae-lab-eval RUN_DIR... [key=value]     a folder of a run, or of its export

  split=test         test, val or train
  checkpoint=best    best or last
  pictures=false     also draw all pictures from that checkpoint, into RUN_DIR/pictures
  samples=0          also draw this many samples from the prior, one PNG each, into RUN_DIR/samples
  batch_size=1000
  accelerator=auto   auto, cpu, gpu

  data_root=DIR and dataset.root=DIR say where the images are now."""
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


def evaluate_runs(arguments: list[str]) -> None:
    """Evaluate every run named on the command line.

    Args:
        arguments: run folders and key=value settings; see `USAGE`.

    Raises:
        ValueError: if a setting is wrong.
        RunError: if a folder is neither a run nor an export that can be loaded.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    folders, settings = read_arguments(arguments, DEFAULTS)
    if not folders:
        raise ValueError("no run folder given; usage: vae-lab-eval RUN_DIR... [key=value], or --help")
    check(settings)
    quiet_lightning()
    for folder in folders:
        result = evaluate(folder, settings)
        if settings["split"] == "test":  # the other splits have their values from training
            Run(folder).write_result(result)
        print_result(folder, result)


def check(settings: dict) -> None:
    """Refuse what is not one of the values in `USAGE`.

    Raises:
        ValueError: naming the key.
    """
    check_choice(settings, "split", ("train", "val", "test"))
    check_choice(settings, "checkpoint", ("best", "last"))
    for key, least in (("batch_size", 1), ("samples", 0)):
        if type(settings[key]) is not int or settings[key] < least:
            raise ValueError(f"{key} must be a number >= {least}, got {settings[key]!r}")
    check_choice(settings, "accelerator", accelerators())
    if not isinstance(settings["pictures"], bool):
        raise ValueError(f"pictures must be true or false, got {settings['pictures']!r}")


def evaluate(folder: Path, settings: dict) -> dict[str, float | str]:
    """Compute the metrics of one run, with the objective it was trained with; draw what is asked for.

    Returns:
        `{split}/{key}` in the units of `vae_lab.module`, and which checkpoint they belong to.
    """
    stored = read_stored(folder, settings["checkpoint"])
    vae, cfg = build_stored(stored), stored.cfg
    for key in ("data_root", "dataset.root"):
        if settings[key] is not None:
            OmegaConf.update(cfg, key, settings[key])
    cfg.dataset.batch_size = settings["batch_size"]
    cfg.dataset.num_workers = 0  # the images are in memory, and a stranger's number could be anything
    data = build_data(cfg)
    objective = instantiate(cfg.objective, "objective")
    lit = LitVAE(vae, objective, optimizer=None, schedule=None, lr=1.0, seed=cfg.seed)  # which takes no steps
    trainer = Trainer(
        accelerator=settings["accelerator"],
        devices=1,
        logger=False,
        plugins=[LightningEnvironment()],  # not what a launcher's variables say
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.prepare_data()
    check_same_images(data, stored.images)
    split = data.test_split = settings["split"]
    trainer.test(lit, datamodule=data, verbose=False)
    metrics = {key.replace("test/", f"{split}/"): float(value) for key, value in trainer.callback_metrics.items()}
    if settings["pictures"]:
        Painter(vae.cpu(), data, folder).draw_all(stored.epoch)
    if settings["samples"]:
        write_samples(vae.cpu(), folder / "samples", settings["samples"])
    return {**metrics, f"{split}/checkpoint": stored.checkpoint}


def write_samples(vae: VAE, folder: Path, num: int) -> None:
    """Write `num` images decoded from the prior, one PNG each; the same ones at every call.

    Raises:
        ValueError: if the model has no prior.
    """
    if not vae.posterior.is_stochastic:
        raise ValueError("samples need a prior, which posterior=deterministic does not have")
    folder.mkdir(exist_ok=True)
    latents = fixed_latents(num, vae.latent_dim)
    with torch.no_grad():
        images = torch.cat([vae.generate(z) for z in latents.split(256)])
    for number, image in enumerate(images):
        to_pil_image(image.clamp(0, 1)).save(folder / f"{number:06d}.png")
