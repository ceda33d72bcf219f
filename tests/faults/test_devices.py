"""Devices, processes and precisions that this machine does not have."""

import pytest
import torch
from refusals import refused

from vae_lab.training.devices import check_devices

pytestmark = pytest.mark.fault

CPU = {
    "trainer.devices=4": "trainer.devices=4 on a CPU means 4 processes; use trainer.devices=1, or add",
    "trainer.devices=0": "trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got 0",
    "trainer.devices=[0,1]": "trainer.devices must be 1 on a CPU (or more with trainer.strategy=ddp), got [0, 1]",
    "trainer.accelerator=gpu": "trainer.accelerator must be one of auto, cpu on this machine, got 'gpu'",
    "trainer.precision=8": "trainer.precision must be one of 32-true, bf16-mixed, 16-mixed, mixed, got 8",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU; use bf16-mixed, 32-true or mixed",
    "trainer.strategy=xyz": "trainer.strategy must be one of auto, ddp, ddp_find_unused_parameters_true, got 'xyz'",
    "trainer.num_nodes=2": "trainer.num_nodes must be 1: a run stays on one machine, got 2",
    "trainer.sync_batchnorm=true": "trainer.sync_batchnorm=true needs GPUs",
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("vae_lab.training.devices.MPSAccelerator.is_available", lambda: False)


@pytest.mark.parametrize("override", CPU)
def test_a6_a_device_that_is_not_there_is_refused_with_those_that_are(override, config, no_gpu):
    assert refused(config(override)).startswith(CPU[override])


def test_a6_more_processes_than_cpus_are_refused(config, no_gpu):
    message = refused(config("trainer.strategy=ddp", "trainer.devices=99999"))
    assert message.startswith("trainer.devices must be at most ")


def test_a6_a_gpu_that_is_not_there_is_refused_with_the_number_of_those_that_are(config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = config(tiny=["trainer.accelerator=gpu"])
    for wrong in (3, 0, -2, [2], [0, 0], [], "3", "0,2", "x"):
        cfg.trainer.devices = wrong
        with pytest.raises(ValueError, match=r"devices must be a number of GPUs, at most 2, or a list .* 0 to 1, got"):
            check_devices(cfg.trainer)
    for good in (1, 2, -1, "auto", [1], [1, 0], "2", "0,1"):
        cfg.trainer.devices = good
        check_devices(cfg.trainer)
