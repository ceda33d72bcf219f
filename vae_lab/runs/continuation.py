"""What a run can continue from: a checkpoint each part of which has the form that training gives it.

Anything else would be continued inexactly or, as the state of a fused optimizer, make it read and write past the end of
a tensor. The form is that of an example: the same part of a run that has just been built.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from packaging.version import Version
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import Checkpoints, load_checkpoint
from vae_lab.runs.measure import Stopwatch
from vae_lab.runs.trained import check_fit, describe, split_checkpoint

LIGHTNING = Version("2.6")  # the first that wrote our checkpoints; what is older is migrated in ways we do not know


def check_continuation(lit: LightningModule, trainer: Trainer, checkpoint: Path) -> None:
    """Refuse a checkpoint that training would not continue from exactly.

    Args:
        lit: as built, with `new_optimizers()`, `lr` and `schedule`.
        trainer: as built.
        checkpoint: the file.

    Raises:
        RunError: naming the file and the first part that does not fit.
    """
    content = load_checkpoint(checkpoint)
    _, facts = split_checkpoint(content, checkpoint)
    check_fit(lit, content["state_dict"], checkpoint)
    try:
        if Version(content["pytorch-lightning_version"]) < LIGHTNING:
            raise ValueError(f"it is of Lightning {content['pytorch-lightning_version']}")
        if "current_model_state" in content:  # beside averaged weights
            check_like("current_model_state", content["current_model_state"], dict(lit.state_dict()))
            check_like("averaging_state", content.get("averaging_state"), {"n_averaged": torch.tensor(0)})
        check_facts(facts, trainer.num_devices)
        check_callbacks(content["callbacks"], trainer.callbacks)
        check_optimizers(content, lit)
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
    """Check the states of the callbacks that decide the record; one that is new has none.

    Raises:
        ValueError: naming the callback.
    """
    for callback in callbacks:
        key = callback.state_key
        if isinstance(callback, Stopwatch) or key in states and isinstance(callback, EarlyStopping):
            check_like(f"callbacks.{key}", states[key], callback.state_dict())
        if isinstance(callback, Checkpoints) and states.get(key, callback.state_dict()) != callback.state_dict():
            best = {"value": 0.0, "step": 0, "epoch": 0, "metrics": {}} | {"metrics": states[key]["best"]["metrics"]}
            check_like(f"callbacks.{key}", states[key], {"best": best})


def check_optimizers(content: dict[str, Any], lit: LightningModule) -> None:
    """Check the states of the optimizers and of the schedules against those after a step on gradients of zero.

    Raises:
        ValueError: naming the part.
    """
    optimizers = deepcopy(lit).new_optimizers()  # of parameters that may be changed
    if not isinstance(content["optimizer_states"], list) or len(content["optimizer_states"]) != len(optimizers):
        raise ValueError(f"optimizer_states must hold the states of {len(optimizers)} optimizers")
    for place, (optimizer, state) in enumerate(zip(optimizers, content["optimizer_states"], strict=True)):
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(lambda: torch.zeros(()))
        key, example = f"optimizer_states.{place}", optimizer.state_dict()
        if content["global_step"] and example["state"] and not state["state"]:
            raise ValueError(f"{key}.state is empty")
        for number, found in state["state"].items():  # a parameter that has no gradient has none
            check_like(f"{key}.state.{number}", found, example["state"].get(number))
        groups = [{"initial_lr": lit.lr} | group for group in state["param_groups"]]
        check_like(f"{key}.param_groups", groups, [{"initial_lr": 0.0} | group for group in example["param_groups"]])
    schedules = [LambdaLR(optimizer, lambda step: 1.0).state_dict() for optimizer in optimizers] if lit.schedule else []
    check_like("lr_schedulers", content["lr_schedulers"], schedules)
