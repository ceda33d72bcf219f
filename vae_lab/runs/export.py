"""`vae-lab-export`: a trained model as files that can be given away."""

import math
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vae_lab.config.arguments import check_choice, read_arguments
from vae_lab.errors import NumericsError, RunError
from vae_lab.runs.bundle import CONFIG, WEIGHTS, is_bundle, shareable, write_bundle
from vae_lab.runs.checkpoints import first_broken
from vae_lab.runs.files import read_json
from vae_lab.runs.measure import parameters_sha256
from vae_lab.runs.resume import leaves
from vae_lab.runs.trained import build_stored, read_run

USAGE = """vae-lab-export: a trained model as two files to share, without code, paths or secrets.

  vae-lab-export RUN_DIR [key=value]

  out=RUN_DIR/export   the folder to write model.safetensors and config.json to
  checkpoint=best      best or last

  vae_lab.load_run(DIR) and vae-lab-eval DIR read the folder back."""
DEFAULTS = {"out": None, "checkpoint": "best"}


def export_run(arguments: list[str]) -> None:
    """Export the run named on the command line.

    Args:
        arguments: a run folder and key=value settings; see `USAGE`.

    Raises:
        ValueError: if a setting is wrong, or the config does not rebuild the model without what is left out.
        RunError: if the folder is not a run that can be loaded, or the files cannot be written.
        NumericsError: if a weight is not finite.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    folders, settings = read_arguments(arguments, DEFAULTS)
    check_choice(settings, "checkpoint", ("best", "last"))
    if len(folders) != 1:
        raise ValueError(
            f"expected one run folder, got {len(folders)}; usage: vae-lab-export RUN_DIR [key=value], or --help"
        )
    target = Path(settings["out"] or folders[0] / "export")
    left_out = export(folders[0], target, settings["checkpoint"])
    for name in (WEIGHTS, CONFIG):
        print(f"wrote     {target / name}  {(target / name).stat().st_size:,} bytes")
    if left_out:
        print(f"left out  {', '.join(left_out)}")


def export(folder: Path, target: Path, checkpoint: str) -> list[str]:
    """Write the two files.

    Returns:
        The keys of the config that are null in the export, because they belong to this machine.

    Raises:
        ValueError, RunError, NumericsError: as `export_run`.
    """
    if is_bundle(folder):
        raise RunError(f"{folder} is an export already; copy it")
    stored = read_run(folder, checkpoint)
    config = shareable(stored.cfg)
    vae = build_stored(stored._replace(cfg=OmegaConf.create(config)))  # as a reader will
    if broken := first_broken(vae.state_dict()):
        raise NumericsError(f"{stored.source} is not worth an export: {broken} is not finite")
    facts = {
        "checkpoint": checkpoint,
        "epoch": stored.epoch,
        "images": stored.images,
        "parameters_sha256": parameters_sha256(vae),
        "metrics": numbers(read_json(folder / "result.json"), checkpoint),
    }
    write_bundle(target, config, vae.state_dict(), facts)
    settings, kept = leaves(OmegaConf.to_container(stored.cfg)), leaves(config)
    return [key for key, value in kept.items() if value is None and settings.get(key) is not None]


def numbers(result: dict[str, Any], checkpoint: str) -> dict[str, float]:
    """The numbers of a run's result that belong to a checkpoint: the validation to the best one."""
    tested = result.get("test/checkpoint")
    of_others = [stage for stage, of in (("val/", "best"), ("best_", "best"), ("test/", tested)) if of != checkpoint]
    return {
        key: value
        for key, value in result.items()
        if isinstance(value, int | float) and math.isfinite(value) and not key.startswith(tuple(of_others))
    }
