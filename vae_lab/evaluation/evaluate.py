"""`vae-lab-eval`: the metrics of trained runs on a split that training never saw."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress
from torchvision.transforms.functional import to_pil_image

from vae_lab.config.arguments import read_arguments
from vae_lab.config.check import check_arguments, check_own, check_parts
from vae_lab.config.help import CONF, groups
from vae_lab.data.batches import ImageData
from vae_lab.errors import Preempted, RunError, one_line
from vae_lab.evaluation import latents, samplers
from vae_lab.evaluation.gallery import CHUNK, Painter, fixed_labels, fixed_latents
from vae_lab.models.vae import VAE
from vae_lab.runs.files import cannot_write, durable_open, read_values
from vae_lab.runs.folder import RunFolder
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
  metrics=NAMES      besides those of the run: all, or options of the group, such as nll,factors; a setting of one is
                     metrics.nll.samples=5000; what is of each image is also in RUN_DIR/images_SPLIT.npz
  checkpoint=best    best, last, or one that was kept (callbacks.checkpoints.keep), as epoch_0010
  pictures=false     also draw all pictures from that checkpoint, into RUN_DIR/pictures
  latents=FILE.npz   also write codes, labels, places of the images in the dataset, indices of a book, and the scale
                     factor 1 / std, which makes z unit for another model on top
  decode=POINTS      also draw what latents stand for, into RUN_DIR/pictures/decoded.png: [[-1,2.5],[0,0]], a .npy or
                     .npz file (latents or codes), or a number of random points within the range of the codes
  samples=0          also draw this many samples, one PNG each, into RUN_DIR/samples; or samples=FILE.npz, which holds
                     num_samples=10000 as bytes, arr_0 (N, H, W, C), and their latents
  sampler=prior      where they come from: the prior, or what is fitted to the codes of the training images and kept in
                     RUN_DIR/samplers: gaussian, mixture, flow, two_stage, and for posterior=vq and fsq autoregressive;
                     those samples are in RUN_DIR/samples_SAMPLER
  sampler_steps=3000 of the fit of flow, two_stage and autoregressive
  batch_size=1000
  accelerator=auto   auto, cpu, gpu

  data_root=DIR and dataset.root=DIR say where the images are now."""
SPECIAL = re.compile(r"(--)?(metrics\.[\w.]+=|samples=.*\.npz$)")  # settings of a metric, and samples as a file
DEFAULTS = {
    "split": "test",
    "metrics": None,
    "checkpoint": "best",
    "pictures": False,
    "latents": None,
    "decode": None,
    "samples": 0,
    "num_samples": 10_000,
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
        "samples": range(1_000_000),  # their names have six digits
        "num_samples": range(1, 10**9),
        "sampler": samplers.NAMES,
        "sampler_steps": range(1, 10**9),
        "batch_size": range(1, 10**9 + 1),
        "accelerator": accelerators(),
    }
    special = [argument for argument in arguments if SPECIAL.match(argument)]
    folders, settings = read_arguments([a for a in arguments if a not in special], DEFAULTS, USAGE, allowed)
    for key, value in (argument.removeprefix("--").split("=", 1) for argument in special):
        if key == "samples":
            settings["samples_file"] = value
        else:
            settings.setdefault("members", []).append(f"{key}={value}")
    if not folders:
        raise ValueError("no run folder given; usage: vae-lab-eval RUN_DIR... [key=value], or --help")
    if settings["sampler"] != "prior" and not settings["samples"] and "samples_file" not in settings:
        raise ValueError(f"sampler={settings['sampler']} has no effect without samples=N")
    if settings["sampler_steps"] != DEFAULTS["sampler_steps"] and settings["sampler"] not in samplers.TRAINED:
        given = f"sampler_steps={settings['sampler_steps']} has no effect with sampler={settings['sampler']}"
        raise ValueError(f"{given}, only with {', '.join(samplers.TRAINED)}")
    for key in ("latents", "samples_file"):
        if settings.get(key) and len(folders) > 1:
            raise ValueError(
                f"{key.removesuffix('_file')}={settings[key]} is one file, for one run, got {len(folders)}"
            )
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
            RunFolder(folder).write_result(result)
        print_result(folder, result)
        best = RunFolder(folder).result.get("best_step")
        if settings["split"] == "test" and best not in (None, result["test/step"]):
            held = f"{result['test/checkpoint']} weights (step {result['test/step']})"
            print(f"test/ is of the {held}, val/ of the best ones (step {best})")


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
        if settings["metrics"] or settings.get("members"):
            add_metrics(stored.cfg, vae, settings["metrics"], settings.get("members", []))
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
        with progress(lit, len(data.splits[split])):
            trainer.test(lit, datamodule=data, verbose=False)
        write_values(lit, folder / f"images_{split}.npz", stored.step)
        if settings["pictures"]:
            Painter(vae.cpu(), data, folder).draw_all(stored.epoch)
        vae.to(trainer.strategy.root_device)
        if settings["latents"]:
            latents.write(vae, data, split, Path(settings["latents"]))
        if settings["decode"]:
            latents.draw(vae, data, settings["decode"], folder / "pictures" / "decoded.png")
        if settings["samples"] or settings.get("samples_file"):
            write_samples(vae, data, folder, settings)
    metrics = {key.replace("test/", f"{split}/"): float(value) for key, value in trainer.callback_metrics.items()}
    return {**metrics, f"{split}/checkpoint": stored.checkpoint, f"{split}/step": stored.step}


def add_metrics(cfg: DictConfig, vae: VAE, names: str | None, members: list[str]) -> None:
    """Add options of the group `metrics` to those of a run.

    Args:
        cfg: of the run; its metrics are changed.
        vae: the model, which decides what `all` can be.
        names: with commas; None adds none.
        members: settings of them, `metrics.NAME.KEY=VALUE`.

    Raises:
        ValueError: if there is no such option or setting, or the model lacks what a metric needs that was named.
    """
    known = groups(CONF)["metrics"]
    chosen = list(known) if names == "all" else [name.strip() for name in (names or "").split(",") if names]
    own = set(cfg.metrics)
    added: dict[Any, Any] = {}
    for name in chosen:
        if name not in known:
            raise ValueError(f"metrics must be all or some of {', '.join(known)}, got {name}")
        added |= {k: node for k, node in OmegaConf.load(CONF / "metrics" / f"{name}.yaml").items() if k != "defaults"}
    # After the run's own, whose random numbers then do not depend on what is added.
    cfg.metrics = OmegaConf.merge(cfg.metrics, {key: node for key, node in added.items() if key not in own})
    for text in members:
        key, _, value = text.partition("=")
        if OmegaConf.select(cfg, key.rpartition(".")[0]) is None:
            raise ValueError(f"there is no {key}; the metrics are {', '.join(cfg.metrics)}")
        OmegaConf.update(cfg, key, yaml.safe_load(value), force_add=True)
    for name in [name for name in cfg.metrics if name not in own]:
        check_arguments({}, f"metrics.{name}", OmegaConf.to_container(cfg.metrics[name], resolve=True), set())
        try:
            build_metrics(OmegaConf.create({"metrics": {name: cfg.metrics[name]}}), vae)
        except ValueError as error:
            if names != "all":
                raise
            print(f"not measured: {one_line(error)}", file=sys.stderr)
            del cfg.metrics[name]


@contextmanager
def progress(lit: LitVAE, num: int) -> Iterator[None]:
    """Show on a terminal how far the slow metrics of `num` images are, while the block runs."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for metric in (metric for metric in lit.metrics if hasattr(metric, "advance")):
            metric.advance = partial(bar.advance, bar.add_task(metric.name, total=num))
        yield


def write_values(lit: LitVAE, path: Path, step: int) -> None:
    """Add the values of each image to a file that keeps those of the same weights, `NAME -> (N,)` and `step`."""
    found = {k: v.numpy() for m in lit.metrics if hasattr(m, "per_image") for k, v in m.per_image().items()}
    if not found:
        return
    before = read_values(path)
    kept = before if before.get("step") == step else {}
    with durable_open(path) as file:
        np.savez(file, **{**kept, "step": np.array(step), **found})


def build_images(cfg: DictConfig, *parts: str) -> ImageData:
    """Build the data module of a run, whose config may be a stranger's; `parts` of it must name classes, too."""
    nodes = {key: cfg.get(key) for key in ("seed", "dataset", "objective", "metrics")}
    plain = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in nodes.items()}
    check_parts(plain, ("dataset.source", *parts))
    check_own(plain, READERS)
    check_seed(cfg.seed)
    return build_data(cfg)


def build_evaluated(stored: Stored, vae: VAE) -> tuple[ImageData, LitVAE]:
    """Build what is evaluated from the config of a run, which may be a stranger's."""
    cfg = stored.cfg
    try:
        data = build_images(cfg, "objective")
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
    """Write images decoded from the prior or from a fitted sampler; the same ones at every call.

    One PNG each, or all in one file as bytes, `arr_0` (N, H, W, C), with their `latents`. A conditional model draws
    them with the labels of the validation images, in their order.
    """
    name, path = settings["sampler"], settings.get("samples_file")
    num = settings["num_samples"] if path else settings["samples"]
    if name != "prior":
        drawn = samplers.draw_latents(name, vae, data, folder, num, settings["sampler_steps"])
        folder = folder / f"samples_{name}"
    elif vae.prior is not None:
        folder, drawn = folder / "samples", fixed_latents(vae, num)
        if told := samplers.unlike_prior(vae, data, drawn):
            print(f"vae-lab: {told}", file=sys.stderr)
    else:
        raise ValueError("samples need a prior, which this model does not have; fit a sampler with sampler=mixture")
    labels, like = fixed_labels(vae, data, num), next(vae.parameters())
    given = [None] * num if labels is None else labels.to(like.device).split(CHUNK)
    with torch.no_grad():
        chunks = (
            vae.generate(part.to(like), y).cpu().clamp(0, 1) for part, y in zip(drawn.split(CHUNK), given, strict=False)
        )
        if path:
            images = torch.cat([(chunk * 255).round().byte() for chunk in chunks]).permute(0, 2, 3, 1)
            with durable_open(Path(path)) as file:
                np.savez(file, arr_0=images.numpy(), latents=drawn.numpy())
            return
        try:
            folder.mkdir(exist_ok=True)
            for old in folder.glob("[0-9]" * 6 + ".png"):  # of earlier weights
                old.unlink()
            for part, chunk in enumerate(chunks):
                for number, image in enumerate(chunk, part * CHUNK):
                    to_pil_image(image).save(folder / f"{number:06d}.png")
        except OSError as error:
            raise RunError(cannot_write(folder, error)) from error
