"""`vae-lab resume=RUN_DIR`: the run's own config, in its own folder. `resume=auto`: the same where there is a run."""

from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.composing import composed
from vae_lab.config.defaults import changes, settings_of
from vae_lab.config.explain import quote
from vae_lab.config.nested import ABSENT
from vae_lab.config.roles import Role, keys, may_change
from vae_lab.config.saved import load_saved, saved_config
from vae_lab.errors import RunError
from vae_lab.runs.files import read_json

SAVED = "saved_run"  # the name under which Hydra finds the config of the run that continues
LIMITS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")  # that end the training
ALLOWED = f"only these may change: {', '.join(keys(Role.CHANGEABLE))}"


def resume_arguments(arguments: list[str], conf: Path) -> list[str]:
    """Rewrite a command line with `resume=RUN_DIR` into one that composes that run's saved config.

    Other command lines are returned as they are.

    Args:
        arguments: of the command, without its name.
        conf: the folder of the config groups.

    Raises:
        RunError: if the folder is not a run folder.
        ValueError: if another part was chosen, or `resume=auto` stands without a folder.
    """
    named = [a for a in arguments if a.startswith("resume=") and a not in ("resume=null", "resume=")]
    if not named:
        return arguments
    if f"--config-name={SAVED}" in arguments:
        # A child of a run on several devices, given the rewritten line; by now the saved config has the overrides.
        arguments = [argument for argument in arguments if argument.startswith("resume=")]
    if named[-1] == "resume=auto":
        if not any(argument.startswith("hydra.run.dir=") for argument in arguments):
            raise ValueError("resume=auto needs the run's folder: add hydra.run.dir=RUN_DIR")
        return arguments
    folder = Path(named[-1].removeprefix("resume=").strip("'\""))
    config = load_saved(folder)
    config.run_dir = "${hydra:runtime.output_dir}"  # where the folder is now
    overrides = []
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if key == "logger":
            config.logger = composed([f"logger={value}"]).logger
        elif (conf / key).is_dir() and key:
            raise ValueError(f"{key} cannot change when a run continues; {ALLOWED}")
        elif argument not in named:
            overrides.append(argument)
    absolute = folder.resolve()
    if "${" in str(absolute):  # more than once on the way to where it is used
        raise RunError(f"{absolute} holds ${{, which Hydra takes for the beginning of a setting; rename that folder")
    ConfigStore.instance().store(SAVED, config)  # as it was checked; nothing beside it is read
    return [
        f"--config-name={SAVED}",
        f"hydra.run.dir={quote(absolute)}",
        "hydra.output_subdir=null",  # the saved config stays as it is
        "hydra.job.chdir=false",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
        f"resume={quote(absolute)}",
        *overrides,
    ]


def continues_run(cfg: DictConfig) -> bool:
    """Whether a config continues the run in its folder, instead of starting one there.

    Raises:
        RunError: if there is nothing to resume, or its config cannot be read.
        ValueError: naming the settings that would change what was already computed, with their old and new values.
    """
    if not cfg.resume or (cfg.resume == "auto" and not saved_config(cfg.run_dir).is_file()):
        return False
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    changed = changes(Path(cfg.run_dir), settings_of(cfg), hydra)
    shown = {key: ["(not set)" if v is ABSENT else v for v in pair] for key, pair in changed.items()}
    differing = [f"{key} was {a} and would be {b}" for key, (a, b) in shown.items() if not may_change(key)]
    if differing:
        raise ValueError(f"{cfg.run_dir} cannot continue with other settings: {'; '.join(differing)}; {ALLOWED}")
    return True


def continue_if_begun(cfg: DictConfig) -> None:
    """Let a job of a sweep go on where its folder holds a run, and begin where it does not."""
    cfg.resume = "auto" if saved_config(cfg.run_dir).is_file() else None


def answer_if_complete(cfg: DictConfig) -> dict | None:
    """Answer for a run that would continue, but has ended by itself at the same limits: say so, and give its result.

    Returns:
        What `result.json` says; None where there is something to train.

    Raises:
        RunError, ValueError: see `continues_run`.
    """
    folder = Path(cfg.run_dir)
    if not continues_run(cfg) or read_json(folder / "status.json").get("state") != "completed":
        return None
    if not has_limits_of(cfg, load_saved(folder)):
        return None
    print(f"{folder} is already complete; nothing to do (more epochs: trainer.max_epochs=N)")
    return read_json(folder / "result.json")


def has_limits_of(cfg: DictConfig, saved: DictConfig) -> bool:
    """Whether two configs end the training at the same place."""
    return all(OmegaConf.select(saved, key) == OmegaConf.select(cfg, key) for key in LIMITS)
