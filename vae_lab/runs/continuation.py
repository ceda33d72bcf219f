"""What a run can continue from: a checkpoint each part of which has the form that training gives it.

Anything else would be ignored, fail deep inside of Lightning or, as the state of a fused optimizer, make it read and
write past the end of a tensor. The form is that of an example: the same part of a run that has just been built.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from packaging.version import Version
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.config.signatures import lookup
from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import Checkpoints, load_checkpoint, set_position
from vae_lab.runs.measure import Stopwatch
from vae_lab.runs.trained import check_fit, describe, split_checkpoint
from vae_lab.training.build import Experiment
from vae_lab.training.module import LitVAE

BEST = {"value": 0.0, "step": 0, "epoch": 0, "metrics": {}}  # what `Checkpoints` remembers of a validation
LIGHTNING = Version("2.6")  # the first that wrote our checkpoints; what is older is migrated in ways we do not know


def check_continuation(experiment: Experiment, checkpoint: Path) -> None:
    """Refuse a checkpoint that training would not continue from exactly.

    Raises:
        RunError: naming the file and the first part that does not fit.
    """
    content = load_checkpoint(checkpoint)
    _, facts = split_checkpoint(content, checkpoint)
    check_fit(experiment.lit, content["state_dict"], checkpoint)
    try:
        if Version(content["pytorch-lightning_version"]) < LIGHTNING:
            raise ValueError(f"it is of Lightning {content['pytorch-lightning_version']}")
        if "current_model_state" in content:  # beside averaged weights
            check_like("current_model_state", content["current_model_state"], dict(experiment.lit.state_dict()))
            check_like("averaging_state", content.get("averaging_state"), {"n_averaged": torch.tensor(0)})
        check_facts(facts, experiment.trainer.num_devices)
        check_callbacks(content["callbacks"], experiment.trainer.callbacks)
        check_loops(content, experiment.trainer.fit_loop.state_dict())
        check_optimizer(content, experiment.lit)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise RunError(
            f"{checkpoint} cannot be continued from: {reason}; it is not what training saved, get it again or start "
            "a new run"
        ) from error


def check_like(key: str, found: Any, example: Any) -> None:
    """Compare nested containers: the same keys, the same kinds, tensors of the same shape, whole numbers >= 0.

    Raises:
        ValueError: naming the first part that differs.
    """
    if isinstance(example, dict):
        if not isinstance(found, dict) or found.keys() != example.keys():
            got = sorted(map(str, found)) if isinstance(found, dict) else shown(found)
            raise ValueError(f"{key} must hold {', '.join(map(str, example)) or 'nothing'}, got {got}")
        parts = [(name, found[name], example[name]) for name in example]
    elif isinstance(example, list | tuple):
        if type(found) is not type(example) or len(found) != len(example):
            raise ValueError(f"{key} must be {shown(example)}, got {shown(found)}")
        parts = list(zip(range(len(example)), found, example, strict=True))
    else:
        parts = []
        if not is_like(found, example):
            raise ValueError(f"{key} must be {shown(example)}, got {shown(found)}")
    for name, part, other in parts:
        check_like(f"{key}.{name}", part, other)


def is_like(found: Any, example: Any) -> bool:
    """Whether a value can stand where the example stands."""
    if isinstance(example, Tensor):
        return describe(found) == describe(example) and found.is_contiguous()  # else its elements can share memory
    if example is None or isinstance(example, bool):  # choices of how to compute, not results
        return found is example
    if isinstance(example, float):
        return isinstance(found, float | int) and not isinstance(found, bool)
    return type(found) is type(example) and (not isinstance(found, int) or found >= 0)


def shown(value: Any) -> str:
    """A value, or the kind of one that is long."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value) if value is None or isinstance(value, int | float) else describe(value)


def check_facts(facts: dict[str, Any], processes: int) -> None:
    """Check what `LitVAE` keeps; its kinds are known already.

    Raises:
        ValueError: naming the part.
    """
    if not 0 < facts["lr"] < math.inf:
        raise ValueError(f"vae_lab.lr must be > 0 and finite, got {facts['lr']}")
    means = facts["means"]
    keys, sums = means["keys"], means["sums"]
    if not isinstance(keys, list) or (sums is None) != (keys == []):
        raise ValueError("vae_lab.means must hold a sum for each key")
    if sums is not None:
        rows = (processes,) if isinstance(sums, Tensor) and sums.ndim == 2 else ()  # one for each of several
        check_like("vae_lab.means.sums", sums, torch.zeros(*rows, len(keys)))
    check_like("vae_lab.means.count", means["count"], 0)


def check_callbacks(states: dict[str, Any], callbacks: list) -> None:
    """Check the states of the callbacks that decide the numbers; one that is new has none.

    Raises:
        ValueError: naming the callback.
    """
    for callback in callbacks:
        key = callback.state_key
        if isinstance(callback, Stopwatch) or key in states and isinstance(callback, Checkpoints | EarlyStopping):
            example = callback.state_dict()
            if isinstance(callback, Checkpoints) and states[key] != example:
                metrics = lookup(states, f"{key}.best.metrics")
                example = {"best": BEST | {"metrics": dict.fromkeys(metrics if isinstance(metrics, dict) else (), 0.0)}}
            check_like(f"callbacks.{key}", states[key], example)


def check_loops(content: dict[str, Any], example: dict[str, Any]) -> None:
    """Check that Lightning's counters say what ours say.

    Raises:
        ValueError: naming the counter.
    """
    loops, facts = content["loops"]["fit_loop"], content["vae_lab"]
    for name in loops.keys() & example.keys():
        check_like(f"loops.fit_loop.{name}", loops[name], example[name])
    moved = {"loops": {"fit_loop": deepcopy(loops)}}
    set_position(moved, facts["epoch"], facts["batch"], facts["batches_seen"])
    steps = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    if moved["loops"]["fit_loop"] != loops or steps != content["global_step"]:
        raise ValueError("loops.fit_loop is not at the place that vae_lab names")


def check_optimizer(content: dict[str, Any], lit: LitVAE) -> None:
    """Check the state of the optimizer and of its schedule against those after a step on gradients of zero.

    Raises:
        ValueError: naming the part.
    """
    parameters = [nn.Parameter(torch.zeros_like(parameter)) for parameter in lit.parameters()]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = lit.optimizer(parameters, lr=float(lit.lr))
    optimizer.step(lambda: torch.zeros(()))
    example, states = optimizer.state_dict(), content["optimizer_states"]
    if not isinstance(states, list) or len(states) != 1:
        raise ValueError("optimizer_states must hold the state of one optimizer")
    (state,) = states
    if content["global_step"] and example["state"] and not state["state"]:
        raise ValueError("optimizer_states.0.state is empty")
    for number, found in state["state"].items():  # a parameter that has no gradient has none
        check_like(f"optimizer_states.0.state.{number}", found, example["state"].get(number))
    (found,), (group,) = state["param_groups"], example["param_groups"]
    check_like("optimizer_states.0.param_groups.0", {"initial_lr": lit.lr} | found, {"initial_lr": 0.0} | group)
    schedules = [LambdaLR(optimizer, lambda step: 1.0).state_dict()] if lit.schedule else []
    check_like("lr_schedulers", content["lr_schedulers"], schedules)
