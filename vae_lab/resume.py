"""`vae-lab resume=RUN_DIR`: the run's own config, in the run's own folder."""

import json
import sys
from fnmatch import fnmatch
from pathlib import Path

from vae_lab.errors import RunError

# What may change when a run continues, because the numbers up to here do not depend on it.
CHANGEABLE = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "dataset.num_workers",
    "dataset.root",
    "data_root",
    "logger.*",
    "callbacks.*",
)


def resume_arguments(arguments: list[str]) -> list[str]:
    """Rewrite a command line with `resume=RUN_DIR` into one that composes that run's saved config.

    Other command lines are returned as they are. Exits with code 0 if the run is complete and nothing is to change.

    Args:
        arguments: of the command, without its name.

    Raises:
        RunError: if the folder is not a run folder.
        ValueError: if an override would change what was already computed.
    """
    named = [a for a in arguments if a.startswith("resume=") and a not in ("resume=null", "resume=")]
    if not named:
        return arguments
    folder = Path(named[-1].removeprefix("resume=").strip("'\""))
    config = folder / ".hydra" / "config.yaml"
    if not config.is_file():
        raise RunError(f"cannot resume {folder}: there is no {config}")
    overrides = [argument for argument in arguments if argument not in named]
    for override in overrides:
        key = override.lstrip("+~").split("=")[0]
        if not key.startswith("-") and not any(fnmatch(key, pattern) for pattern in CHANGEABLE):
            raise ValueError(f"{key} cannot change when a run continues; allowed: {', '.join(CHANGEABLE)}")
    if not overrides and is_complete(folder):
        print(f"{folder} is already complete; nothing to do (more epochs: trainer.max_epochs=N)")
        sys.exit(0)
    absolute = folder.resolve()
    return [
        f"--config-path={absolute / '.hydra'}",
        "--config-name=config",
        f"hydra.run.dir='{absolute}'",
        "hydra.output_subdir=null",  # the saved config stays as it is
        "hydra.job.chdir=false",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        f"resume='{absolute}'",
        *overrides,
    ]


def is_complete(folder: Path) -> bool:
    """Whether `status.json` says so."""
    status = folder / "status.json"
    return status.is_file() and json.loads(status.read_text()).get("state") == "completed"
