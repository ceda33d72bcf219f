"""Starts a program with a fault planted in its process; `faults.py` starts this instead of the program itself.

    python benchmarks/injection.py PLAN SCRIPT_OR_-m_MODULE [ARGUMENT ...]

The plan is a JSON object. The hooks are torch's own global ones, so that the same plan means the same in any program:

    {"gate": folder}            import everything, then wait for a file `go` there before the start
    {"see": path}               write the images that enter the model at the first step there
    {"hash": path}              write the hash of all parameters there, after every step
    {"step": n, "signal": s}    after the n-th optimizer step of the process send it a signal,
    {"step": n, "fill": path}   fill the file system of that folder to the last byte,
    {"step": n, "lock": path}   take the permission to write from that folder,
    {"step": n, "touch": path}  or make that file, for whoever waits for the step
"""

import hashlib
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook


def main() -> None:
    """Plant the fault, then become the program."""
    plan, *arguments = sys.argv[1:]
    plant(**json.loads(plan))
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], ""
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


def plant(step: int = 0, gate: str = "", see: str = "", hash: str = "", **action: int | str) -> None:
    """Register the hooks of a plan, and wait if it says so."""
    if see:
        record_images(see)
    if hash:
        register_optimizer_step_post_hook(lambda optimizer, *_: Path(hash).write_text(parameters_hash(optimizer)))
    for name, argument in action.items():
        at_step(step, partial(ACTIONS[name], argument))
    if gate:
        wait_at(Path(gate))


def wait_at(gate: Path) -> None:
    """Wait for a file `go` in a folder, ready to start at once."""
    for name in ("hydra", "lightning.pytorch", "torchvision"):
        import_module(name)
    (gate / f"ready.{os.getpid()}").touch()
    while not (gate / "go").exists():
        time.sleep(0.001)


def at_step(number: int, act: Callable[[], None]) -> None:
    """Act once, when the process has made `number` optimizer steps."""
    steps = count(1)
    register_optimizer_step_post_hook(lambda *_: act() if next(steps) == number else None)


def record_images(path: str) -> None:
    """Write the images of the first training step: four-dimensional, and not computed by the model."""
    seen = []

    def look(module: torch.nn.Module, inputs: tuple) -> None:
        x = inputs[0] if inputs else None
        if module.training and isinstance(x, torch.Tensor) and x.ndim == 4 and not x.requires_grad:
            seen.append(x.detach().clone())

    register_module_forward_pre_hook(look)
    at_step(1, lambda: torch.save(seen[-1], path))


def parameters_hash(optimizer: torch.optim.Optimizer) -> str:
    """Hash of all parameters that an optimizer trains."""
    digest = hashlib.sha256()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def fill(folder: str) -> None:
    """Fill a file system to the last byte."""
    with open(Path(folder) / "filler", "wb", buffering=0) as file:
        size = 2**20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


ACTIONS = {
    "signal": lambda number: os.kill(os.getpid(), number),
    "fill": fill,
    "lock": lambda folder: os.chmod(folder, 0o555),
    "touch": lambda path: Path(path).touch(),
}

if __name__ == "__main__":
    main()
