"""What the process of a job does: a single run, apart from all others.

The sweep's own process imports this too, so torch comes only within.
"""

import faulthandler
import os
import signal
import sys
import threading
from importlib.util import find_spec
from multiprocessing import connection, parent_process
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, open_dict

from vae_lab.config.secrets import print_redacted
from vae_lab.runs.files import wait_for
from vae_lab.runs.resume import continue_if_begun
from vae_lab.runs.signals import SIGNALS
from vae_lab.sweep.job import OUTPUT

# How long a job waits for its process of a sweep that was killed, which may still be saving.
ORPHAN_SECONDS = 30.0


def work(config: DictConfig, arguments: list[str], threads: int, device: str | None) -> None:
    """Train what a config says, or continue it; called in a process of its own.

    Args:
        config: of the job, with Hydra's own node.
        arguments: the command line of the same run alone, for the further processes of a run on several devices.
        threads: how many cores are this job's, >= 1.
        device: the GPUs that are this job's, as for CUDA_VISIBLE_DEVICES; None leaves that as it is.
    """
    import torch

    from vae_lab.__main__ import one_line_errors
    from vae_lab.runs.signals import Preemption
    from vae_lab.training.train import train

    folder = Path(config.hydra.runtime.output_dir)
    os.setpgid(0, 0)  # Ctrl-C is for the sweep, which passes it on
    with Preemption() as preemption, preemption.first():  # until the run takes over
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked in the fork server
        threading.Thread(target=stop_with_parent, daemon=True).start()
        redirect(folder / OUTPUT)
        faulthandler.enable()  # a crash in C says where
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that this one starts
        torch.set_num_threads(threads)
        sys.argv = arguments
        sys.modules["__main__"].__spec__ = find_spec("vae_lab.__main__")  # Lightning starts this module for each device
        os.environ.pop("HYDRA_FULL_ERROR", None)  # set by the sweep's process, not by the user
        try:
            with one_line_errors(), preemption.first():
                wait_for(folder / ".lock", ORPHAN_SECONDS)
                train(job_config(config))
        except Exception:
            print_redacted(*sys.exc_info())
            sys.exit(1)


def job_config(config: DictConfig) -> DictConfig:
    """Give Hydra its node of a job's config, and return the rest."""
    setup_globals()
    HydraConfig.instance().set_config(config)
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    continue_if_begun(cfg)
    return cfg


def stop_with_parent() -> None:
    """Wait for the sweep's process to be killed, then stop as on SIGTERM: with a checkpoint."""
    connection.wait([parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def redirect(path: Path) -> None:
    """Send what this process prints to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
