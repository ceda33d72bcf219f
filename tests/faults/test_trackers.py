"""Tracker outages: the training does not notice, nothing is asked, and what W&B did not get is on disk."""

import json
import logging
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from command import TINY, record, status
from composed import composed
from forks import at_call, can_mount, fork, train_in_fork, wait
from lightning.pytorch.loggers import CSVLogger
from tracking import CONFIG, KEY, METRICS, alone, go_online, history, log_run, parts, read_back, said, tracker
from wandb_server import WandbServer

from vae_lab.loggers import wandb_process
from vae_lab.loggers.wandb import WandbLogger
from vae_lab.training.module import LitVAE
from vae_lab.training.train import train

pytestmark = pytest.mark.fault

# What a bound in seconds is exceeded by at most: the bounds are kept by a process that waits, not by one that works.
BUSY_MACHINE = 15
SMALL = [setting for setting in TINY if setting != "logger=none"]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path, caplog):
    alone(monkeypatch, tmp_path / "home")
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Hash and metrics of the run without any tracker."""
    folder = tmp_path_factory.mktemp("plain")
    train(composed("logger=none", *SMALL, f"run_dir={folder}"))
    return record(folder)


@pytest.fixture
def patient(monkeypatch):
    """For tests of what is kept, not of the time: on a busy machine W&B takes long to start even where all is well."""
    monkeypatch.setattr(wandb_process, "FINISH_TIMEOUT", 100)
    monkeypatch.setattr(wandb_process, "UPLOAD_TIMEOUT", 1)


def warnings_in(caplog) -> list[str]:
    return [line for line in said(caplog) if not line.startswith("INFO")]


def log_two(folder: Path, **changes) -> None:
    log_run(folder, metrics=METRICS[:2], **changes)


@contextmanager
def outage(kind: str, later: str):
    """The address of a server that cannot be used, or only until a run has been started."""
    with socket.socket() as listener, socket.socket() as client, WandbServer(kind, later) as server:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if kind == "black hole":  # a queue of one, and full: further connections are never answered
            listener.listen(0)
            client.connect(listener.getsockname())
        yield {"refused": address, "black hole": address}.get(kind, server.url)


# --- E1: nothing is asked


@pytest.mark.slow
def test_e1_nothing_is_asked_on_a_terminal(tmp_path, plain):
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "vae_lab", "logger=wandb", *SMALL, "hydra.run.dir=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    printed = ""
    try:
        with suppress(OSError):  # EIO, how a terminal ends
            while chunk := os.read(main, 65536):
                printed += chunk.decode()
        assert process.wait(10) == 0, printed
    finally:
        process.kill()
        os.close(main)
    assert "wandb sync" in printed
    assert "choice" not in printed
    assert "API key" not in printed
    assert record(tmp_path / "run") == plain


@pytest.mark.slow
def test_e1_a_home_that_is_damaged(tmp_path, monkeypatch, caplog, patient):
    home = tmp_path / "home"
    (home / ".netrc").write_bytes(b"\x00\xffmachine machine password\n'")
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_bytes(b"[default\n\xff\x00 = [[ = base_url\nmode = 7")
    log_two(tmp_path / "run")
    (line,) = said(caplog)
    assert "upload with: wandb sync" in line
    (part,) = parts(tmp_path / "run", "offline-run-*")
    assert history(read_back(part)) == METRICS[:2]


# --- E2: a server that is not there, or no server


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "black hole", "html", "ok, then hang", "ok, then reset"])
def test_e2_what_a_bad_server_does_not_take_is_kept_on_disk(tmp_path, monkeypatch, caplog, patient, kind):
    first, _, later = kind.partition(", then ")
    with outage(first, later or first) as url:
        go_online(monkeypatch, url)
        log_run(tmp_path / "run", init_timeout=15 if later else 1)
    (part,) = parts(tmp_path / "run", "*run-*" if later else "offline-run-*")
    (warning,) = warnings_in(caplog) if later else said(caplog)
    assert warning.startswith("WARNING W&B: ")
    does = "upload the rest with" if later else "tracking offline, upload with"
    assert warning.endswith(f"; {does}: wandb sync {part}")
    assert history(read_back(part)) == METRICS


@pytest.mark.slow
def test_e2_a_server_that_recovers_gets_everything(tmp_path, monkeypatch, caplog, patient):
    monkeypatch.setattr(wandb_process, "UPLOAD_TIMEOUT", 60)
    with WandbServer(after_start="error") as server:
        go_online(monkeypatch, server.url)
        run = tracker(tmp_path / "run")
        run.log_metrics({"loss": 1.0}, 0)
        wait_for(lambda: server.refused)
        server.mode = server.after_start = "ok"
        run.log_metrics({"loss": 2.0}, 1)
        run.finish(0)
        (received,) = server.runs.values()
    assert [item["loss"] for item in received.history] == [1.0, 2.0]
    assert warnings_in(caplog) == []


def wait_for(condition, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@pytest.mark.slow
def test_e2_a_hanging_server_changes_neither_the_training_nor_its_length(tmp_path, monkeypatch, config, plain):
    monkeypatch.setattr(wandb_process, "FINISH_TIMEOUT", 4)
    began = time.monotonic()
    with WandbServer("hang") as server:
        go_online(monkeypatch, server.url)
        train(config("logger=wandb", "logger.wandb.init_timeout=2", tiny=SMALL, run_dir="run"))
        assert server.requests or server.refused
    assert time.monotonic() - began < 2 + 4 + BUSY_MACHINE
    assert record(tmp_path / "run") == plain


PLACES = [f"WANDB_{name}" for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR", "IDENTITY_TOKEN_FILE", "DIR")]
GARBAGE = {
    "what is settled otherwise": {
        "WANDB_SILENT": "", "WANDB_PROJECT": "a project / with ? odd # characters", "WANDB_RUN_ID": "a/b",
        "WANDB_RESUME": "must", "WANDB_SERVICE": "3-1-tcp-localhost-1", "WANDB_DISABLED": "perhaps", "WANDB_TAGS": ",,",
        "WANDB_HTTP_TIMEOUT": "soon", "WANDB_API_KEY": KEY,
        **dict.fromkeys((*PLACES, "TMPDIR", "NETRC"), "/proc/nowhere"),
    },
    "places": {
        "WANDB_ENTITY": "an entity / with ? odd # characters", "WANDB_BASE_URL": "not-a-url",
        "HTTP_PROXY": "nonsense:::", "HTTPS_PROXY": "http://127.0.0.1:9", "WANDB_API_KEY": "short\nand-broken",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", GARBAGE)
def test_e2_garbage_in_the_environment(tmp_path, monkeypatch, caplog, patient, name):
    for variable, value in GARBAGE[name].items():
        monkeypatch.setenv(variable, value)
    log_two(tmp_path / "run")
    assert len(warnings_in(caplog)) <= 1
    assert "short" not in caplog.text
    part = Path(said(caplog)[-1].rpartition(" ")[2])  # an attempt that W&B did not survive may lie beside it
    assert history(read_back(part)) == METRICS[:2]


# --- E2: W&B's own processes


def processes(run: WandbLogger) -> dict[str, int]:
    """W&B's process, and the one that that has started."""
    pid = run._process._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {"worker": pid, **dict(zip(["core"], map(int, children), strict=False))}


def started(folder: Path, caplog) -> WandbLogger:
    """A run that W&B tracks."""
    run = tracker(folder)
    run.log_config(CONFIG)
    wait_for(lambda: run.log_metrics({"loss": 1.0}, 0) or said(caplog))
    return run


needs_proc = pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(
    ("which", "signum", "when"),
    [("worker", signal.SIGKILL, "running"), ("worker", signal.SIGSTOP, "starting"),
     ("core", signal.SIGKILL, "starting"), ("core", signal.SIGSTOP, "starting"), ("core", signal.SIGSTOP, "running")],
)  # fmt: skip
def test_e2_a_process_of_w_and_b_is_killed_or_frozen(tmp_path, monkeypatch, caplog, which, signum, when):
    monkeypatch.setattr(wandb_process, "FINISH_TIMEOUT", 2)
    if when == "running":
        run = started(tmp_path / "run", caplog)
    else:
        run = tracker(tmp_path / "run", init_timeout=2)
        run.log_config(CONFIG)
        wait_for(lambda: which in processes(run))
    caplog.clear()
    pids = processes(run)
    os.kill(pids[which], signum)
    began = time.monotonic()
    for step in range(1, 20000):  # more than a pipe holds
        run.log_metrics({"loss": 1.0}, step)
    run.finish(0)
    assert time.monotonic() - began < 2 + 2 + BUSY_MACHINE
    (warning,) = warnings_in(caplog)
    assert warning.startswith("WARNING W&B")
    wait_for(lambda: not any(is_running(pid) for pid in pids.values()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- E3 and E5: kill -9 of an offline run, and the same folder again


@pytest.mark.slow
def test_e3_e5_a_killed_offline_run_loses_nothing_and_continues_as_a_second_part(tmp_path, config, patient):
    settings = ["trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.limit_train_batches=3"]
    settings += ["trainer.log_every_n_steps=1", "callbacks.checkpoints.every_n_minutes=1e-9"]
    settings += ["trainer.steps_per_execution=1"]
    train(config("logger=none", *settings, tiny=SMALL, run_dir="plain"))
    cfg, run = config("logger=wandb", *settings, tiny=SMALL), tmp_path / "run"
    die = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    assert train_in_fork(cfg, lambda: at_call(LitVAE, "training_step", 5, die)) == -signal.SIGKILL
    killed = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(killed) > 3
    wait_for(lambda: ended(run))
    (first,) = parts(run, "offline-run-*")
    assert [step for step, _ in history(read_back(first))] == killed

    cfg.resume = cfg.run_dir
    train(cfg)
    assert record(run) == record(tmp_path / "plain")
    (_, second) = parts(run, "offline-run-*")
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2] == (run / "wandb_id").read_text().strip()
    both = {step for part in (first, second) for step, _ in history(read_back(part))}
    assert both == {row["step"] for row in record(run)[1]}


def ended(run: Path) -> bool:
    """Whether W&B has stored all of a run's first part."""
    files = list(run.glob("wandb/*run-*/*.wandb"))
    return bool(files) and any(record["type"] == "exit" for record in read_back(files[0].parent))


# --- E4: no W&B


@pytest.mark.parametrize("code", ["1 +", "raise ImportError('gone')"])
def test_e4_a_run_without_w_and_b_ends_well(tmp_path, monkeypatch, caplog, patient, config, plain, code):
    break_w_and_b(tmp_path / "packages", monkeypatch, code)
    train(config("logger=wandb", tiny=SMALL, run_dir="run"))
    (line,) = warnings_in(caplog)
    assert line.startswith("WARNING W&B does not start, this run is not tracked: ")
    assert record(tmp_path / "run") == plain


def break_w_and_b(folder: Path, monkeypatch, code: str) -> None:
    folder.mkdir()
    (folder / "wandb.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


# --- disks


# In a mount namespace of its own: W&B's folder is on a disk of 128 kB.
FULL_DISK = """
mount -t tmpfs -o size=128k tmpfs run/wandb
"$1" -c "
import logging
from vae_lab.loggers import wandb_process
logging.basicConfig(level=logging.INFO)
wandb_process.FINISH_TIMEOUT = 100
process = wandb_process.WandbProcess()
process.begin('start', SETTINGS, 15)
for step in range(3000):
    process.send('metrics', {'step': step, 'loss': step / 7, 'kl': step / 3})
process.finish(0)
"
"""


def settings(folder: Path) -> dict:
    """What W&B's process is told of a run; without a `WandbLogger`, whose import takes long."""
    texts = {"folder": str(folder), "run_id": folder.name, "name": folder.name, "mode": "offline"}
    return {**texts, "labels": {}, "pid": os.getpid(), "init_timeout": 15, "upload_timeout": 8}


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="needs unshare -m")
def test_a_full_disk_under_w_and_b_is_one_line(tmp_path):
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    script = FULL_DISK.replace("SETTINGS", repr(settings(tmp_path / "run")))
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert "no space left on device" in warning


# --- the other copies


@pytest.mark.parametrize("kind", ["csv", "another"])
def test_e2_a_copy_that_cannot_be_written_ends_alone(tmp_path, monkeypatch, caplog, config, kind, plain):
    monkeypatch.setattr(CSVLogger, "log_metrics", Mock(side_effect=ConnectionError("no route to\n host")))
    cfg = config("logger=csv", tiny=SMALL)
    if kind == "another":
        cfg.logger = {"another": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": cfg.run_dir}}
    Path(cfg.run_dir).mkdir()
    (Path(cfg.run_dir) / kind).write_text("in the way")
    train(cfg)
    (line,) = warnings_in(caplog)
    assert line.startswith(f"WARNING logger.{kind} ends here, the run and metrics.jsonl go on: ")
    assert record(tmp_path / "run") == plain
    assert status(tmp_path / "run")["state"] == "completed"


def test_e4_without_tensorboard_the_run_does_not_start(tmp_path, monkeypatch, config):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    cfg = config("logger=tensorboard", tiny=SMALL)
    with pytest.raises(
        ValueError, match="logger.tensorboard needs the package tensorboard .*: pip install tensorboard"
    ):
        train(cfg)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# --- secrets that only W&B knows


@pytest.mark.slow
def test_g4_no_secret_of_w_and_b_is_in_any_byte_or_reaches_the_server(tmp_path, monkeypatch, caplog, patient):
    with WandbServer() as server:
        host = server.url.removeprefix("http://")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://me:plantedpassword@{host}")
        monkeypatch.setenv("HTTP_PROXY", "http://me:plantedproxy@127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("WANDB_API_KEY", "planted" * 6)
        monkeypatch.setenv("HUB_TOKEN", "planted-value")
        monkeypatch.setattr(sys, "argv", ["vae-lab", "token=planted-argument"])
        netrc = tmp_path / "home" / ".netrc"
        netrc.write_text(f"machine {host}\nlogin user\npassword planted{KEY}\n")
        netrc.chmod(0o600)
        run = tracker(tmp_path / "run")
        run.log_config({"a": "x-planted-value-y", "url": "http://me:planted-too@host/", "api_key": "planted-key"})
        run.log_metrics({"loss": 1.0}, 0)
        run.finish(0)
    netrc.unlink()
    assert parts(tmp_path / "run")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if b"planted" in path.read_bytes()] == []
    assert "planted" not in caplog.text
    assert len(server.runs) == 1
    assert "planted" not in repr(server.runs)


@pytest.mark.slow
def test_g4_a_folder_does_not_say_where_the_key_is_sent(tmp_path, monkeypatch, caplog, patient):
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "home" / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    with WandbServer() as server:
        Path("wandb", "settings").write_text(f"[default]\nbase_url = {server.url}\n")
        log_two(Path("."), init_timeout=2)
    assert server.requests == []
    assert parts(tmp_path / "run", "offline-run-*")


# --- Python itself


def test_e2_what_a_customised_python_prints_is_not_taken_for_a_report(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "sitecustomize.py").write_text("import os; os.write(1, b'hello\\n[1, 2]\\n')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    assert wandb_process.obstacle(60).startswith("no API key")


# A script without `if __name__ == "__main__"`, in a folder with a module that is named as one of Python's.
SCRIPT = """
import sys
sys.path[:] = [path for path in sys.path if path != sys.path[0]]
print("once")
from vae_lab.loggers.wandb_process import WandbProcess
finished, unfinished = WandbProcess(), WandbProcess()
finished.begin("start", RUN, 15)
unfinished.begin("start", NEXT, 15)
finished.finish(0)
finished.close()
unfinished.send("metrics", {"loss": 1.0})
"""


@pytest.mark.slow
def test_a_script_runs_once_and_ends_even_with_a_run_that_is_not_finished(tmp_path):
    script = SCRIPT.replace("RUN", repr(settings(tmp_path / "run"))).replace("NEXT", repr(settings(tmp_path / "next")))
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "selectors.py").write_text("print('executed')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")
    assert parts(tmp_path / "run", "offline-run-*")
    assert parts(tmp_path / "next", "offline-run-*")


@pytest.mark.slow
def test_a_signal_to_the_whole_group_does_not_reach_the_process_even_as_it_starts(tmp_path, caplog, patient):
    def track() -> None:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        os.setpgid(0, 0)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        run = tracker(tmp_path / "run", mode="offline")
        for step in range(200):
            os.killpg(0, numbers[step % 3])
            run.log_metrics({"loss": 1.0}, step)
            time.sleep(0.002)
        run.finish(0)

    assert wait(fork(track), 120) == 0
    (part,) = parts(tmp_path / "run")
    assert len(history(read_back(part))) == 200
