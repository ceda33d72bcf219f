"""`vae-lab-eval`: the metrics of trained runs on a split that training never saw."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf
from torchvision.transforms.functional import to_pil_image

from vae_lab.build import build_data
from vae_lab.checkpoints import load_checkpoint
from vae_lab.gallery import Painter, fixed_latents
from vae_lab.instantiate import instantiate
from vae_lab.module import LitVAE, check_same_images
from vae_lab.result import print_result
from vae_lab.runs import Run, load_run
from vae_lab.train import quiet_lightning
from vae_lab.vae import VAE

USAGE = """vae-lab-eval: metrics of trained runs; those of the test split are added to their result.json.

  vae-lab-eval RUN_DIR... [key=value]

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
        RunError: if a folder is not a run that can be loaded.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    is_setting = [argument.partition("=")[0] in DEFAULTS for argument in arguments]
    folders = [Path(argument) for argument, yes in zip(arguments, is_setting, strict=True) if not yes]
    if not folders:
        raise ValueError("no run folder given; usage: vae-lab-eval RUN_DIR... [key=value], or --help")
    settings = parse([argument for argument, yes in zip(arguments, is_setting, strict=True) if yes])
    quiet_lightning()
    for folder in folders:
        result = evaluate(folder, settings) | {f"{settings['split']}/checkpoint": settings["checkpoint"]}
        if settings["split"] == "test":  # the other splits have their values from training
            Run(folder).write_result(result)
        print_result(folder, result)


def parse(overrides: list[str]) -> dict:
    """Read key=value settings, whose keys are known, over the defaults.

    Raises:
        ValueError: if a value is not one of those in `USAGE`.
    """
    settings = dict(DEFAULTS)
    for override in overrides:
        key, _, text = override.partition("=")
        settings[key] = OmegaConf.from_dotlist([f"value={text}"]).value
    for key, allowed in (("split", ("train", "val", "test")), ("checkpoint", ("best", "last"))):
        if settings[key] not in allowed:
            raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {settings[key]!r}")
    for key, least in (("batch_size", 1), ("samples", 0)):
        if not isinstance(settings[key], int) or settings[key] < least:
            raise ValueError(f"{key} must be a number >= {least}, got {settings[key]!r}")
    if not isinstance(settings["pictures"], bool):
        raise ValueError(f"pictures must be true or false, got {settings['pictures']!r}")
    return settings


def evaluate(folder: Path, settings: dict) -> dict[str, float]:
    """Compute the metrics of one run, with the objective it was trained with; draw what is asked for.

    Returns:
        `{split}/{key}` in the units of `vae_lab.module`.
    """
    vae, cfg = load_run(folder, settings["checkpoint"])
    for key in ("data_root", "dataset.root"):
        if settings[key] is not None:
            OmegaConf.update(cfg, key, settings[key])
    cfg.dataset.batch_size = settings["batch_size"]
    data = build_data(cfg)
    objective = instantiate(cfg.objective, "objective")
    lit = LitVAE(vae, objective, optimizer=None, schedule=None, lr=cfg.optimizer.lr, seed=cfg.seed)
    trainer = Trainer(
        accelerator=settings["accelerator"],
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data.prepare_data()
    checkpoint = load_checkpoint(folder / "checkpoints" / f"{settings['checkpoint']}.ckpt")
    check_same_images(data, checkpoint["vae_lab"]["images"])
    split = data.test_split = settings["split"]
    trainer.test(lit, datamodule=data, verbose=False)
    metrics = {key.replace("test/", f"{split}/"): float(value) for key, value in trainer.callback_metrics.items()}
    if settings["pictures"]:
        Painter(vae.cpu(), data, folder).draw_all(checkpoint["vae_lab"]["epoch"])
    if settings["samples"]:
        write_samples(vae.cpu(), folder / "samples", settings["samples"])
    return metrics


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
