"""Failures inside torch, in the user's terms; `faults/test_numerics.py` and `test_kills.py` have them in runs."""

import signal

import pytest

from vae_lab.errors import OutOfMemoryError, RunError
from vae_lab.training.diagnosis import diagnosed
from vae_lab.training.train import train

DEAD = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
CASES = {
    "cuBLAS": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), [], OutOfMemoryError, "dataset.batch_size=8 "),
    "memory for one": (MemoryError(), ["dataset.batch_size=1"], OutOfMemoryError, "batch_size is 1 already"),
    "worker": (DEAD, ["dataset.num_workers=3"], RunError, "num_workers=3 died .* resume=.*/run dataset.num_workers=0$"),
    "silent worker": (EOFError(), ["dataset.num_workers=1"], RunError, r"num_workers=1 died \(EOFError\)"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_failure_names_the_setting_to_change(name, config):
    error, overrides, kind, message = CASES[name]
    with pytest.raises(kind, match=message) as caught, diagnosed(config(*overrides)):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("mat1 and mat2"), KeyError("x")])
def test_what_is_not_known_is_left_as_it_is(error, config):
    with pytest.raises(type(error)) as caught, diagnosed(config()):
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is None


@pytest.mark.fault
@pytest.mark.parametrize("key", ["trainer.limit_train_batches", "trainer.limit_val_batches"])
def test_what_lightning_calls_misconfigured_is_a_setting(key, config):
    with pytest.raises(ValueError, match=f"increase the `{key}` argument"):
        train(config(f"{key}=0.0001"))


def test_a_failure_is_told_where_no_signal_tells_of_dead_workers(monkeypatch, config):
    monkeypatch.delattr(signal, "SIGCHLD")  # as on Windows
    with pytest.raises(ValueError, match="the failure"), diagnosed(config()):
        raise ValueError("the failure")
