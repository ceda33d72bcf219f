"""What training saved is continued from; tests/faults/test_misfit_checkpoints.py has what is not."""

import json
import shutil
from pathlib import Path

import pytest

from vae_lab.config.instantiate import CLASSES
from vae_lab.errors import RunError
from vae_lab.objectives.elbo import ELBO
from vae_lab.runs.continuation import check_like
from vae_lab.runs.folder import Run
from vae_lab.training.train import train

EARLY = (
    "+callbacks.early={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,"
    "check_on_train_epoch_end:false}"
)
OTHERS = ["~optimizer.betas", "~optimizer.eps", "~optimizer.weight_decay", "~optimizer.fused"]
CHANGES = {
    "Adam": ["+optimizer.amsgrad=true", "optimizer/schedule=step", "optimizer.lr=1"],
    "SGD": [*OTHERS, "+optimizer.momentum=0.9"],
}
OPTIMIZERS = [name for name in CLASSES["torch.optim"] if name != "Muon"]  # which takes no biases


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_every_trusted_optimizer_continues(name, config):
    cfg = config(f"optimizer._target_=torch.optim.{name}", *CHANGES.get(name, OTHERS), "trainer.max_steps=4", EARLY)
    train(cfg)
    cfg.resume, cfg.trainer.max_steps = cfg.run_dir, 6
    train(cfg)
    assert Run(cfg.run_dir).result["steps"] == 6


def test_what_differs_is_named():
    example = {"a": [1, 2.0], "b": {"c": None}}
    check_like("x", {"a": [3, 4], "b": {"c": None}}, example)
    for found, message in (
        ({"a": [3, 4]}, r"x must hold a, b, got \['a'\]"),
        ({"a": [-3, 4], "b": {"c": None}}, r"x\.a\.0 must be 1, got -3"),
        ({"a": [3], "b": {"c": None}}, r"x\.a must be a list of 2, got a list of 1"),
        ({"a": [True, 4], "b": {"c": None}}, r"x\.a\.0 must be 1, got True"),
        ({"a": [3, 4], "b": {"c": "text"}}, r"x\.b\.c must be None, got a str"),
    ):
        with pytest.raises(ValueError, match=message):
            check_like("x", found, example)


class Killed(BaseException):
    """Stands for the moment at which a process disappears."""


def contents(folder: Path) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def stop_at(monkeypatch, step: int) -> None:
    """Let the next run disappear at a step."""
    original = ELBO.__call__

    def deadly(self, vae, x, at):
        if at == step:
            raise Killed
        return original(self, vae, x, at)

    monkeypatch.setattr(ELBO, "__call__", deadly)


@pytest.mark.fault
@pytest.mark.parametrize("ends", ["completed", "killed"])
def test_c9_a_run_whose_checkpoints_are_gone_is_not_begun_again(ends, config, monkeypatch):
    cfg = config("trainer.max_epochs=2")
    with monkeypatch.context() as context:
        if ends == "killed":
            stop_at(context, 4)
            with pytest.raises(Killed):
                train(cfg)
        else:
            train(cfg)
    folder = Path(cfg.run_dir)
    shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    with pytest.raises(RunError, match="has no checkpoint to continue from"):
        train(cfg)
    assert contents(folder) == before


@pytest.mark.fault
@pytest.mark.parametrize(("step", "callbacks"), [(0, "default"), (4, "none")])
def test_c9_a_run_that_was_killed_before_it_saved_anything_begins_again(step, callbacks, config, monkeypatch):
    tiny = ["logger=none", "trainer=cpu", "trainer.max_epochs=2", "trainer.limit_train_batches=3", "latent_dim=2"]
    cfg = config(f"callbacks={callbacks}", tiny=tiny)
    with monkeypatch.context() as context:
        stop_at(context, step)
        with pytest.raises(Killed):
            train(cfg)
    shutil.rmtree(Path(cfg.run_dir) / "checkpoints", ignore_errors=True)
    cfg.resume = cfg.run_dir
    train(cfg)
    assert Run(cfg.run_dir).result["steps"] == 6


@pytest.mark.fault
@pytest.mark.parametrize("times", [5, [5], {"started": 5}])
def test_a_damaged_status_is_named_before_anything_is_written(times, config):
    cfg = config()
    train(cfg)
    folder = Path(cfg.run_dir)
    (folder / "status.json").write_text(json.dumps({"state": "failed", "times": times}))
    before = contents(folder)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, 3
    with pytest.raises(RunError, match=r"status\.json is damaged \(times is not a list"):
        train(cfg)
    assert contents(folder) == before


@pytest.mark.fault
@pytest.mark.parametrize("limit", ["ten", [3]])
def test_a_limit_of_another_kind_is_refused_before_it_is_compared(limit, config):
    cfg = config()
    train(cfg)
    cfg.resume, cfg.trainer.max_epochs = cfg.run_dir, limit
    with pytest.raises(ValueError, match=r"trainer\.max_epochs must be a whole number"):
        train(cfg)
    assert Run(cfg.run_dir).status["state"] == "completed"
