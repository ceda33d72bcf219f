"""What a run can continue from: a checkpoint each part of which has the form that training gives it.

Anything else would be continued inexactly or, as the state of a fused optimizer, make it read and write past the end of
a tensor. The example of the form is the same part of a run that has just been built.
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
from vae_lab.runs.checkpoints import Checkpoints, load_checkpoint, set_position
from vae_lab.runs.measurements import Stopwatch
from vae_lab.runs.structure import check_structure
from vae_lab.runs.trained import check_fit, split_checkpoint

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
        if not 0 < facts["lr"] < math.inf:
            raise ValueError(f"vae_lab.lr must be > 0 and finite, got {facts['lr']}")
        if "current_model_state" in content:  # beside averaged weights
            check_structure("current_model_state", content["current_model_state"], dict(lit.state_dict()))
            check_structure("averaging_state", content["averaging_state"], {"n_averaged": torch.tensor(0)})
        means = facts["means"]
        rows = (trainer.num_devices,) if isinstance(means["sums"], Tensor) and means["sums"].ndim == 2 else ()
        sums = torch.zeros(*rows, len(means["keys"])) if means["keys"] else None
        check_structure("vae_lab.means", means, {"keys": list, "sums": sums, "count": 0})
        check_position(content)
        check_callbacks(content["callbacks"], trainer.callbacks)
        check_optimizers(content, lit)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise RunError(
            f"{checkpoint} cannot be continued from: {reason}; it is not what training saved, get it again or start "
            "a new run"
        ) from error


def check_position(content: dict[str, Any]) -> None:
    """Check that Lightning's counters, which say where training goes on and when it ends, say what ours say."""
    loop, facts = content["loops"]["fit_loop"], content["vae_lab"]
    expected: dict[str, Any] = {"loops": {"fit_loop": {}}}
    set_position(expected, facts["epoch"], facts["batch"], facts["batches_seen"])
    for name, counts in expected["loops"]["fit_loop"].items():
        check_structure(f"loops.fit_loop.{name}", loop[name], counts)
        if loop[name] != counts:
            raise ValueError(f"loops.fit_loop.{name} is not at the place that vae_lab names")
    steps = loop["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]
    check_structure("global_step", steps, 0)
    if steps != content["global_step"]:
        raise ValueError(f"global_step must be the {steps} steps that were counted, got {content['global_step']}")


def check_callbacks(states: dict[str, Any], callbacks: list) -> None:
    """Check the states of the callbacks that decide the record; one that is new has none."""
    for callback in callbacks:
        key = callback.state_key
        if isinstance(callback, Stopwatch) or key in states and isinstance(callback, EarlyStopping):
            check_structure(f"callbacks.{key}", states[key], callback.state_dict())
        if isinstance(callback, Checkpoints) and key in states:
            best, kept = states[key]["best"], states[key].get("kept")
            example: dict[str, Any] = {"best": {}}
            if best:
                metrics = dict.fromkeys(best["metrics"], 0.0)
                example = {"best": {"value": 0.0, "step": 0, "epoch": 0, "metrics": metrics}}
            if kept is not None:  # epochs, which name files
                check_structure(f"callbacks.{key}.kept", list(kept), [0] * len(kept))
                example |= {"kept": dict.fromkeys(kept, 0.0), "value": 0.0}
            check_structure(f"callbacks.{key}", states[key], example)


def check_optimizers(content: dict[str, Any], lit: LightningModule) -> None:
    """Check the states of the optimizers and of the schedules against those after a step on gradients of zero."""
    optimizers = deepcopy(lit).new_optimizers()  # of parameters that may be changed
    check_structure("optimizer_states", content["optimizer_states"], [dict] * len(optimizers))
    for place, (optimizer, state) in enumerate(zip(optimizers, content["optimizer_states"], strict=True)):
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(lambda: torch.zeros(()))
        key, example = f"optimizer_states.{place}", optimizer.state_dict()
        if content["global_step"] and example["state"] and not state["state"]:
            raise ValueError(f"{key}.state is empty")
        for number, found in state["state"].items():  # a parameter that has no gradient has none
            check_structure(f"{key}.state.{number}", found, example["state"].get(number))
        groups = [{"initial_lr": lit.lr} | group for group in state["param_groups"]]
        check_structure(
            f"{key}.param_groups", groups, [{"initial_lr": 0.0} | group for group in example["param_groups"]]
        )
    schedules = [LambdaLR(optimizer, lambda step: 1.0).state_dict() for optimizer in optimizers] if lit.schedule else []
    check_structure("lr_schedulers", content["lr_schedulers"], schedules)
