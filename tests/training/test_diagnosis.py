"""Failures inside torch, in the user's terms."""

import pytest

from vae_lab.errors import OutOfMemoryError, RunError
from vae_lab.training.diagnosis import diagnose, diagnosed
from vae_lab.training.train import train


def test_out_of_memory_halves_the_batch_and_keeps_the_gradients(config):
    cfg = config("dataset.batch_size=64", "trainer.accumulate_grad_batches=2")
    found = diagnose(RuntimeError("CUDA out of memory. Tried\nmore"), cfg)
    assert isinstance(found, OutOfMemoryError)
    assert "dataset.batch_size=32 trainer.accumulate_grad_batches=4" in str(found)
    assert "\n" not in str(found)


def test_a_batch_of_one_cannot_be_halved(config):
    found = diagnose(MemoryError(), config("dataset.batch_size=1"))
    assert "dataset.batch_size is 1 already" in str(found)


def test_a_dead_worker_is_an_interrupted_run(config):
    cfg = config("dataset.num_workers=3")
    found = diagnose(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), cfg)
    assert isinstance(found, RunError)
    assert "dataset.num_workers=3" in str(found)
    assert f"resume={cfg.run_dir} dataset.num_workers=0" in str(found)


@pytest.mark.fault
@pytest.mark.parametrize("key", ["trainer.limit_train_batches", "trainer.limit_val_batches"])
def test_what_lightning_calls_misconfigured_is_a_setting(key, config):
    with pytest.raises(ValueError, match=f"increase the `{key}` argument"):
        train(config(f"{key}=0.0001"))


def test_what_is_not_known_is_left_as_it_is(config):
    for error in (ValueError("out of memory"), RuntimeError("mat1 and mat2 shapes"), KeyError("x")):
        assert diagnose(error, config()) is error
    bug = RuntimeError("mat1 and mat2 shapes")
    with pytest.raises(RuntimeError) as caught, diagnosed(config()):
        raise bug
    assert caught.value is bug
    assert caught.value.__cause__ is None
