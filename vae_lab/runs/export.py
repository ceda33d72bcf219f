"""`vae-lab-export`: a trained model as files that can be given away; `vae_lab.runs.trained` reads them back."""

import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vae_lab.config.arguments import read_arguments
from vae_lab.config.nested import leaves
from vae_lab.config.roles import PLACES, Role, keys
from vae_lab.config.secrets import redact
from vae_lab.errors import NumericsError, RunError
from vae_lab.runs.checkpoints import first_broken
from vae_lab.runs.files import durable_open, read_json, write_json
from vae_lab.runs.folder import weights_of
from vae_lab.runs.measurements import parameters_sha256
from vae_lab.runs.onnx import DECODER, ENCODER, to_onnx
from vae_lab.runs.trained import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS,
    Stored,
    build_stored,
    content_sha256,
    is_export,
    read_stored,
)

USAGE = """vae-lab-export: a trained model as files to share, without code, secrets or the places of your data.

  vae-lab-export RUN_DIR [key=value]

  out=RUN_DIR/export   the folder to write model.safetensors and config.json to
  checkpoint=best      best, last, or one that was kept, as epoch_0010
  onnx=false           also write encoder.onnx (images to codes) and decoder.onnx (latents to mean images in [0, 1]),
                       for programs without torch; config.json says what goes in and comes out

  vae_lab.load_run(DIR) and vae-lab-eval DIR read the folder back."""
FILES = (WEIGHTS, ENCODER, DECODER, CONFIG)
DEFAULTS = {"out": None, "checkpoint": "best", "onnx": False}


def export_run(arguments: list[str]) -> None:
    """Export the run named on the command line.

    Args:
        arguments: a run folder and key=value settings; see `USAGE`.

    Raises:
        ValueError: if a setting is wrong, the config does not rebuild the model without what is left out, or a part of
            it cannot be ONNX.
        RunError: if the folder is not a run that can be loaded, or the files cannot be written.
        NumericsError: if a weight is not finite, or the ONNX files do not give what the model gives.
    """
    folders, settings = read_arguments(arguments, DEFAULTS, USAGE)
    if len(folders) != 1:
        raise ValueError(
            f"expected one run folder, got {len(folders)}; usage: vae-lab-export RUN_DIR [key=value], or --help"
        )
    target = Path(settings["out"] or folders[0] / "export")
    left_out = export(folders[0], target, settings["checkpoint"], settings["onnx"])
    for path in (target / name for name in FILES):
        if path.exists():
            print(f"wrote     {path}  {path.stat().st_size:,} bytes")
    if left_out:
        print(f"left out  {', '.join(left_out)}")


def export(folder: Path, target: Path, checkpoint: str, onnx: bool = False) -> list[str]:
    """Write the files; returns the keys of the config that are null there, because they belong to this machine."""
    if is_export(folder):
        raise RunError(f"{folder} is an export already; copy it")
    stored = read_stored(folder, checkpoint)
    config = shareable(stored.cfg)
    vae = build_stored(stored._replace(cfg=OmegaConf.create(config)))  # as a reader will
    if broken := first_broken(vae.state_dict()):
        raise NumericsError(f"{stored.source} is not worth an export: {broken} is not finite")
    halves = to_onnx(vae, config["dataset"].get("binarize", "none")) if onnx else {}
    facts = {
        "checkpoint": checkpoint,
        "epoch": stored.epoch,
        "step": stored.step,
        "images": stored.images,
        "parameters_sha256": parameters_sha256(vae),
        "metrics": numbers(read_json(folder / "result.json"), stored),
        "config": config,
        "onnx": {name: {**told, "sha256": hashlib.sha256(half).hexdigest()} for name, (half, told) in halves.items()},
    }
    write_export(target, facts, vae.state_dict(), {name: half for name, (half, _) in halves.items()})
    settings, kept = leaves(OmegaConf.to_container(stored.cfg)), leaves(config)
    return [key for key, value in kept.items() if value is None and settings.get(key) is not None]


def shareable(cfg: DictConfig) -> dict[str, Any]:
    """What of a run's config rebuilds its model and its images, resolved; places of this machine null, no secrets."""
    cfg = cfg.copy()
    for key in PLACES:
        if OmegaConf.select(cfg, key) is not None:
            OmegaConf.update(cfg, key, None)
    nodes = {key: cfg[key] for key in keys(Role.SHARED)}
    return redact(
        {k: OmegaConf.to_container(n, resolve=True) if OmegaConf.is_config(n) else n for k, n in nodes.items()}
    )


def numbers(result: dict[str, Any], stored: Stored) -> dict[str, float]:
    """The numbers of a run's result that are of these weights; none of a run that has gone on since."""
    if result.get("steps", stored.step) < stored.step:
        return {}
    own = (stored.checkpoint, stored.step)
    of_others = tuple(key for key, weights in weights_of(result).items() if weights != own)
    return {
        key: value
        for key, value in result.items()
        if isinstance(value, int | float) and math.isfinite(value) and not key.startswith(of_others)
    }


def write_export(folder: Path, facts: dict[str, Any], weights: dict[str, Tensor], halves: dict[str, bytes]) -> None:
    """Write the files, each whole or not at all; until the last one the old and the new do not fit and are not read."""
    if (folder / ".hydra").exists():  # its result.json is not that of an export
        raise RunError(f"{folder} is a run folder; choose another folder with out=DIR")
    if held := [name for name in FILES if (folder / name).exists()]:
        try:
            is_ours = read_json(folder / CONFIG).get("format") == FORMAT
        except RunError:
            is_ours = False
        if not is_ours:
            raise RunError(f"{folder} holds a {held[0]} that is no export; choose another folder with out=DIR")
    for name in ("result.json", ENCODER, DECODER):
        (folder / name).unlink(missing_ok=True)  # of the weights that lay here
    separate = {name: value.contiguous().clone() for name, value in weights.items()}
    with durable_open(folder / WEIGHTS, sum(value.nbytes for value in separate.values())) as file:
        file.write(safetensors.torch.save(separate))
    for name, half in halves.items():
        with durable_open(folder / name, len(half)) as file:
            file.write(half)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "vae_lab": version("vae_lab"), **facts}
    content = json.loads(json.dumps(content))
    write_json(folder / CONFIG, {**content, "sha256": content_sha256(content)})
