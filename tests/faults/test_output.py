"""Nobody reads what is printed: the work goes on."""

import os
import sys
from pathlib import Path

import pytest
from command import TINY, status

pytestmark = pytest.mark.fault

LOUD = [setting for setting in TINY if setting != "callbacks.summary=null"]  # a table before and after training


def broken(kind: str):
    """A stream that cannot be written to."""
    if kind == "full disk":
        return open("/dev/full", "w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", ["closed pipe", "full disk"])
def test_h6_output_that_nobody_reads_ends_nothing(kind, name, tmp_path, command, monkeypatch, caplog):
    run = tmp_path / "run"
    for arguments in (["vae-lab", *LOUD, f"hydra.run.dir={run}"], ["vae-lab-eval", run]):
        with monkeypatch.context() as patch, broken(kind) as stream:
            patch.setattr(sys, name, stream)
            code, _ = command(*arguments)
            assert getattr(sys, name) is stream
        assert code == 0, command.printed
        assert caplog.text.count(f"cannot write to {name} any more") == (name == "stdout" or arguments[0] == "vae-lab")
        caplog.clear()
    assert status(run)["state"] == "completed"
    assert "test/elbo" in (run / "result.json").read_text()
    assert f"cannot write to {name} any more" in (run / "train.log").read_text()


def test_h6_output_that_is_closed_ends_nothing(tmp_path, command, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert command("vae-lab", *LOUD, f"hydra.run.dir={tmp_path / 'run'}")[0] == 0


@pytest.mark.parametrize("kind", ["closed pipe", "full disk"])
def test_h6_a_failure_keeps_its_exit_code_where_nobody_reads_it(kind, tmp_path, command, monkeypatch):
    with monkeypatch.context() as patch, broken(kind) as stream:
        patch.setattr(sys, "stderr", stream)
        assert command("vae-lab-eval", Path(tmp_path))[0] == 5
