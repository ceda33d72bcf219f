"""`vae-lab-eval`: the metrics of trained runs on a split that training never saw."""

import signal
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchvision.transforms.functional import to_pil_image

from vae_lab.config.arguments import read_arguments
from vae_lab.config.check import check_own, check_parts
from vae_lab.data.batches import ImageData
from vae_lab.errors import Preempted, RunError, one_line
from vae_lab.evaluation import samplers
from vae_lab.evaluation.gallery import CHUNK, Painter, fixed_labels, fixed_latents
from vae_lab.models.vae import VAE
from vae_lab.runs.files import cannot_write
from vae_lab.runs.folder import Run
from vae_lab.runs.signals import Preemption
from vae_lab.runs.trained import Stored, build_stored, check_fit, read_stored
from vae_lab.training.build import READERS, build_data, build_metrics, build_objective, check_seed, names_of_metrics
from vae_lab.training.devices import accelerators
from vae_lab.training.diagnosis import memory_advice
from vae_lab.training.module import LitVAE, check_same_images
from vae_lab.training.result import print_result
from vae_lab.training.train import quiet_lightning

USAGE = """vae-lab-eval: metrics of trained runs; those of the test split are added to their result.json.

  vae-lab-eval RUN_DIR... [key=value]     a folder of a run, or of its export

  split=test         test, val or train
  checkpoint=best    best or last
  pictures=false     also draw all pictures from that checkpoint, into RUN_DIR/pictures
  samples=0          also draw this many samples, one PNG each, into RUN_DIR/samples
  sampler=prior      where they come from: the prior, or what is fitted to the codes of the training images and kept in
                     RUN_DIR/samplers: gaussian, mixture, flow, two_stage, and for posterior=vq and fsq autoregressive;
                     those samples are in RUN_DIR/samples_SAMPLER
  sampler_steps=3000 of the fit of flow, two_stage and autoregressive
  batch_size=1000
  accelerator=auto   auto, cpu, gpu

  data_root=DIR and dataset.root=DIR say where the images are now."""
DEFAULTS = {
    "split": "test",
    "checkpoint": "best",
    "pictures": False,
    "samples": 0,
    "sampler": "prior",
    "sampler_steps": 3000,
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
        Preempted: if a signal came, after saying so.
    """
    allowed = {
        "split": ("train", "val", "test"),
        "checkpoint": ("best", "last"),
        "samples": range(1_000_000),  # their names have six digits
        "sampler": samplers.NAMES,
        "sampler_steps": range(1, 10**9),
        "batch_size": range(1, 10**9 + 1),
        "accelerator": accelerators(),
    }
    folders, settings = read_arguments(arguments, DEFAULTS, USAGE, allowed)
    if not folders:
        raise ValueError("no run folder given; usage: vae-lab-eval RUN_DIR... [key=value], or --help")
    if settings["sampler"] != "prior" and not settings["samples"]:
        raise ValueError(f"sampler={settings['sampler']} has no effect without samples=N")
    quiet_lightning()
    for folder in folders:
        try:
            with Preemption():  # Lightning would make an interruption a failure
                result = evaluate(folder, settings)
        except Preempted as stop:
            name = signal.Signals(stop.code - 128).name
            print(f"vae-lab: {name} stopped the evaluation of {folder}, whose result is as it was", file=sys.stderr)
            raise
        if settings["split"] == "test":  # the other splits have their values from training
            Run(folder).write_result(result)
        print_result(folder, result)
        best = Run(folder).result.get("best_step")
        if settings["split"] == "test" and best not in (None, result["test/step"]):
            print(f"test/ is of the last weights (step {result['test/step']}), val/ of the best ones (step {best})")


def evaluate(folder: Path, settings: dict) -> dict[str, float | str]:
    """Compute the metrics of one run, with the objective it was trained with; draw what is asked for.

    Args:
        folder: of a run or an export.
        settings: all of `DEFAULTS`.

    Returns:
        `{split}/{key}` in the units of `vae_lab.metrics.catalogue`, and the checkpoint and the step of the weights.

    Raises:
        DataError: if the images are not those of the training.
        OutOfMemoryError: with the settings to lower.
    """
    split, stored = settings["split"], read_stored(folder, settings["checkpoint"])
    with memory_advice(f"lower batch_size={settings['batch_size']}, or choose accelerator=cpu"):
        vae = build_stored(stored)
        for key in ("data_root", "dataset.root"):
            if settings[key] is not None:
                OmegaConf.update(stored.cfg, key, settings[key])
        stored.cfg.dataset.batch_size = settings["batch_size"]
        stored.cfg.dataset.num_workers = 0  # the images are in memory, and a stranger's number could be anything
        data, lit = build_evaluated(stored, vae)
        data.prepare_data()
        check_same_images(data, stored.images)
        data.test_split = split
        trainer = Trainer(
            accelerator=settings["accelerator"],
            devices=1,
            logger=False,
            plugins=[LightningEnvironment()],  # not what a launcher's variables say
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.test(lit, datamodule=data, verbose=False)
        if settings["pictures"]:
            Painter(vae.cpu(), data, folder).draw_all(stored.epoch)
        if settings["samples"]:
            write_samples(vae.to(trainer.strategy.root_device), data, folder, settings)
    metrics = {key.replace("test/", f"{split}/"): float(value) for key, value in trainer.callback_metrics.items()}
    return {**metrics, f"{split}/checkpoint": stored.checkpoint, f"{split}/step": stored.step}


def build_evaluated(stored: Stored, vae: VAE) -> tuple[ImageData, LitVAE]:
    """Build what is evaluated from the config of a run, which may be a stranger's."""
    cfg = stored.cfg
    try:
        nodes = {key: cfg.get(key) for key in ("seed", "dataset", "objective", "metrics")}
        plain = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}
        check_parts(plain, ("dataset.source", "objective"))
        check_own({}, plain, READERS)
        check_seed(cfg.seed)
        data = build_data(cfg)
        objective, metrics = build_objective(cfg, vae), build_metrics(cfg, vae)
        if stored.objective is not None:
            check_fit(objective, stored.objective, stored.source)
            objective.load_state_dict(stored.objective)
        elif getattr(objective, "adversary", None) is not None:
            raise RunError(
                f"{stored.source} holds the model without the adversary it was trained with, which the metrics "
                "need; evaluate the run itself"
            )
        # It takes no steps.
        lit = LitVAE(vae.eval(), objective, metrics, optimizer=None, schedule=None, lr=1.0, seed=cfg.seed)
        names_of_metrics(lit)
    except (ValueError, RunError, OmegaConfBaseException):
        raise  # it names the key
    except Exception as error:  # a config that is not one of ours can lack anything, anywhere
        raise ValueError(f"the config beside {stored.source} cannot be evaluated: {one_line(error)}") from error
    return data, lit.eval()


def write_samples(vae: VAE, data: ImageData, folder: Path, settings: dict) -> None:
    """Write images decoded from the prior or from a fitted sampler, one PNG each; the same ones at every call.

    A conditional model draws them with the labels of the validation images, in their order.
    """
    num, name = settings["samples"], settings["sampler"]
    if name != "prior":
        drawn = samplers.draw_latents(name, vae, data, folder, num, settings["sampler_steps"])
        folder = folder / f"samples_{name}"
    elif vae.prior is not None:
        folder, drawn = folder / "samples", fixed_latents(vae, num)
    else:
        raise ValueError("samples need a prior, which this model does not have; fit a sampler with sampler=mixture")
    labels, like = fixed_labels(vae, data, num), next(vae.parameters())
    try:
        folder.mkdir(exist_ok=True)
        for path in folder.glob("[0-9]" * 6 + ".png"):  # of earlier weights
            path.unlink()
        for part, latents in enumerate(drawn.split(CHUNK)):
            given = None if labels is None else labels.split(CHUNK)[part].to(like.device)
            with torch.no_grad():
                images = vae.generate(latents.to(like), given).cpu()
            for number, image in enumerate(images, part * CHUNK):
                to_pil_image(image.clamp(0, 1)).save(folder / f"{number:06d}.png")
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from error
