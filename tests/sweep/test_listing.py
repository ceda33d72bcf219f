"""`vae-lab-ls`: what it shows, chooses and removes, from made-up run folders."""

import json
import os
import socket
from io import StringIO
from pathlib import Path

import pytest

from vae_lab.errors import RunError
from vae_lab.runs.files import locked
from vae_lab.sweep import listing
from vae_lab.sweep.listing import CACHE, list_runs


def make_run(folder: Path, state: str, day: int, result: dict | None = None, losses: tuple = (), monitor="val/loss"):
    (folder / ".hydra").mkdir(parents=True)
    config = f"seed: 0\ncallbacks:\n  checkpoints:\n    _target_: x\n    monitor: {monitor}\n    mode: min\n"
    (folder / ".hydra" / "config.yaml").write_text(config)
    times = {"started": f"2026-01-0{day}T12:00:00+00:00"}
    times |= {} if state == "running" else {"ended": f"2026-01-0{day}T14:30:00+00:00"}
    (folder / "status.json").write_text(json.dumps({"state": state, "times": [times]}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": i, monitor: loss} for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Three runs by themselves, and a sweep of two."""
    monkeypatch.chdir(tmp_path)
    day = Path("outputs/2026-01-01")
    make_run(day / "a", "completed", 1, {"best_value": 90.0, "val/elbo": -95.0, "name": "x"})
    make_run(day / "b", "completed", 4, {"best_value": -70.0, "val/elbo": -70.0}, monitor="val/elbo")
    make_run(day / "c", "preempted", 5, losses=(80.0, 60.0, float("nan"), 61.0))
    sweep = Path("outputs/sweeps/mine")
    make_run(sweep / "seed=0_12", "completed", 2, {"best_value": 50.0, "val/elbo": float("nan")})
    make_run(sweep / "seed=1_34", "failed", 3)
    (sweep / "multirun.yaml").write_text("")
    return tmp_path / "outputs"


def shown(capsys, *arguments: str) -> list[list[str]]:
    list_runs(list(arguments))
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_runs_and_sweeps_are_shown_the_newest_last(outputs, capsys):
    for _ in range(2):  # the second time from the cache
        head, *lines = shown(capsys)
        assert head == ["state", "started", "took", "size", "best", "folder"]
        assert [line[-1].removeprefix("outputs/") for line in lines] == [
            "2026-01-01/a", "sweeps/mine", "2026-01-01/b", "2026-01-01/c",
        ]  # fmt: skip
        assert [line[-3:-1] for line in lines] == [
            ["90", "val/loss"], ["50", "val/loss"], ["-70", "val/elbo"], ["60", "val/loss"],
        ]  # fmt: skip
        assert lines[1][:4] == ["1", "completed,", "1", "failed"]
        assert lines[1][7:9] == ["5", "h"]  # that both jobs took
    assert [line[-1] for line in shown(capsys, "outputs/sweeps/mine")[1:]] == [
        "outputs/sweeps/mine/seed=0_12", "outputs/sweeps/mine/seed=1_34",
    ]  # fmt: skip
    assert len(shown(capsys, "outputs/2026-01-01/c")) == 2


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--last"], ["2026-01-01/c"]),
        (["--last", "--state=completed"], ["2026-01-01/b"]),
        (["--best", "val/elbo"], ["2026-01-01/b"]),  # higher is better, NaN is no value
        (["--best=val/elbo", "outputs/2026-01-01/a"], ["2026-01-01/a"]),
        (["--state", "failed"], ["sweeps/mine/seed=1_34"]),
        (["--state=running"], []),
    ],
)
def test_folders_for_a_shell(outputs, capsys, arguments, found):
    assert shown(capsys, *arguments) == [[f"outputs/{name}"] for name in found]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--best", "val/kl"], ValueError, "best must be a metric of which one side is better"),
        (["--best", "val/mse"], RunError, "no completed run below outputs has val/mse"),
        (["--state", "broken"], ValueError, "state must be one of"),
        (["nowhere"], RunError, "nowhere is not a folder"),
        (["--remove"], ValueError, "remove needs the folders of runs or sweeps"),
        (["--remove", "outputs", "--yes"], ValueError, "remove needs .* below outputs"),
        (["--remove", "outputs/sweeps/mine"], ValueError, "add --yes"),
    ],
)
def test_what_cannot_be_done_is_said(outputs, monkeypatch, arguments, error, message):
    monkeypatch.setattr("sys.stdin", StringIO())
    before = sorted(path for path in outputs.rglob("*") if path.name != CACHE)
    with pytest.raises(error, match=message):
        list_runs(arguments)
    assert sorted(path for path in outputs.rglob("*") if path.name != CACHE) == before


def test_the_cache_saves_the_reading_and_is_never_believed_too_much(outputs, capsys, monkeypatch):
    first = shown(capsys)
    read, reads = listing.read_row, []
    monkeypatch.setattr(listing, "read_row", lambda folder: (reads.append(folder.name), read(folder))[1])
    assert shown(capsys) == first
    assert reads == []
    path = outputs / "2026-01-01" / "a" / "status.json"
    os.utime(path, ns=(0, 1))  # a run that went on
    assert shown(capsys) == first
    assert reads == ["a"]
    whole = json.loads((outputs / CACHE).read_text())
    key = next(iter(whole))
    for damaged in (b"", b"[", b"[]", b"\xff", *(
        json.dumps(whole | {key: [whole[key][0], row]}).encode()
        for row in (None, [], [1] * 7, ["completed", "x", 0, 0, "m", 0, {}], ["gone", 0, 0, 0, "m", 0, {}])
    )):  # fmt: skip
        (outputs / CACHE).write_bytes(damaged)
        assert shown(capsys) == first
    (outputs / CACHE).unlink()
    assert shown(capsys) == first


def test_a_running_run_is_read_each_time_and_a_killed_one_is_told(outputs, capsys):
    run = outputs / "2026-01-01" / "d"
    make_run(run, "running", 6, losses=(9.0,))
    assert shown(capsys)[-1][0] == "running"
    (run / "metrics.jsonl").write_text('{"step": 1, "val/loss": 3.5}\n')
    assert shown(capsys)[-1][-3] == "3.5"
    for host, state in ((socket.gethostname(), "interrupted"), ("elsewhere", "running")):
        (run / ".lock").write_text(f"process 99999999 on {host}\n")
        assert shown(capsys)[-1][0] == state


def test_what_is_named_is_removed_and_nothing_else(outputs, capsys):
    shown(capsys, "--remove", "--yes", "--state=failed")
    assert sorted(path.name for path in outputs.glob("sweeps/mine/*/")) == ["seed=0_12"]
    lines = shown(capsys, "--remove", "--yes", "outputs/sweeps/mine", "outputs/sweeps/mine/seed=0_12")
    assert lines[-1] == ["removed", "1"]
    assert lines[1][-1] == "outputs/sweeps/mine"  # shown before
    assert list((outputs / "sweeps").iterdir()) == []
    assert sorted(path.name for path in outputs.glob("*/*/")) == ["a", "b", "c"]
    assert shown(capsys, "--remove", "--yes", "--state=failed") == [["nothing", "to", "remove"]]


def test_what_is_at_work_is_never_removed(outputs, capsys):
    run = outputs / "2026-01-01" / "a"
    with locked(run / ".lock"), pytest.raises(RunError, match="is locked by process"):
        list_runs(["--remove", "--yes", "outputs/2026-01-01/b", "outputs/2026-01-01/a"])
    make_run(outputs / "sweeps" / "mine" / "seed=2_56", "running", 6)
    with pytest.raises(RunError, match="seed=2_56 is running; stop it first"):
        list_runs(["--remove", "--yes", "outputs/sweeps/mine"])
    assert len(list(outputs.glob("*/*/status.json"))) == 3
    assert len(list(outputs.glob("sweeps/mine/*/status.json"))) == 3


def test_a_removal_is_asked_for_on_a_terminal(outputs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    for answer, is_there in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        list_runs(["--remove", "outputs/2026-01-01/a"])
        assert (outputs / "2026-01-01" / "a").exists() == is_there
