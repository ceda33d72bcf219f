import errno
import os
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from vae_lab.errors import NumericsError
from vae_lab.runs.checkpoints import (
    Checkpoints,
    DurableCheckpointIO,
    is_safe_point,
    load_checkpoint,
    save_last,
)


def trainer(batch_idx=0, num_batches=10, accumulate=1, val_check_batch=10, every_n_epoch=1, total_batch_idx=0):
    return SimpleNamespace(
        num_training_batches=num_batches,
        lightning_module=SimpleNamespace(accumulate=accumulate),
        val_check_batch=val_check_batch,
        check_val_every_n_epoch=every_n_epoch,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=batch_idx, total_batch_idx=total_batch_idx)),
    )


@pytest.mark.parametrize(
    ("settings", "safe"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # not the last batch: the end of the epoch is still to come
        ({"accumulate": 3}, [2, 5, 8]),  # only where a gradient has been applied
        ({"val_check_batch": 4}, [0, 1, 2, 4, 5, 6, 8]),  # not where a validation is still to come
        ({"val_check_batch": 4, "accumulate": 2}, [1, 5]),
        ({"val_check_batch": float("inf")}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # no validation at all
    ],
)
def test_safe_points(settings, safe):
    assert [i for i in range(10) if is_safe_point(trainer(i, **settings))] == safe


def test_validations_may_be_counted_across_epochs():
    # check_val_every_n_epoch=null: every 4th batch of the run, and this epoch began after 10 of them.
    fakes = [trainer(i, val_check_batch=4, every_n_epoch=None, total_batch_idx=10 + i) for i in range(10)]
    assert [i for i, fake in enumerate(fakes) if is_safe_point(fake)] == [0, 2, 3, 4, 6, 7, 8]


# The callback


class FakeTrainer(SimpleNamespace):
    """A trainer whose checkpoint is its step."""

    def save_checkpoint(self, path, weights_only=None):
        DurableCheckpointIO().save_checkpoint({"step": self.global_step}, path)

    def validate(self, callback, lit, step, value):
        self.global_step = step
        self.callback_metrics = {"val/loss": torch.tensor(value), "val/kl": torch.tensor(1.0), "train/loss": 0.0}
        callback.on_validation_end(self, lit)
        callback.on_train_epoch_end(self, lit)


@pytest.fixture
def fit(tmp_path):
    lit = SimpleNamespace(batches_seen=10, epochs_begun=1, state_dict=lambda: {"w": torch.ones(2)})
    state = {"is_global_zero": True, "sanity_checking": False, "global_step": 0, "current_epoch": 0}
    state |= {"num_training_batches": 10, "state": SimpleNamespace(fn="fit")}
    fake = FakeTrainer(default_root_dir=tmp_path, **state)
    return fake, lit, tmp_path / "checkpoints"


@pytest.mark.parametrize(("mode", "values", "best"), [("min", (3, 1, 5, 1), 20), ("max", (3, 1, 5, 5), 30)])
def test_best_is_the_first_of_the_best_and_last_is_the_last(fit, mode, values, best):
    fake, lit, folder = fit
    callback = Checkpoints("val/loss", mode, 10)
    for number, value in enumerate(values, 1):
        fake.validate(callback, lit, 10 * number, float(value))
        state, callback = callback.state_dict(), Checkpoints("val/loss", mode, 10)
        callback.load_state_dict(state)  # as after a kill
    assert load_checkpoint(folder / "best.ckpt") == {"step": best}
    assert load_checkpoint(folder / "last.ckpt") == {"step": 40}
    assert sorted(os.listdir(folder)) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert callback.best["step"] == best
    assert callback.best["metrics"].keys() == {"val/loss", "val/kl"}


@pytest.mark.parametrize(
    ("mode", "settings", "kept"),
    [
        ("min", {"keep": 2}, [2, 4]),
        ("max", {"keep": 2}, [1, 3]),  # of the equal ones the first
        ("last", {"keep": 2}, [5, 6]),
        ("min", {"every_n_epochs": 2}, [2, 4, 6]),
        ("min", {"every_n_epochs": 3, "keep": 1}, [6]),
        ("min", {}, []),
    ],
)
def test_so_many_of_so_many_epochs_are_kept(fit, mode, settings, kept):
    fake, lit, folder = fit
    callback = Checkpoints("val/loss", mode, 10, **settings)
    for epoch, value in enumerate((4.0, 1.0, 5.0, 2.0, 3.0, 4.0), 1):
        lit.epochs_begun = epoch
        fake.validate(callback, lit, 10 * epoch, value)
        state, callback = callback.state_dict(), Checkpoints("val/loss", mode, 10, **settings)
        callback.load_state_dict(state)  # as after a kill
    steps = {path.name: load_checkpoint(path)["step"] for path in folder.glob("epoch_*")}
    assert steps == {f"epoch_{epoch:04d}.ckpt": 10 * epoch for epoch in kept}


def test_a_file_system_without_links_gets_a_copy(fit, monkeypatch):
    fake, lit, folder = fit
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(errno.EPERM, "Operation not permitted")))
    callback = Checkpoints("val/loss", "min", 10)
    for step, value in ((10, 1.0), (20, 2.0)):
        fake.validate(callback, lit, step, value)
    assert load_checkpoint(folder / "best.ckpt") == {"step": 10}
    assert sorted(os.listdir(folder)) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_never_replace_a_good_checkpoint(fit, value):
    fake, lit, folder = fit
    save_last(fake, lit)
    lit.state_dict = lambda: {"good": torch.ones(1), "decoder.bad": torch.tensor([1.0, value])}
    fake.global_step = 7
    with pytest.raises(NumericsError, match=r"decoder\.bad is not finite at step 7"):
        save_last(fake, lit)
    assert load_checkpoint(folder / "last.ckpt") == {"step": 0}
