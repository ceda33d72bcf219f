"""The commands `vae-lab`, `vae-lab-eval`, `vae-lab-compare` and `vae-lab-export`.

Nothing here imports torch, so that `--help`, `--cfg` and completion answer at once.
"""

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # whatever a notebook hands on: torchmetrics imports matplotlib, which would refuse it

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab.config.composition import refuse_pickles
from vae_lab.config.explain import explain, refuse_flags
from vae_lab.config.output import lasting_output
from vae_lab.config.secrets import print_redacted, redact, refuse_secrets
from vae_lab.errors import DataError, NumericsError, OutOfMemoryError, Preempted, RunError, SweepError
from vae_lab.runs.files import cannot_write
from vae_lab.runs.folder import folder_name
from vae_lab.runs.ranks import forget_ranks, is_first
from vae_lab.runs.resume import continue_if_begun, resume_arguments
from vae_lab.sweep.arguments import sweep_arguments
from vae_lab.sweep.identity import job_folder

PACKAGE = Path(__file__).parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())

# A suffix for folder names: two runs that start in the same second must not share one.
OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


SETTING_ERRORS = (ValueError, HydraException, OmegaConfBaseException)
# An OSError is a full disk or a folder without permission.
USER_ERRORS = (*SETTING_ERRORS, DataError, NumericsError, OutOfMemoryError, RunError, SweepError, OSError)
failures: list[Exception] = []  # of a single run, kept from Hydra, which would print a line of its own before ours


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run(cfg: DictConfig) -> float | None:
    """Train the composed experiment."""
    from vae_lab.training.train import train

    is_job = HydraConfig.get().mode == RunMode.MULTIRUN  # of one of Hydra's launchers
    if is_job:
        continue_if_begun(cfg)
        refuse_ddp(cfg.trainer)
    try:
        return train(cfg)
    except Preempted as stop:
        if callable(signal.getsignal(stop.code - 128)):  # a scheduler's, such as submitit's, which starts the job again
            signal.raise_signal(stop.code - 128)
        raise
    except Exception as error:
        if is_job:  # the sweeper goes on, and reports only the first failure
            job = HydraConfig.get().job
            print(f"vae-lab: job {job.num} ({job.override_dirname}) failed: {one_line(error)}", file=sys.stderr)
            raise
        failures.append(error)
        return None


def refuse_ddp(trainer: DictConfig) -> None:
    """Refuse a run on several devices as a job of Hydra's own launchers.

    Raises:
        ValueError: naming the setting.
    """
    if trainer.strategy != "auto" or trainer.devices not in (1, "auto"):
        raise ValueError(
            f"trainer.strategy={trainer.strategy} with trainer.devices={trainer.devices} works in a sweep with "
            "hydra/launcher=local only: with others, each further process would run the whole sweep again"
        )


def one_line(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, OSError) and isinstance(error.filename, str) and not isinstance(error, SETTING_ERRORS):
        error = RunError(cannot_write(Path(error.filename), error))
    return redact(" ".join(explain(error, sys.argv[1:], CONF).split()))


def exit_code(error: Exception) -> int:
    """What to end with; see `vae_lab.errors`."""
    is_setting = isinstance(error, SETTING_ERRORS)  # some of Hydra's are an OSError too
    return getattr(error, "exit_code", 2 if is_setting else RunError.exit_code)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn failures a user can mend into one line on stderr and an exit code; see `vae_lab.errors`.

    HYDRA_FULL_ERROR=1 shows the traceback, as it does for Hydra.
    """
    forget_ranks()
    sys.excepthook = print_redacted  # of what nobody thought of
    # The further processes of a run on several devices inherit the variable from the first.
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and is_first()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here
    try:
        yield
    except USER_ERRORS as error:
        if wants_traceback:
            raise
        print(f"vae-lab: {one_line(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt as error:
        raise Preempted(130) from error
    except Preempted:
        if not is_first():  # Lightning would kill the first process, which tells the end
            sys.exit(0)
        raise


def main() -> None:
    """Run `vae-lab`."""
    with lasting_output(), one_line_errors():
        refuse_secrets(sys.argv[1:])
        refuse_flags(sys.argv[1:])
        refuse_pickles(sys.argv[1:])
        sys.argv[1:] = sweep_arguments(resume_arguments(sys.argv[1:], CONF), CONF)
        run()
        if failures:
            raise failures[0]


def evaluate() -> None:
    """Run `vae-lab-eval`."""
    with lasting_output(), one_line_errors():
        from vae_lab.evaluation.evaluate import evaluate_runs

        evaluate_runs(sys.argv[1:])


def compare() -> None:
    """Run `vae-lab-compare`."""
    with one_line_errors():
        from vae_lab.compare.command import compare_runs

        compare_runs(sys.argv[1:], CONF)


def export() -> None:
    """Run `vae-lab-export`."""
    with lasting_output(), one_line_errors():
        from vae_lab.runs.export import export_run

        export_run(sys.argv[1:])


if __name__ == "__main__":
    main()
