"""Signals outside training, which interrupt whatever goes on there."""

import signal
import subprocess
import sys

import pytest

from vae_lab.errors import Preempted
from vae_lab.runs.checkpoints import StopAtSignal
from vae_lab.runs.signals import Preemption, heeded


def interrupt() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_an_interruption_that_a_library_makes_an_error_of_its_own_is_still_one():
    def library():
        try:
            interrupt()
        except BaseException as error:
            raise ValueError("cannot import it") from error

    with pytest.raises(Preempted) as stop, Preemption() as preemption, preemption.first():
        library()
    assert stop.value.code == 143


def test_an_interruption_that_a_library_swallows_stops_the_training():
    with Preemption() as preemption:
        with pytest.raises(Preempted):
            interrupt()
        with pytest.raises(Preempted) as stop:
            StopAtSignal(preemption).on_train_start(None, None)
    assert stop.value.code == 143


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(ValueError, match="wrong"), Preemption() as preemption, preemption.first():
        raise ValueError("wrong")


def test_a_signal_that_comes_twice_at_once_is_one_request():
    with Preemption() as preemption:
        with pytest.raises(Preempted):
            interrupt()
        interrupt()
        preemption.asked_at -= 1
        with pytest.raises(Preempted):
            interrupt()


def test_every_signal_of_the_platform_is_heeded_but_a_hangup_under_nohup():
    names = {number.name for number in heeded()}
    assert {"SIGTERM", "SIGINT"} <= names
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert {number.name for number in heeded()} == names - {"SIGHUP"}
    finally:
        signal.signal(signal.SIGHUP, before)


FIRST_PROCESS = """
import multiprocessing, signal, time
from vae_lab.runs.signals import SIGNALS, signals_wait

if __name__ == "__main__":
    with signals_wait():
        multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,)).start()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert set(SIGNALS) <= held, held
    assert not set(SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def test_signals_wait_until_the_first_process_of_all_has_been_started(tmp_path):
    (tmp_path / "first.py").write_text(FIRST_PROCESS)  # in a process that has not started any
    subprocess.run([sys.executable, tmp_path / "first.py"], check=True, timeout=60)
