"""The tracker against a W&B server on the loopback interface, and read back with W&B's own reader."""

import json
import logging
import multiprocessing
import os
import pty
import socket
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from wandb_server import WandbServer

from vae_lab import trackers
from vae_lab.trackers import WandbTracker

KEY = "a1" * 20
OVERHEAD = 10  # seconds beyond init_timeout, the documented bound
METRICS = [(step, {"val/loss": 100 / 3 - step, "val/kl": step / 7, "epoch": step // 2}) for step in range(0, 50, 5)]
CONFIG = {"seed": 0, "loss": {"KLD_weight": 1.0}, "sizes": [1, 2]}

# W&B keeps state per process, so every run gets a fresh one, forked from a server that has imported torch already.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["vae_lab.trackers"])


def tracker(folder, **changes) -> WandbTracker:
    arguments = {"project": "p", "entity": None, "group": "g", "job_type": "train", "tags": ["a", "b"], "name": None}
    return WandbTracker(**{"save_dir": str(folder), **arguments, "mode": "auto", "init_timeout": 15, **changes})


def log_run(folder, exit_code=0, metrics=METRICS, **changes):
    run = tracker(folder, **changes)
    run.log_config(CONFIG)
    for step, values in metrics:
        run.log_metrics(values, step)
    run.summarize({"best_value": 1.25, "images_per_second": 1000})
    run.finalize("success")
    run.finish(exit_code)
    run.finish(1)  # must not change how it ended


def child(action, environment, output, arguments, options):
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "ab", 0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    warnings.simplefilter("error")
    try:
        action(*arguments, **options)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # as at the end of a program


@pytest.fixture
def run(tmp_path):
    """Calls a function in a fresh process with its own home and further environment variables; returns its output."""
    base = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    base |= {"HOME": str(tmp_path / "home"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    (tmp_path / "home").mkdir()

    def call(action, *arguments, variables=None, **options) -> str:
        output = tmp_path / "output"
        output.unlink(missing_ok=True)
        process = processes.Process(
            target=child, args=(action, {**base, **(variables or {})}, output, arguments, options)
        )
        process.start()
        process.join(120)
        assert process.exitcode == 0, output.read_text()
        process.close()
        return output.read_text()

    return call


@pytest.fixture
def server():
    with WandbServer() as server:
        yield server


def online(server) -> dict:
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}


def parts(folder, pattern="*run-*") -> list[Path]:
    return sorted(Path(folder).glob(f"wandb/{pattern}"))


def read_back(part) -> list[dict]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(part)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines]


def history(records) -> list[tuple[int, dict]]:
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [(item["step"], {key: item[key] for key in item if key[0] != "_" and key != "step"}) for item in items]


def warnings_in(output) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("WARNING", "ERROR"))]


# --- the constructor


def construct(folder):
    tracker(folder).finish(0)
    assert "wandb" not in sys.modules
    assert not folder.exists()


def test_constructing_imports_and_writes_nothing(run, tmp_path):
    assert run(construct, tmp_path / "run") == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "onlin"}, r"logger\.wandb\.mode must be one of auto, online, offline, disabled, got 'onlin'"),
        ({"init_timeout": 0}, r"logger\.wandb\.init_timeout must be > 0, got 0"),
        ({"init_timeout": float("nan")}, r"logger\.wandb\.init_timeout must be > 0, got nan"),
    ],
)
def test_arguments_are_checked(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tracker(tmp_path, **changes)


def test_the_run_is_named_after_its_folder(tmp_path):
    assert tracker(tmp_path / "12-30-00_mnist").name == "12-30-00_mnist"
    assert tracker(tmp_path, name="mine").name == "mine"


def test_disabled_and_other_ranks_do_nothing(tmp_path, monkeypatch):
    log_run(tmp_path / "run", mode="disabled")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_run(tmp_path / "run", mode="offline")
    assert not (tmp_path / "run").exists()


# --- online


@pytest.mark.parametrize("exit_code", [0, 1])
def test_online_everything_arrives(run, server, tmp_path, exit_code):
    output = run(log_run, tmp_path / "run", exit_code, variables=online(server))
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
    assert output.splitlines() == [f"INFO W&B: {server.url}/me/p/runs/{next(iter(server.runs))}"]


def draw(folder):
    Image.new("RGB", (4, 4), "red").save(folder / "a.png")
    Image.new("P", (4, 4)).save(folder / "a.gif", save_all=True, append_images=[Image.new("P", (4, 4), 1)])
    run = tracker(folder)
    run.log_picture("pictures/samples", folder / "a.png", 3)
    run.log_picture("pictures/training", folder / "a.gif", 4)
    run.finish(0)


def test_pictures_are_uploaded(run, server, tmp_path):
    run(draw, tmp_path, variables=online(server))
    (received,) = server.runs.values()
    png, gif = received.history
    assert (png["step"], gif["step"]) == (3, 4)
    assert received.files[png["pictures/samples"]["path"]] == (tmp_path / "a.png").read_bytes()
    assert received.files[gif["pictures/training"]["path"]] == (tmp_path / "a.gif").read_bytes()


def test_resuming_a_folder_continues_the_same_run(run, server, tmp_path):
    run(log_run, tmp_path / "run", 1, METRICS[:6], variables=online(server))
    run(log_run, tmp_path / "run", 0, METRICS[4:], variables=online(server))
    ((name, received),) = server.runs.items()
    assert name == (tmp_path / "run" / "wandb_id").read_text().strip() == tracker(tmp_path / "run").version
    assert [item["step"] for item in received.history] == [step for step, _ in METRICS[:6] + METRICS[4:]]
    assert received.exit_code == 0


def log_two(first, second):
    log_run(first)
    unfinished = tracker(second)
    unfinished.log_metrics({"loss": 1.0}, 0)
    log_run(second.with_name("third"), metrics=[(1, {"loss": 2.0})])
    unfinished.finish(0)


def test_runs_in_one_process_stay_apart(run, server, tmp_path):
    run(log_two, tmp_path / "first", tmp_path / "second", variables=online(server))
    names = {received.fields["displayName"]: received for received in server.runs.values()}
    assert {name: len(received.history) for name, received in names.items()} == {"first": 10, "second": 1, "third": 1}
    assert all(received.exit_code == 0 for received in names.values())


# --- offline


def test_without_a_key_the_run_is_offline_and_complete(run, tmp_path):
    output = run(log_run, tmp_path / "run")
    (part,) = parts(tmp_path / "run")
    records = read_back(part)
    assert history(records) == METRICS
    (start,) = [record["run"] for record in records if record["type"] == "run"]
    assert (start["display_name"], start["run_group"], start["job_type"]) == ("run", "g", "train")
    assert start["tags"] == ["a", "b"]
    (config,) = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert config == CONFIG
    summary = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    assert any(update.get("best_value") == 1.25 for update in summary)
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]
    assert output.splitlines() == [f"INFO W&B: offline, upload with: wandb sync {part}"]


def test_offline_parts_merge_into_one_run(run, server, tmp_path):
    run(log_run, tmp_path / "run", 1, METRICS[:6], mode="offline")
    time.sleep(1.1)  # the parts are named by the second
    run(log_run, tmp_path / "run", 0, METRICS[4:], mode="offline")
    assert len(parts(tmp_path / "run")) == 2
    command = [sys.executable, "-m", "wandb", "sync", *map(str, parts(tmp_path / "run"))]
    environment = {**os.environ, **online(server), "WANDB_ERROR_REPORTING": "false"}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path, timeout=60)
    (received,) = server.runs.values()
    assert [item["step"] for item in received.history] == [step for step, _ in METRICS[:6] + METRICS[4:]]
    assert received.exit_code == 0


def check(folder, mode):
    try:
        tracker(folder, mode=mode).check()
        print("passed")
    except ValueError as error:
        print(error)


def test_check_asks_for_a_key_only_where_it_is_needed(run, tmp_path):
    assert "set WANDB_API_KEY" in run(check, tmp_path, "online")
    assert "set WANDB_API_KEY" in run(check, tmp_path, "auto", variables={"WANDB_MODE": "online"})
    assert "WANDB_MODE must be one of" in run(check, tmp_path, "auto", variables={"WANDB_MODE": "of"})
    assert "W&B does not start" in run(check, tmp_path, "online", variables={"WANDB_SILENT": ""})
    assert (
        run(check, tmp_path, "online", variables={"WANDB_API_KEY": KEY}) == run(check, tmp_path, "auto") == "passed\n"
    )
    (tmp_path / "home" / ".netrc").write_text(f"machine 127.0.0.1:9\nlogin user\npassword {KEY}\n")
    (tmp_path / "home" / ".netrc").chmod(0o600)
    assert run(check, tmp_path, "online") == "passed\n"


def log_on_terminal(folder, terminal):
    descriptor = os.open(terminal, os.O_RDWR)
    for standard in range(3):
        os.dup2(descriptor, standard)
    sys.stdin = os.fdopen(0)
    assert sys.stdin.isatty()
    assert sys.stderr.isatty()
    log_run(folder)


def test_nothing_is_asked_on_a_terminal(run, tmp_path):
    main, terminal = pty.openpty()
    run(log_on_terminal, tmp_path / "run", os.ttyname(terminal))
    output = os.read(main, 65536).decode()
    os.close(main)
    os.close(terminal)
    (part,) = parts(tmp_path / "run")
    assert output.split("\r\n") == [f"INFO W&B: offline, upload with: wandb sync {part}", ""]


# --- faults


def log_timed(folder, init_timeout, finish_timeout):
    trackers.FINISH_TIMEOUT = finish_timeout
    start = time.monotonic()
    run = tracker(folder, init_timeout=init_timeout)
    run.log_config(CONFIG)
    run.log_metrics({"loss": 1.0}, 0)
    run.finish(0)
    sys.modules["wandb"].teardown()
    print(f"SECONDS {time.monotonic() - start}")


def seconds(output) -> float:
    return float(output.split("SECONDS ")[1].split()[0])


@pytest.mark.parametrize("fault", ["refuse", "hang", "error", "reject"])
def test_a_dead_server_costs_bounded_time_and_nothing_is_lost(run, tmp_path, fault):
    with WandbServer("hang" if fault == "refuse" else fault) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}" if fault == "refuse" else server.url
        output = run(log_timed, tmp_path / "run", 1, 1, variables={"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY})
    (warning,) = warnings_in(output)
    assert "tracking offline instead" in warning
    assert seconds(output) < 1 + OVERHEAD
    assert history(read_back(parts(tmp_path / "run", "offline-run-*")[0])) == [(0, {"loss": 1.0})]


@pytest.mark.parametrize("fault", ["hang", "error", "reject"])
def test_a_server_that_dies_costs_bounded_time_and_nothing_is_lost(run, tmp_path, fault):
    with WandbServer(after_start=fault) as server:
        output = run(log_timed, tmp_path / "run", 5, 1, variables=online(server))
    assert any("sync" in warning for warning in warnings_in(output)), output
    assert seconds(output) < 5 + 1 + OVERHEAD - trackers.FINISH_TIMEOUT
    assert history(read_back(parts(tmp_path / "run")[0])) == [(0, {"loss": 1.0})]


@pytest.mark.parametrize("variables", [{"WANDB_SILENT": ""}, {"WANDB_INIT_TIMEOUT": "soon"}])
def test_a_broken_environment_is_one_warning(run, tmp_path, variables):
    (line,) = run(log_run, tmp_path / "run", variables=variables).splitlines()
    assert line.startswith("WARNING W&B does not start, this run is not tracked: ")


def test_a_malformed_key_is_one_warning_and_offline(run, tmp_path):
    output = run(log_run, tmp_path / "run", variables={"WANDB_API_KEY": "short-key"})
    (warning,) = warnings_in(output)
    assert "tracking offline instead" in warning
    assert "short-key" not in output
    assert len(parts(tmp_path / "run")) == 1


def log_without_wandb(folder):
    sys.modules["wandb"] = None
    log_run(folder)
    del sys.modules["wandb"]


def test_a_missing_package_is_one_warning(run, tmp_path):
    (line,) = run(log_without_wandb, tmp_path / "run").splitlines()
    assert line.startswith("WARNING W&B does not start, this run is not tracked: ")


def log_a_missing_picture(folder):
    run = tracker(folder)
    run.log_metrics({"loss": 1.0}, 0)
    run.log_picture("samples", folder / "missing.png", 1)
    run.log_metrics({"loss": 2.0}, 2)
    run.finish(1)


def test_an_error_later_on_is_one_warning_and_the_run_ends(run, tmp_path):
    output = run(log_a_missing_picture, tmp_path / "run")
    (warning,) = warnings_in(output)
    assert "W&B tracking ends here, the run goes on" in warning
    records = read_back(parts(tmp_path / "run")[0])
    assert history(records) == [(0, {"loss": 1.0})]
    assert records[-1]["exit"]["exit_code"] == 1


# --- secrets


def log_secrets(folder):
    run = tracker(folder)
    sys.argv = ["vae-lab", "token=PLANTED-ARGUMENT"]
    run.log_config({"a": "x-PLANTED-VALUE-y", "url": "http://me:PLANTED-PASSWORD@host/", "api_key": "PLANTED-KEY"})
    run.log_metrics({"loss": 1.0}, 0)
    run.finish(0)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_no_secret_reaches_the_disk_or_the_server(run, server, tmp_path, mode):
    variables = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "PLANTED" * 6, "HUB_TOKEN": "PLANTED-VALUE"}
    output = run(log_secrets, tmp_path / "run", variables={**variables, "WANDB_MODE": mode})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if b"PLANTED" in path.read_bytes()] == []
    assert "PLANTED" not in output
    assert "PLANTED" not in repr(server.runs)
