"""Nobody reads what is printed: the work goes on."""

import os
import sys

import pytest
from command import TINY, finish, start, status

pytestmark = pytest.mark.fault

LOUD = [setting for setting in TINY if setting != "callbacks.summary=null"]  # a table before and after training


def broken(kind: str):
    """A stream that cannot be written to."""
    if kind == "full disk":
        return open("/dev/full", "w")
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.parametrize(("kind", "name"), [("closed pipe", "stdout"), ("full disk", "stderr")])
def test_h6_output_that_nobody_reads_ends_nothing(kind, name, tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, broken(kind) as stream:
        patch.setattr(sys, name, stream)
        code, _ = command("vae-lab", *LOUD, f"hydra.run.dir={run}")
        assert getattr(sys, name) is stream
    assert code == 0
    assert status(run)["state"] == "completed"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("closed pipe", ""),
        ("full disk", "vae-lab: what is printed is lost (No space left on device); the work goes on\n"),
    ],
)
def test_h6_only_what_is_wrong_is_told_once(kind, told, tmp_path):
    with broken(kind) as stream:
        process = start("--help", cwd=tmp_path, stdout=stream)
        done = finish(process)
    assert (done.returncode, done.stderr) == (0, told)


def test_h6_output_that_is_closed_ends_nothing(tmp_path, command, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert command("vae-lab", *LOUD, f"hydra.run.dir={tmp_path / 'run'}")[0] == 0


def test_h6_a_failure_keeps_its_exit_code_where_nobody_reads_it(tmp_path, command, monkeypatch):
    for kind in ("closed pipe", "full disk"):
        with monkeypatch.context() as patch, broken(kind) as stream:
            patch.setattr(sys, "stderr", stream)
            assert command("vae-lab-eval", tmp_path)[0] == 5
