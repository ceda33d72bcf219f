"""A run needs nothing that only POSIX has; tests/windows.py makes the machine."""

import json
import signal

import pytest
from command import TINY, status
from windows import on_windows

from vae_lab.training.diagnosis import diagnosed


@pytest.mark.slow
def test_a_run_trains_and_continues_without_what_only_posix_has(tmp_path):
    done = on_windows("main", *TINY, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = on_windows("main", "resume=run", "trainer.max_steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "run")["state"] == "completed"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 4
    assert result["peak_memory_mb"] > 0


def test_a_failure_is_told_where_no_signal_tells_of_dead_workers(monkeypatch, config):
    monkeypatch.delattr(signal, "SIGCHLD")
    with pytest.raises(ValueError, match="the failure"), diagnosed(config()):
        raise ValueError("the failure")
