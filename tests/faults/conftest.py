"""A run folder, and the doors through which a stranger's one can come in."""

import sys
from pathlib import Path

import pytest

import vae_lab
from vae_lab import __main__ as commands


@pytest.fixture
def command(monkeypatch, capsys):
    """Run one of the commands in this process; returns its exit code and the last line of what it printed."""
    entry = {"vae-lab": commands.main, "vae-lab-eval": commands.evaluate, "vae-lab-export": commands.export}

    def run(name: str, *arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        try:
            entry[name]()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        run.printed = "".join(capsys.readouterr())
        assert "Traceback" not in run.printed
        return code, run.printed.strip().rpartition("\n")[2]

    return run


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What every attack below makes if it succeeds, with a module that makes it when it is imported."""
    path = tmp_path / "marker"
    (tmp_path / "hostile_module.py").write_text(f"open({str(path)!r}, 'w').close()\nclass Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("hostile_module", None)


@pytest.fixture
def open_run(command):
    """Let a run folder in through one of the doors; returns the exit code and the message."""

    def through(door: str, folder: Path) -> tuple[int, str]:
        if door == "load_run":
            try:
                vae_lab.load_run(folder, "last")
            except Exception as error:
                return getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1), str(error)
            return 0, ""
        if door == "resume":
            return command("vae-lab", f"resume={folder}", "trainer.max_steps=4")
        return command(f"vae-lab-{door}", folder, "checkpoint=last")

    return through
