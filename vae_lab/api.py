"""vae_lab from Python: in a script, in a notebook, in a thread. torch is imported only to train and to load.

What the command line prints as one line is raised here as an exception with the same words. Whatever happens, the
process is left as it was: Hydra, handlers of signals, warnings, logging, the environment, torch's settings and random
numbers.
"""

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from vae_lab.config.arguments import expand_home
from vae_lab.config.composing import chosen, composed, folder_of, names_folder, without_hydra
from vae_lab.config.explain import refuse_flags
from vae_lab.config.help import CONF
from vae_lab.config.secrets import refuse_secrets
from vae_lab.errors import Preempted, RunError
from vae_lab.runs.folder import aside_if_unbegun
from vae_lab.runs.process import RANKS, SETTING_ERRORS, in_one_line
from vae_lab.runs.resume import resume_arguments

if TYPE_CHECKING:
    from vae_lab.evaluation.run import Run

ONE_AT_A_TIME = threading.Lock()  # trainings share torch's generators: those of several threads take turns


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a command line.

    Args:
        overrides: as they are typed after `vae-lab`: `["model=conv", "latent_dim=2"]`, also `["resume=RUN_DIR"]`.

    Returns:
        The config, to look at, to change and to train. Its key `overrides` holds what it was composed of, and `run_dir`
        is null where every training has a new folder.

    Raises:
        ValueError: in the words of the command line, naming the override.
    """
    return composed_whole(overrides)[0]


def train(settings: DictConfig | Sequence[str] = ()) -> "Run":
    """Train one experiment in a folder of its own, or continue it there.

    In a thread it cannot hear signals; in the main one an interruption, such as a notebook's stop button, saves a
    checkpoint first. Trainings of several threads take turns.

    Args:
        settings: overrides, or a config that `compose` gave.

    Returns:
        The run, with the weights of its best checkpoint.

    Raises:
        ValueError: if a setting is wrong, in the words of the command line.
        DataError, NumericsError, OutOfMemoryError, RunError: see `vae_lab.errors`.
        KeyboardInterrupt: after an interruption, once a checkpoint is saved.
    """
    cfg, whole = (settings.copy(), None) if isinstance(settings, DictConfig) else composed_whole(settings)
    with open_dict(cfg):
        overrides = cfg.pop("overrides", None)
    try:
        with told(overrides or []), ONE_AT_A_TIME, unchanged():
            refuse_processes(cfg)
            from vae_lab.evaluation.run import Run
            from vae_lab.training.train import train as train_run

            continues = cfg.resume not in (None, "auto")
            whole = whole or composed([] if continues else overrides or [])
            is_new = cfg.run_dir is None
            if is_new:
                whole.run_name = cfg.run_name if overrides is not None else cfg.run_name or "run"
                cfg.run_dir = folder_of(whole)
            knows_options = overrides is not None and not continues
            aside = aside_if_unbegun(cfg.run_dir) if is_new else nullcontext()
            with chosen(whole) if knows_options else nullcontext(), aside:
                train_run(cfg, tells=False)
            return Run(cfg.run_dir)
    except Preempted as stop:
        signal.raise_signal(stop.code - 128)  # to whom it would have come
        raise KeyboardInterrupt(f"signal {stop.code - 128}") from stop


def load_run(folder: str | Path, checkpoint: str = "best", trainable: bool = False) -> "Run":
    """Load a trained model with its config, its images and what it measured.

    Args:
        folder: the run folder, or a folder that `vae-lab-export` wrote.
        checkpoint: `best`, `last`, or one that was kept, as `epoch_0010`; an export holds only one of them.
        trainable: for a loop of one's own: the model is in training mode and its parameters take gradients.

    Returns:
        The run. Its model is on the CPU; `run.to("cuda")` moves it.

    Raises:
        RunError: if the folder or the checkpoint is missing or damaged.
        ValueError: if the config names a class that is not trusted.
    """
    from vae_lab.evaluation.run import Run

    run = Run(folder, checkpoint, trainable)
    assert run.vae is not None  # read now, so that what is wrong is said here
    return run


def composed_whole(overrides: Sequence[str]) -> tuple[DictConfig, DictConfig]:
    """What `compose` returns, and the same as Hydra has it, with its own node."""
    if isinstance(overrides, str):
        raise ValueError(f"overrides are a list of texts, as ['latent_dim=2', 'model=conv'], got {overrides!r}")
    given = [expand_home(str(override)) for override in overrides]
    with told(given):
        for override in given:
            if override.startswith("-"):
                raise ValueError(f"{override} is a flag of the command line; give key=value and group=option")
        refuse_secrets(given)
        refuse_flags(given)
        arguments = resume_arguments(given, CONF)
        flags = [argument for argument in arguments if argument.startswith("--config-name=")]  # of a run that continues
        name = flags[0].partition("=")[2] if flags else "config"
        whole = composed([argument for argument in arguments if argument not in flags], name)
        cfg, named = without_hydra(whole), names_folder(whole, whole.hydra)
        with open_dict(cfg):
            cfg.overrides = given
            if OmegaConf.is_interpolation(cfg, "run_dir"):
                cfg.run_dir = folder_of(whole) if named else None
        return cfg, whole


def refuse_processes(cfg: DictConfig) -> None:
    """Refuse several devices: their processes would start the user's program again."""
    devices, strategy = cfg.trainer.devices, cfg.trainer.strategy
    if strategy != "auto" or not (devices in (1, "auto") or (OmegaConf.is_list(devices) and len(devices) == 1)):
        raise ValueError(
            f"trainer.strategy={strategy} with trainer.devices={devices} needs processes of the command's own: train "
            "with vae-lab, and load the run"
        )


@contextmanager
def told(overrides: Sequence[str]) -> Iterator[None]:
    """Raise what the command line would print of an exception."""
    try:
        yield
    except SETTING_ERRORS as error:
        line = in_one_line(error, overrides)
        if isinstance(error, ValueError) and str(error) == line:
            raise
        raise ValueError(line) from (error if isinstance(error, ValueError) else None)  # Hydra's says nothing more
    except OSError as error:
        raise RunError(in_one_line(error, overrides)) from error


@contextmanager
def unchanged() -> Iterator[None]:
    """Leave the process as it was, however the block ends; within it is the first and only one of its run."""
    variables = dict(os.environ)
    for name in RANKS:  # of a launcher, which Lightning's import looks at
        os.environ.pop(name, None)
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    rank, rank_zero_only.rank = rank_zero_only.rank, 0
    cudnn, on_gpu = torch.backends.cudnn, torch.cuda.is_initialized()
    settings = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    flags, threads = (cudnn.deterministic, cudnn.benchmark), torch.get_num_threads()
    levels = {log: log.level for log in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))}
    python, arrays = random.getstate(), np.random.get_state()
    children = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None  # torch's, where it has workers
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(range(torch.cuda.device_count() if on_gpu else 0)):
            yield
    finally:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        rank_zero_only.rank = rank
        if children is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, children)
        random.setstate(python)
        np.random.set_state(arrays)
        torch.use_deterministic_algorithms(settings[0], warn_only=settings[1])
        cudnn.deterministic, cudnn.benchmark = flags
        torch.set_num_threads(threads)
        for log, level in levels.items():
            log.setLevel(level)
