"""What a launcher left in the environment does not make a process one of many; see also `faults/test_disk.py`."""

import os

import pytest

from vae_lab.__main__ import one_line_errors
from vae_lab.errors import Preempted
from vae_lab.runs.process import FIRST, forget_ranks, is_first

pytestmark = pytest.mark.fault


def test_a_signal_ends_a_first_process_with_its_number_and_a_further_one_with_0(monkeypatch):
    for number, code in ((os.getpid(), 143), (os.getppid(), 0)):  # of the process that started this one, or not
        monkeypatch.setenv(FIRST, str(number))
        monkeypatch.setenv("LOCAL_RANK", "1")
        with pytest.raises(SystemExit) as stopped, one_line_errors():
            raise Preempted(143)
        assert stopped.value.code == code


def test_further_processes_keep_their_ranks(monkeypatch):
    monkeypatch.setenv(FIRST, str(os.getppid()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    forget_ranks()
    assert not is_first()
    assert os.environ["LOCAL_RANK"] == "1"
    monkeypatch.setenv(FIRST, "0")
    forget_ranks()
    assert is_first()
    assert "LOCAL_RANK" not in os.environ


def test_a_spawned_job_of_a_sweep_is_a_first_process(monkeypatch):
    monkeypatch.setenv(FIRST, str(os.getppid()))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert is_first()
