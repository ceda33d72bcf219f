"""The command `vae-lab`, and its words: `vae-lab eval` is `vae-lab-eval`, and so on.

Nothing here imports torch, so that `--help`, `--cfg` and completion answer at once.
"""

import io
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

os.environ["MPLBACKEND"] = "agg"  # whatever a notebook hands on: torchmetrics imports matplotlib, which would refuse it

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab.config.explain import explain, refuse_flags
from vae_lab.config.help import help_text
from vae_lab.config.secrets import print_redacted, refuse_secrets
from vae_lab.errors import DataError, NumericsError, OutOfMemoryError, Preempted, RunError, SweepError
from vae_lab.runs.files import cannot_write
from vae_lab.runs.folder import folder_name
from vae_lab.runs.ranks import forget_ranks, is_first
from vae_lab.runs.resume import continue_if_begun, resume_arguments
from vae_lab.sweep.command_line import sweep_arguments
from vae_lab.sweep.job import job_folder

PACKAGE = Path(__file__).parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
SETTING_ERRORS = (ValueError, HydraException, OmegaConfBaseException, yaml.YAMLError)
# An OSError is a full disk or a folder without permission.
USER_ERRORS = (*SETTING_ERRORS, DataError, NumericsError, OutOfMemoryError, RunError, SweepError, OSError)

# A suffix for folder names: two runs that start in the same second must not share one.
OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


class Lossy(io.FileIO):
    """An open file; once it cannot be written to, what is written goes nowhere, and the other output says so.

    A pipe whose reader has ended (`vae-lab ... | head`) is nothing to speak of.
    """

    def write(self, data) -> int | None:
        """Write, or pretend to."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # also for other processes that write there
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                told = f"vae-lab: what is printed is lost ({error.strerror}); the work goes on\n"
                with suppress(OSError):
                    os.write(1 if self.fileno() == 2 else 2, told.encode())
            return len(data)


def lossy(stream: TextIO | None) -> TextIO:
    """Stdout or stderr as one that can always be written to, whatever becomes of its reader, its disk, its encoding."""
    if stream is None:
        return open(os.devnull, "w")
    if type(stream) is not io.TextIOWrapper or (os.name == "nt" and stream.isatty()):  # a notebook's, a console's
        return stream
    stream.flush()
    file = io.BufferedWriter(Lossy(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, "backslashreplace", line_buffering=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn failures a user can mend into one line on stderr and an exit code; see `vae_lab.errors`.

    HYDRA_FULL_ERROR=1 shows the traceback, as it does for Hydra.
    """
    forget_ranks()
    sys.excepthook = print_redacted  # of what nobody thought of
    streams, full_error = (sys.stdout, sys.stderr), os.environ.get("HYDRA_FULL_ERROR", "0")
    sys.stdout, sys.stderr = map(lossy, streams)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through to here
    try:
        yield
    except USER_ERRORS as error:
        if full_error == "1" and is_first():  # further processes inherit the variable from the first
            raise
        print(f"vae-lab: {in_one_line(error)}", file=sys.stderr)
        # Some of Hydra's are an OSError too.
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, SETTING_ERRORS) else RunError.exit_code))
    except KeyboardInterrupt as error:
        raise Preempted(130) from error
    except Preempted:
        if not is_first():  # Lightning would kill the first process, which tells the end
            sys.exit(0)
        raise
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = streams


def in_one_line(error: Exception) -> str:
    """What an exception says to a user."""
    if isinstance(error, OSError) and isinstance(error.filename, str) and not isinstance(error, SETTING_ERRORS):
        error = RunError(cannot_write(Path(error.filename), error))
    return explain(error, sys.argv[1:], CONF)


@one_line_errors()
def run() -> None:
    """Train, sweep or resume, as the command line says."""
    refuse_secrets(sys.argv[1:])
    refuse_flags(sys.argv[1:])
    sys.argv[1:] = sweep_arguments(resume_arguments(sys.argv[1:], CONF), CONF)
    failures: list[Exception] = []  # of a single run, kept from Hydra, which would print a line of its own before ours

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def task(cfg: DictConfig) -> float | None:
        from vae_lab.training.train import train

        is_job = HydraConfig.get().mode == RunMode.MULTIRUN  # of one of Hydra's launchers
        if is_job:
            continue_if_begun(cfg)
            refuse_ddp(cfg.trainer)
        try:
            return train(cfg)
        except Preempted as stop:
            number = stop.code - 128
            if callable(signal.getsignal(number)):  # a scheduler's, such as submitit's, which starts the job again
                signal.raise_signal(number)
            raise
        except Exception as error:
            if is_job:  # the sweeper goes on, and reports only the first failure
                job = HydraConfig.get().job
                print(f"vae-lab: job {job.num} ({job.override_dirname}) failed: {in_one_line(error)}", file=sys.stderr)
                raise
            failures.append(error)
            return None

    task()
    if failures:
        raise failures[0]


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


@one_line_errors()
def evaluate() -> None:
    """Run `vae-lab-eval`."""
    from vae_lab.evaluation.evaluate import evaluate_runs

    evaluate_runs(sys.argv[1:])


@one_line_errors()
def compare() -> None:
    """Run `vae-lab-compare`."""
    from vae_lab.compare.command import compare_runs

    compare_runs(sys.argv[1:])


@one_line_errors()
def export() -> None:
    """Run `vae-lab-export`."""
    from vae_lab.runs.export import export_run

    export_run(sys.argv[1:])


@one_line_errors()
def show_help() -> None:
    """Run `vae-lab --help`, also of one group."""
    calls = {f"vae-lab {word} {arguments}": meaning for word, (_, arguments, meaning) in COMMANDS.items()}
    words = [word for word in sys.argv[1:] if word not in HELP]
    print(help_text(CONF, calls, words[0] if words else None))


HELP = {"--help", "-h"}
# The words of `vae-lab`: what they run, what they take, what they do.
COMMANDS = {
    "eval": (evaluate, "RUN_DIR... [key=value]", "metrics on the test split"),
    "compare": (compare, "DIR... [key=value]", "runs and sweeps as a table and a report"),
    "export": (export, "RUN_DIR [key=value]", "the model as two files to share"),
}


def main() -> None:
    """Run `vae-lab`."""
    word, *rest = [*sys.argv[1:], ""]
    if word in COMMANDS:
        sys.argv = [f"vae-lab-{word}", *rest[:-1]]
        COMMANDS[word][0]()
    elif HELP & set(sys.argv):
        show_help()
    else:
        run()


if __name__ == "__main__":
    main()
