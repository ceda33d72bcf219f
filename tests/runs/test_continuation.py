"""What training saved is continued from; tests/faults/test_misfit_checkpoints.py has what is not."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from command import TINY
from forks import train_until
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from vae_lab.config.instantiate import CLASSES
from vae_lab.errors import RunError
from vae_lab.runs.continuation import check_optimizers
from vae_lab.runs.folder import RunFolder
from vae_lab.runs.structure import check_structure
from vae_lab.training.train import train

OPTIMIZERS = [name for name in CLASSES["torch.optim"] if name != "Muon"]  # which takes no biases
VARIANTS = [*((name, {}) for name in OPTIMIZERS), ("Adam", {"amsgrad": True}), ("SGD", {"momentum": 0.9})]


class Trained(nn.Module):
    """What `check_optimizers` looks at."""

    def __init__(self, name: str, settings: dict, schedule: bool):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 1)])
        self.optimizer = partial(getattr(torch.optim, name), **settings)
        self.lr, self.schedule = 0.1, schedule

    def new_optimizers(self) -> list:
        return [self.optimizer(part.parameters(), lr=self.lr) for part in self.parts]


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_the_states_of_every_trusted_optimizer_are_continued(name, settings, schedule):
    lit = Trained(name, settings, schedule)
    optimizers = lit.new_optimizers()
    schedules = [LambdaLR(optimizer, lambda step: 0.5) for optimizer in optimizers] if schedule else []
    for _ in range(2):
        for optimizer, part in zip(optimizers, lit.parts, strict=True):
            part(torch.ones(part.in_features)).sum().backward()
            optimizer.step()
        for scheduler in schedules:
            scheduler.step()
    before = [value.clone() for value in lit.parameters()]
    states = [optimizer.state_dict() for optimizer in optimizers]
    content = {
        "optimizer_states": states,
        "lr_schedulers": [scheduler.state_dict() for scheduler in schedules],
        "global_step": 2,
    }
    check_optimizers(content, lit)
    assert all(map(torch.equal, before, lit.parameters()))
    swapped = states[::-1] if (name, settings) != ("SGD", {}) else []  # which keeps nothing of any shape
    for misfit in (states[:1], swapped, [*states, states[0]]):
        with pytest.raises(ValueError, match="optimizer_states"):
            check_optimizers({**content, "optimizer_states": misfit}, lit)


def test_what_differs_is_named():
    example = {"a": [1, 2.0], "b": {"c": None}, "d": torch.zeros(2)}
    found = {"a": [3, 4], "b": {"c": None}, "d": torch.ones(2)}
    check_structure("x", found, example)
    check_structure("x", found, {"a": list, "b": dict, "d": torch.Tensor})
    for changes, message in (
        ({"b": {}}, r"x\.b\.c must be None, got missing"),
        ({"e": 1}, r"x\.e must be missing, got 1"),
        ({"a": [-3, 4]}, r"x\.a\.0 must be 1, got -3"),
        ({"a": [3]}, r"x\.a must be a list of 2, got a list of 1"),
        ({"a": [True, 4]}, r"x\.a\.0 must be 1, got True"),
        ({"b": {"c": "text"}}, r"x\.b\.c must be None, got a str"),
        ({"b": [1]}, r"x\.b must be a dict, got a list of 1"),
        ({"d": torch.zeros(3)}, r"x\.d must be float32 \(2,\), got float32 \(3,\)"),
        ({"d": torch.zeros(1).expand(2)}, r"x\.d must be float32 \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check_structure("x", found | changes, example)


def contents(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.fault
@pytest.mark.parametrize("ends", ["completed", "killed"])
def test_c9_a_run_whose_checkpoints_are_gone_is_not_begun_again(ends, config, monkeypatch):
    cfg = config("trainer.max_epochs=2")
    train(cfg) if ends == "completed" else train_until(9, cfg, monkeypatch)
    folder = Path(cfg.run_dir)
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    with pytest.raises(RunError, match="has no checkpoint to continue from"):
        train(cfg)
    assert contents(folder) == before


@pytest.mark.fault
@pytest.mark.parametrize(("call", "left_out", "callbacks"), [(3, "nothing", "default"), (7, "callbacks.", "none")])
def test_c9_a_run_killed_before_it_saved_anything_begins_again(call, left_out, callbacks, config, monkeypatch):
    tiny = [setting for setting in TINY if not setting.startswith(left_out)]
    cfg = config(f"callbacks={callbacks}", "trainer.max_steps=6", tiny=tiny)
    train_until(call, cfg, monkeypatch)
    shutil.rmtree(Path(cfg.run_dir) / "checkpoints", ignore_errors=True)
    cfg.resume = cfg.run_dir
    train(cfg)
    assert RunFolder(cfg.run_dir).result["steps"] == 6


@pytest.mark.fault
def test_a_damaged_status_or_a_limit_of_another_kind_is_named_before_anything_is_written(config):
    cfg = config("trainer.max_steps=1")
    train(cfg)
    folder = Path(cfg.run_dir)
    cfg.resume, cfg.trainer.max_steps = cfg.run_dir, 2
    for times in (5, [5], {"started": 5}):
        (folder / "status.json").write_text(json.dumps({"state": "failed", "times": times}))
        before = contents(folder)
        with pytest.raises(RunError, match=r"status\.json is damaged \(times is not a list"):
            train(cfg)
        assert contents(folder) == before
    (folder / "status.json").write_text(json.dumps({"state": "completed"}))
    for limit in ("ten", [3]):
        cfg.trainer.max_steps = limit
        with pytest.raises(ValueError, match=r"trainer\.max_steps must be a whole number"):
            train(cfg)
    assert RunFolder(cfg.run_dir).status["state"] == "completed"
