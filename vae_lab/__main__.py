"""The command `vae-lab`, and its words: `vae-lab eval` is `vae-lab-eval`, and so on.

Nothing here imports torch, so that `--help`, `--cfg` and completion answer at once.
"""
# ruff: noqa: E402 - the imports are to be interrupted quietly

import gc
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # whatever a notebook hands on: torchmetrics imports matplotlib, which would refuse it
# Ctrl-C while this file imports, which takes a second: nothing has begun, and a traceback would say nothing.
on_interrupt = signal.getsignal(signal.SIGINT)
is_ours = on_interrupt is signal.default_int_handler and threading.current_thread() is threading.main_thread()
if is_ours:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_lab.config.arguments import expand_home, flags_last
from vae_lab.config.composing import names_folder, run_once
from vae_lab.config.explain import refuse_flags
from vae_lab.config.help import CONF, help_text
from vae_lab.config.secrets import refuse_secrets
from vae_lab.errors import Preempted
from vae_lab.runs.folder import aside_if_unbegun
from vae_lab.runs.process import as_process, in_one_line, keep_memory, one_line_errors
from vae_lab.runs.resume import answer_if_complete, continue_if_begun, resume_arguments
from vae_lab.sweep.command_line import is_multirun, sweep_arguments
from vae_lab.sweep.job import job_folder

if is_ours:
    signal.signal(signal.SIGINT, on_interrupt)
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


@one_line_errors()
def run() -> None:
    """Train, sweep, resume or help, as the command line says."""
    if HELP & set(sys.argv):
        calls = {f"vae-lab {word} {arguments}": meaning for word, (_, arguments, meaning) in COMMANDS.items()}
        groups = [word for word in sys.argv[1:] if word not in HELP]
        print(help_text(CONF, calls, groups[0] if groups else None))
        return
    refuse_secrets(sys.argv[1:])
    refuse_flags(sys.argv[1:])
    arguments = flags_last([expand_home(argument) for argument in sys.argv[1:]])
    sys.argv[1:] = arguments = sweep_arguments(resume_arguments(arguments, CONF), CONF)
    failures: list[Exception] = []  # of a single run, kept from Hydra, which would print a line of its own before ours

    def task(cfg: DictConfig) -> float | None:
        is_job = HydraConfig.get().mode == RunMode.MULTIRUN  # of one of Hydra's launchers
        if is_job:
            continue_if_begun(cfg)
            refuse_processes(cfg)
        try:
            stays = is_job or names_folder(cfg, HydraConfig.get())
            with nullcontext() if stays else aside_if_unbegun(cfg.run_dir):
                if (done := answer_if_complete(cfg)) is not None:
                    return done.get("best_value")
                from vae_lab.training.train import train  # takes seconds, in which Ctrl-C may come

                if not gc.get_freeze_count():
                    gc.freeze()  # what is imported stays, and is not looked at again
                keep_memory()
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

    others = [argument for argument in arguments if not is_multirun(argument)]
    if not run_once(task, RunMode.RUN if others == arguments else RunMode.MULTIRUN, others):
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    if failures:
        raise failures[0]


def refuse_processes(cfg: DictConfig) -> None:
    """Refuse what cannot start processes of its own as a job of Hydra's own launchers."""
    trainer, workers = cfg.trainer, cfg.dataset.num_workers
    if trainer.strategy != "auto" or trainer.devices not in (1, "auto"):
        raise ValueError(
            f"trainer.strategy={trainer.strategy} with trainer.devices={trainer.devices} works in a sweep with "
            "hydra/launcher=local only: with others, each further process would run the whole sweep again"
        )
    way = multiprocessing.get_start_method()  # joblib's own cannot start what is not its own
    if workers and (way not in multiprocessing.get_all_start_methods() or multiprocessing.current_process().daemon):
        raise ValueError(
            f"dataset.num_workers must be 0 with this hydra/launcher, got {workers}: the processes of its jobs cannot "
            "start others; hydra/launcher=local takes it"
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
def reproduce() -> None:
    """Run `vae-lab-reproduce`."""
    from vae_lab.reproduce.command import reproduce_targets

    reproduce_targets(sys.argv[1:])


@one_line_errors()
def list_() -> None:
    """Run `vae-lab-ls`."""
    from vae_lab.sweep.listing import list_runs

    list_runs(sys.argv[1:])


@one_line_errors()
def play() -> None:
    """Run `vae-lab-play`."""
    from vae_lab.play.command import play as serve

    serve(sys.argv[1:])


HELP = {"--help", "-h"}
# The words of `vae-lab`: what they run, what they take, what they do.
COMMANDS = {
    "eval": (evaluate, "RUN_DIR... [key=value]", "metrics on the test split"),
    "compare": (compare, "DIR... [key=value]", "runs and sweeps as a table and a report"),
    "export": (export, "RUN_DIR [key=value]", "the model as files to share, also ONNX"),
    "reproduce": (reproduce, "NAME... [key=value]", "published numbers: train, measure, PASS or FAIL"),
    "ls": (list_, "[DIR...] [key=value]", "runs and sweeps: their states, best values, places"),
    "play": (play, "RUN_DIR... [key=value]", "runs in a browser: latents, samples, codes"),
}


def main() -> None:
    """Run `vae-lab`."""
    word = "".join(sys.argv[1:2])
    if word in COMMANDS:
        sys.argv = [f"vae-lab-{word}", *sys.argv[2:]]
        COMMANDS[word][0]()
    else:
        run()


def command() -> None:
    """Run `vae-lab`, or `vae-lab-eval` and the others, as a process of their own."""
    word = Path(sys.argv[0]).stem.removeprefix("vae-lab-")
    if word in COMMANDS:
        sys.argv.insert(1, word)
    as_process(main)


if __name__ == "__main__":
    command()
