"""What a run tells W&B, against a server on the loopback interface, and read back with W&B's own reader."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
from command import vae_lab
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tracking import CONFIG, KEY, METRICS, alone, go_online, history, log_run, parts, read_back, said, tracker
from wandb_server import WandbServer

from vae_lab.loggers import wandb, wandb_process
from vae_lab.loggers.wandb_process import WandbForkServer, WandbProcess


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A server, and one W&B process that all runs of the tests that use it have, one after the other."""
    with pytest.MonkeyPatch.context() as patch, WandbServer() as server:
        alone(patch, tmp_path_factory.mktemp("wandb") / "home")
        go_online(patch, server.url)
        process = WandbProcess()
        process.close, close = lambda timeout: None, process.close
        yield server, process
        close()


@pytest.fixture
def server(one_process, monkeypatch):
    server, process = one_process
    server.runs.clear()
    monkeypatch.setattr(wandb, "WandbProcess", lambda: process)
    return server


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path, caplog):
    alone(monkeypatch, tmp_path / "home")
    caplog.set_level(logging.INFO)
    # These tests are about what arrives, on a machine however busy; those in faults/ are about the time.
    monkeypatch.setattr(wandb_process, "FINISH_TIMEOUT", 100)


@pytest.fixture
def started(monkeypatch) -> list[dict]:
    """With what W&B was to be started; it is not."""
    settings = []

    class Recorder:
        is_over = False
        begin = staticmethod(lambda order, value, patience: settings.append(value))
        send = finish = close = lambda *_: None

    monkeypatch.setattr(wandb, "WandbProcess", Recorder)
    return settings


# --- how it is started


def test_constructing_and_finishing_starts_and_writes_nothing_and_nor_do_other_ranks(tmp_path, monkeypatch, started):
    tracker(tmp_path / "run").finish(0)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_run(tmp_path / "run", mode="offline")
    assert started == []
    assert not (tmp_path / "run").exists()


def test_neither_torch_nor_w_and_b_is_imported_on_the_way_to_its_process():
    script = (
        "import vae_lab.loggers.wandb_process, sys; print({'wandb', 'torch', 'hydra', 'lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("mode", "variables", "wanted"),
    [
        ("auto", {}, "auto"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "foo"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, None),
        ("auto", {"WANDB_DISABLED": "true"}, None),
        ("disabled", {}, None),
    ],
    ids=str,
)
def test_the_environment_chooses_the_mode(tmp_path, monkeypatch, started, mode, variables, wanted):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    log_run(tmp_path / "run", mode=mode)
    assert [settings["mode"] for settings in started] == ([wanted] if wanted else [])


def test_an_agent_of_w_and_b_chooses_the_id(tmp_path, monkeypatch, started):
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    log_run(tmp_path / "alone")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    log_run(tmp_path / "agent")
    assert [settings["run_id"] == "chosen" for settings in started] == [False, True]


@pytest.mark.parametrize("content", [b"\xff\x00", b"a/b"])
def test_a_damaged_id_is_replaced(tmp_path, started, content):
    (tmp_path / "wandb_id").write_bytes(content)
    log_run(tmp_path)
    assert (tmp_path / "wandb_id").read_text() == started[0]["run_id"] + "\n"


def test_a_job_of_a_sweep_is_in_its_group_and_has_its_overrides_as_tags(tmp_path, started):
    (tmp_path / "multirun.yaml").touch()
    (tmp_path / "job" / ".hydra").mkdir(parents=True)
    (tmp_path / "job" / ".hydra" / "overrides.yaml").write_text(f"[latent_dim=2, trainer=cpu, logger=csv, {'x' * 99}]")
    log_run(tmp_path / "job", group=None, tags=[])
    labels = {"group": tmp_path.name, "tags": ["latent_dim=2", "trainer=cpu", "x" * 64]}
    assert started[0]["labels"].items() >= labels.items()
    assert started[0]["folder"] == str(tmp_path)


def test_where_no_process_can_be_started_there_is_one_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "WandbProcess", Mock(side_effect=BlockingIOError(11, "no process left")))
    log_run(tmp_path / "run")
    (line,) = said(caplog)
    assert line.startswith("WARNING W&B does not start, this run is not tracked: ")


# --- online


@pytest.mark.parametrize("exit_code", [0, 1])
def test_online_everything_arrives(server, tmp_path, caplog, exit_code):
    log_run(tmp_path / "run", exit_code, mode="online")
    (received,) = server.runs.values()
    items = [{"type": "history", "history": {"item": item}} for item in received.history]
    assert history(items) == METRICS
    assert received.config == CONFIG
    assert received.fields["displayName"] == "run"
    assert received.fields["groupName"] == "g"
    assert received.fields["jobType"] == "train"
    assert received.fields["tags"] == ["a", "b"]
    assert received.summary["best_value"] == 1.25
    assert received.exit_code == exit_code
    assert said(caplog) == [f"INFO W&B: {server.url}/me/p/runs/{next(iter(server.runs))}"]


def test_pictures_are_uploaded(server, tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    Image.new("P", (4, 4)).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("P", (4, 4), 1)])
    run = tracker(tmp_path)
    run.log_picture("pictures/samples", tmp_path / "a.png", 3)
    run.log_picture("pictures/training", tmp_path / "a.gif", 4)
    run.finish(0)
    (received,) = server.runs.values()
    png, gif = received.history
    assert (png["step"], gif["step"]) == (3, 4)
    assert received.files[png["pictures/samples"]["path"]] == (tmp_path / "a.png").read_bytes()
    assert received.files[gif["pictures/training"]["path"]] == (tmp_path / "a.gif").read_bytes()


def test_resuming_a_folder_continues_the_same_run(server, tmp_path):
    log_run(tmp_path / "run", 1, METRICS[:6])
    log_run(tmp_path / "run", 0, METRICS[4:])
    ((name, received),) = server.runs.items()
    assert name == (tmp_path / "run" / "wandb_id").read_text().strip() == tracker(tmp_path / "run").version
    assert [item["step"] for item in received.history] == [step for step, _ in METRICS[:6] + METRICS[4:]]
    assert received.exit_code == 0


@pytest.mark.slow
def test_runs_that_overlap_have_processes_of_their_own(one_process, tmp_path, monkeypatch):
    server, _ = one_process
    server.runs.clear()
    go_online(monkeypatch, server.url)
    unfinished = tracker(tmp_path / "first")
    unfinished.log_metrics({"loss": 1.0}, 0)
    log_run(tmp_path / "second", metrics=[(1, {"loss": 2.0}), (2, {"loss": 2.0})])
    unfinished.finish(0)
    names = {received.fields["displayName"]: received for received in server.runs.values()}
    assert {name: len(received.history) for name, received in names.items()} == {"first": 1, "second": 2}
    assert all(received.exit_code == 0 for received in names.values())


# --- offline


def test_without_a_key_the_run_is_offline_and_complete(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    log_run(tmp_path / "run", group=None)
    (part,) = parts(tmp_path / "run")
    records = read_back(part)
    assert history(records) == METRICS
    (start,) = [record["run"] for record in records if record["type"] == "run"]
    assert (start["display_name"], start["run_group"], start["entity"]) == ("run", "mine", "us")
    assert (start["job_type"], start["tags"]) == ("train", ["a", "b"])
    (config,) = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert config == CONFIG
    summary = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert any(update.get("best_value") == 1.25 for update in summary)
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]
    assert said(caplog) == [f"INFO W&B: offline, upload with: wandb sync {part}"]


@pytest.mark.slow
def test_offline_parts_merge_into_one_run(server, tmp_path, monkeypatch):
    log_run(tmp_path / "run", 1, METRICS[:6], mode="offline")
    log_run(tmp_path / "run", 0, METRICS[4:], mode="offline")
    assert len(parts(tmp_path / "run")) == 2
    go_online(monkeypatch, server.url)
    command = [sys.executable, "-m", "wandb", "sync", *map(str, parts(tmp_path / "run"))]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=120)
    (received,) = server.runs.values()
    assert [item["step"] for item in received.history] == [step for step, _ in METRICS[:6] + METRICS[4:]]
    assert received.exit_code == 0


def test_an_error_later_on_is_one_warning_and_the_run_is_marked_as_failed(server, tmp_path, caplog):
    run = tracker(tmp_path, mode="offline")
    run.log_metrics({"loss": 1.0}, 0)
    run.log_picture("samples", tmp_path / "missing.png", 1)
    run.log_metrics({"loss": 2.0}, 2)
    run.finish(1)
    (warning,) = [line for line in said(caplog) if not line.startswith("INFO")]
    assert "tracking ends here, the run goes on" in warning
    records = read_back(parts(tmp_path)[0])
    assert history(records) == [(0, {"loss": 1.0})]
    assert records[-1]["exit"]["exit_code"] == 1


def test_a_wandb_folder_that_cannot_be_written_is_one_warning_and_the_next_run_is_tracked(server, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("in the way")
    log_run(tmp_path / "run")
    (line,) = said(caplog)
    assert line.startswith("WARNING W&B does not start, this run is not tracked: ")
    assert str(tmp_path / "run" / "wandb") in line
    log_run(tmp_path / "next")
    assert [run.exit_code for run in server.runs.values()] == [0]


# --- a key


@pytest.mark.slow
def test_mode_online_needs_a_key(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"logger\.wandb\.mode=online is not possible: no API key; set WANDB_API_KEY"):
        tracker(tmp_path, mode="online").check()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1:9\nlogin user\npassword {KEY}\n")
    netrc.chmod(0o600)
    tracker(tmp_path, mode="online").check()
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="WANDB_HTTP_TIMEOUT"):
        tracker(tmp_path, mode="online").check()


# --- a sweep


@pytest.mark.slow
def test_a_forked_process_tracks_and_fails_as_another_one(tmp_path, monkeypatch, caplog):
    server = WandbForkServer()
    for name, number in {"whole": None, "killed": signal.SIGKILL, "frozen": signal.SIGSTOP}.items():
        caplog.clear()
        wandb_process.forked[:] = server.fork()
        run = tracker(tmp_path / name)
        run.log_config(CONFIG)
        assert wandb_process.forked == []
        while run._process._process is None:
            run.log_metrics({"loss": 1.0}, 0)
            time.sleep(0.01)
        process = run._process._process
        assert process.ppid() != os.getpid()
        if number:
            process.send_signal(number)
            monkeypatch.setattr(wandb_process, "FINISH_TIMEOUT", 2)
        else:
            run.log_metrics({"loss": 2.0}, 1)
        run.finish(0)
        assert not process.is_running() or process.status() == "zombie"
        assert len([line for line in said(caplog) if line.startswith("WARNING W&B")]) == bool(number)
    (part,) = parts(tmp_path / "whole")
    records = read_back(part)
    assert history(records)[-1] == (1, {"loss": 2.0})
    assert records[-1]["exit"]["exit_code"] == 0
    server.close()
    assert server.fork() == []


@pytest.mark.slow
def test_what_starts_a_run_is_imported_before_a_process_is_forked(tmp_path):
    settings = {"mode": "offline", "folder": str(tmp_path), "run_id": "run", "name": "run", "init_timeout": 60}
    settings |= {"pid": os.getpid(), "labels": {"project": "mine"}, "upload_timeout": 8}
    script = (
        "import importlib, queue, sys\n"
        "from vae_lab.loggers.wandb_worker import USED_BY_WANDB, Worker\n"
        "for name in ('wandb', *USED_BY_WANDB): importlib.import_module(name)\n"
        "before, worker = {*sys.modules}, Worker(None, queue.SimpleQueue())\n"
        "worker.report = print\n"
        f"run = worker._start({settings})\n"
        "print(sorted({*sys.modules} - before))\n"
        "run.finish()"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    told, imported = done.stdout.splitlines()
    assert "W&B: offline" in told
    assert imported == "[]"


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_runs_of_one_group(tmp_path):
    command = ["-m", "latent_dim=2,3,-2", "trainer=cpu", "trainer.max_epochs=1", "callbacks.gallery=null"]
    done = vae_lab(*command, "model.hidden_dims=[8]", "sweep.name=mine", "logger.wandb.mode=offline", cwd=tmp_path)
    assert done.returncode == 6, done.stderr  # the third was refused before it was tracked
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    jobs = {folder.parent.name: folder.parent for folder in sweep.glob("*/result.json")}
    runs = [read_back(part) for part in parts(sweep)]
    assert len(runs) == len(jobs) == 2
    for records in runs:
        (start,) = [record["run"] for record in records if record["type"] == "run"]
        folder = jobs[start["display_name"]]
        assert start["run_group"] == "mine"
        assert "trainer.max_epochs=1" in start["tags"]
        assert len({"latent_dim=2", "latent_dim=3"} & {*start["tags"]}) == 1
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        wanted = [(line.pop("step"), {k: v for k, v in line.items() if k != "time"}) for line in lines]
        assert [item for item in history(records) if "media" not in item[1]] == wanted
        best = json.loads((folder / "result.json").read_text())["best_value"]
        updates = [record["summary"]["update"] for record in records if record["type"] == "summary"]
        assert any(update.get("best_value") == best for update in updates)
        assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]
    assert not list(sweep.glob("*/wandb"))
