"""Sweeps whose jobs and whose own process end in every way: nothing lost, nothing done twice, nothing silent."""

import os
import signal
import time
from pathlib import Path

import pytest
from command import finish, message, record, start, status, vae_lab, wait_until

from vae_lab.sweep.job import JOURNAL, read_journal

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(300)]
SMALL = ["logger=none", "callbacks.gallery=null", "trainer=cpu", "model.hidden_dims=[8]", "sweep.n_jobs=2"]
GRID = ["-m", "loss=bce,mse", "latent_dim=2,3,4", "seed=0,1"]  # twelve jobs

# An encoder that ends its process as it is told to.
BAD = """
import ctypes, os, signal, sys
from torch import nn

ENDS = {
    "well": lambda: None,
    "by exit": lambda: sys.exit(3),
    "at once": lambda: os._exit(9),
    "by segfault": lambda: ctypes.string_at(0),
    "by kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "for memory": lambda: (_ for _ in ()).throw(MemoryError("no memory left")),
    "by error": lambda: (_ for _ in ()).throw(RuntimeError("planted")),
}

class Bad(nn.Sequential):
    def __init__(self, image_shape, out_features, ends):
        super().__init__(nn.Flatten(), nn.Linear(64, out_features))
        ENDS[ends]()
"""
BAD_MODEL = """
ends: well
encoder: {_target_: bad.Bad, ends: "${model.ends}"}
decoder: {_target_: vae_lab.models.networks.mlp.MLPDecoder, hidden_dims: [8], activation: relu}
"""


@pytest.fixture
def bad(tmp_path):
    """Arguments and environment with which `model=bad` can be had."""
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "bad.yaml").write_text(BAD_MODEL)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    return ["--config-dir", "conf", "model=bad"], {"PYTHONPATH": path, "VAE_LAB_TRUST": "bad"}


def folders(sweep: Path) -> dict[str, Path]:
    """The job folders by name."""
    return {path.parent.name: path.parent for path in sorted(sweep.glob("*/status.json"))}


def only_sweep(folder: Path) -> Path:
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    return sweep


def test_d1_d2_d7_a_job_that_ends_badly_ends_alone(tmp_path, bad):
    arguments, environment = bad
    ends = "model.ends=well,by exit,at once,by segfault,by kill,for memory,by error"
    more = ["optimizer.lr=0.001,1e30", "trainer.max_epochs=1", "latent_dim=2", "trainer.limit_train_batches=5"]
    small = [argument for argument in SMALL if not argument.startswith("model.")]
    done = vae_lab("-m", *arguments, *small, ends, *more, cwd=tmp_path, **environment)
    assert done.returncode == 6, done.stderr
    assert message(done) == "vae-lab: 13 of 14 jobs did not complete, see above; the same command tries again"
    said = {folder.name.rpartition(",")[0].partition("=")[2]: status(folder) for folder in
            folders(only_sweep(tmp_path)).values() if "0.001" in folder.name}  # fmt: skip
    reasons = {how: (content["state"], content.get("reason", "")) for how, content in said.items()}
    assert reasons.pop("well") == ("completed", "")
    assert all(state == "failed" for state, _ in reasons.values())
    expected = {
        "byexit": "SystemExit: 3",
        "atonce": "ended with exit code 9",
        "bysegfault": "killed by SIGSEGV",
        "bykill": "killed by SIGKILL",
        "formemory": "no memory left",
        "byerror": "planted",
    }
    assert expected.keys() == reasons.keys()
    for how, reason in expected.items():
        assert reason in reasons[how][1]
        assert any(reason in line for line in done.stderr.splitlines() if line.startswith("failed: job"))
    diverged = [folder for name, folder in folders(only_sweep(tmp_path)).items() if "well" in name and "1e+30" in name]
    assert "became" in status(diverged[0])["reason"]  # NaN or infinite
    log = next(folder for name, folder in folders(only_sweep(tmp_path)).items() if "byerror" in name) / "train.log"
    assert "Traceback" in log.read_text()
    assert "RuntimeError: planted" in log.read_text()


def test_on_failure_stop_starts_no_more(tmp_path, bad):
    arguments, environment = bad
    more = ["model.ends=by error,well", "latent_dim=2,3", "trainer.max_epochs=1", "sweep.n_jobs=1", "trainer=cpu"]
    done = vae_lab("-m", *arguments, *more, "sweep.on_failure=stop", "logger=none", cwd=tmp_path, **environment)
    assert done.returncode == 6
    assert "1 failed, 3 pending" in done.stderr
    assert len(folders(only_sweep(tmp_path))) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of the twelve jobs, by folder name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = vae_lab(*GRID, *SMALL, "trainer.max_epochs=8", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "12 completed" in done.stderr
    sweep = only_sweep(folder)
    return sweep.name, {name: record(path) for name, path in folders(sweep).items()}


def has_started(sweep: Path, number: int):
    """Whether the job of that number trains."""

    def look() -> bool:
        if not (sweep / JOURNAL).exists():
            return False
        names = [event["folder"] for event in read_journal(sweep) if event["event"] == "start"]
        return len(names) > number and (sweep / names[number] / "metrics.jsonl").exists()

    return look


def check_same(sweep: Path, undisturbed) -> None:
    name, records = undisturbed
    assert sweep.name == name
    assert {name: record(path) for name, path in folders(sweep).items()} == records
    assert all(status(path)["state"] == "completed" for path in folders(sweep).values())


def test_d4_kill_9_of_the_sweep_and_the_same_command_again(tmp_path, undisturbed):
    command = [*GRID, *SMALL, "trainer.max_epochs=8"]
    sweep = tmp_path / "outputs" / "sweeps" / undisturbed[0]
    process = start(*command, cwd=tmp_path)
    wait_until(has_started(sweep, 4), process)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    done_before = {name: (path / "result.json").stat().st_mtime_ns for name, path in folders(sweep).items()
                   if status(path)["state"] == "completed"}  # fmt: skip
    again = vae_lab(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    check_same(sweep, undisturbed)
    assert len(done_before) >= 2
    assert all((sweep / name / "result.json").stat().st_mtime_ns == time for name, time in done_before.items())
    journal = read_journal(sweep)
    started = [event["folder"] for event in journal if event["event"] == "start"]
    assert all(started.count(name) == 1 for name in done_before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_d3_a_signal_stops_the_sweep_and_the_same_command_goes_on(tmp_path, undisturbed, number):
    """As `timeout` and Ctrl-C send it: to all processes of the group, and once more to the first."""
    command = [*GRID, *SMALL, "trainer.max_epochs=8"]
    sweep = tmp_path / "outputs" / "sweeps" / undisturbed[0]
    process = start(*command, cwd=tmp_path, start_new_session=True)
    wait_until(has_started(sweep, 3), process)
    os.killpg(process.pid, number)
    os.kill(process.pid, number)
    done = finish(process)
    assert done.returncode == 128 + number
    states = [status(path)["state"] for path in folders(sweep).values()]
    assert "running" not in states
    assert "failed" not in states
    assert states.count("preempted") >= 1
    assert "pending" in done.stderr.splitlines()[-1]
    again = vae_lab(f"resume_sweep={sweep}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    check_same(sweep, undisturbed)


def test_a_grown_grid_keeps_what_is_there(tmp_path, undisturbed):
    grid = ["-m", "loss=bce,mse", "latent_dim=2", "seed=0"]
    assert vae_lab(*grid, *SMALL, "trainer.max_epochs=8", "sweep.name=mine", cwd=tmp_path).returncode == 0
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    before = {name: (path / "status.json").stat().st_mtime_ns for name, path in folders(sweep).items()}
    grid = ["-m", "loss=bce,mse", "latent_dim=2,3", "seed=0"]
    assert vae_lab(*grid, *SMALL, "trainer.max_epochs=8", "sweep.name=mine", cwd=tmp_path).returncode == 0
    after = {name: (path / "status.json").stat().st_mtime_ns for name, path in folders(sweep).items()}
    assert len(before) == 2
    assert len(after) == 4
    assert before.items() <= after.items()
    hashes = {sha for sha, _ in undisturbed[1].values()}
    assert {record(path)[0] for path in folders(sweep).values()} <= hashes


def test_the_same_job_twice_is_trained_once(tmp_path):
    done = vae_lab("-m", "optimizer.lr=1e-3,0.001", "seed=0,0", *SMALL, "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 completed" in done.stderr
    sweep = only_sweep(tmp_path)
    assert len(folders(sweep)) == 1
    assert [event["event"] for event in read_journal(sweep)] == ["sweep", "start", "end"]
    assert "no checkpoint yet" not in (next(iter(folders(sweep).values())) / "train.log").read_text()


def test_a_job_that_another_process_continues_is_left_to_it(tmp_path):
    command = ["-m", "seed=0", *SMALL, "trainer.max_epochs=1"]
    assert vae_lab(*command, cwd=tmp_path).returncode == 0
    (run,) = folders(only_sweep(tmp_path)).values()
    other = start(f"resume={run}", "trainer.max_epochs=100000", cwd=tmp_path)
    wait_until(lambda: status(run)["state"] == "running", other)
    done = vae_lab(*command, cwd=tmp_path)
    assert done.returncode == 6
    assert "is locked by process" in done.stderr
    assert status(run)["state"] == "running"
    other.terminate()
    assert finish(other).returncode == 143


def test_a_job_that_was_continued_to_other_limits_is_not_the_sweeps(tmp_path):
    command = ["-m", "seed=0", *SMALL, "trainer.max_epochs=1"]
    assert vae_lab(*command, cwd=tmp_path).returncode == 0
    (run,) = folders(only_sweep(tmp_path)).values()
    assert vae_lab(f"resume={run}", "trainer.max_epochs=2", cwd=tmp_path).returncode == 0
    done = vae_lab(*command, cwd=tmp_path)
    assert done.returncode == 6
    assert "was continued to other limits of training; use another sweep.name" in done.stderr


@pytest.mark.parametrize("seconds", [0.5, 2, 3.5, 5])
def test_d3_a_signal_while_the_first_jobs_start_loses_nothing(tmp_path, seconds):
    process = start("-m", "seed=0,1,2", *SMALL, "trainer.max_epochs=100", cwd=tmp_path, start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGTERM)
    done = finish(process)
    assert done.returncode in (143, -signal.SIGTERM)  # before anything was begun there is nothing to say
    assert "Traceback" not in done.stderr
    assert "failed" not in done.stderr


@pytest.mark.parametrize("seconds", [0.2, 0.6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_d3_a_signal_while_jobs_come_and_go_fails_none(tmp_path, seconds, number):
    arguments = ["sweep.name=mine", "sweep.n_jobs=4", *SMALL, "trainer.max_epochs=1"]
    process = start(*GRID, *arguments, cwd=tmp_path, start_new_session=True)
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    wait_until(has_started(sweep, 0), process)
    time.sleep(seconds)
    os.killpg(process.pid, number)
    os.kill(process.pid, number)
    done = finish(process)
    assert done.returncode == 128 + number, done.stderr
    assert {status(path)["state"] for path in folders(sweep).values()} <= {"completed", "preempted"}, done.stderr


def test_d5_two_sweeps_in_the_same_instant(tmp_path):
    """The same sweep is refused while it runs; another has another folder."""
    command = ["-m", "seed=0,1", *SMALL, "trainer.max_epochs=300"]
    first, other = start(*command, cwd=tmp_path), start(*command, "latent_dim=2", cwd=tmp_path)
    sweeps = tmp_path / "outputs" / "sweeps"
    try:
        wait_until(lambda: len(list(sweeps.glob(f"*/{JOURNAL}"))) == 2, first)
        second = vae_lab(*command, cwd=tmp_path)
        assert second.returncode == 5
        assert f"is locked by process {first.pid}" in message(second)
    finally:
        for process in (first, other):
            process.terminate()
    assert finish(first).returncode == finish(other).returncode == 143
    assert len(list(sweeps.iterdir())) == 2


def test_no_process_outlives_a_killed_sweep(tmp_path):
    process = start("-m", "seed=0,1", *SMALL, "trainer.max_epochs=100000", cwd=tmp_path)
    sweeps = tmp_path / "outputs" / "sweeps"
    wait_until(lambda: len(list(sweeps.glob("*/*/metrics.jsonl"))) == 2, process)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    runs = [path.parent for path in sweeps.glob("*/*/metrics.jsonl")]
    while any(status(run)["state"] == "running" for run in runs):
        assert time.monotonic() < deadline, "the jobs go on"
        time.sleep(0.1)
    assert [status(run)["state"] for run in runs] == ["preempted"] * 2


def test_two_processes_train_a_job_together(tmp_path):
    more = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none", "callbacks.gallery=null"]
    done = vae_lab("-m", "seed=0,1", "latent_dim=2", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["sweeps"]  # no process ran anything else
    assert [status(path)["state"] for path in folders(only_sweep(tmp_path)).values()] == ["completed"] * 2


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_other_launchers_find_their_jobs_again(tmp_path, launcher):
    pytest.importorskip({"basic": "hydra", "joblib": "hydra_plugins.hydra_joblib_launcher"}.get(
        launcher, "hydra_plugins.hydra_submitit_launcher"))  # fmt: skip
    command = ["-m", f"hydra/launcher={launcher}", "seed=0,1", *SMALL, "trainer.max_epochs=1"]
    assert vae_lab(*command, cwd=tmp_path).returncode == 0
    runs = folders(only_sweep(tmp_path))
    times = [(path / "status.json").stat().st_mtime_ns for path in runs.values()]
    assert len(runs) == 2
    again = vae_lab(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [(path / "status.json").stat().st_mtime_ns for path in runs.values()] == times


def test_other_launchers_refuse_several_devices(tmp_path):
    done = vae_lab("-m", "hydra/launcher=basic", "seed=0,1", "trainer=ddp", "logger=none", cwd=tmp_path)
    assert done.returncode == 2
    assert "works in a sweep with hydra/launcher=local only" in done.stderr.splitlines()[-1]


def test_a_job_that_submitit_preempts_is_started_again_and_ends_the_same(tmp_path, undisturbed):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    one = ["-m", "loss=bce", "latent_dim=2", "seed=0", *SMALL, "trainer.max_epochs=8"]
    slower = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "dataset.num_workers=2"]
    process = start(*one, *slower, cwd=tmp_path)
    sweeps = tmp_path / "outputs" / "sweeps"
    wait_until(lambda: list(sweeps.glob("*/*/metrics.jsonl")), process)
    (run,) = [path.parent for path in sweeps.glob("*/*/metrics.jsonl")]
    os.kill(status(run)["pid"], signal.SIGUSR2)  # as submitit's own time limit does
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert len(status(run)["times"]) == 2
    sha, metrics = record(run)
    assert (sha, metrics) in undisturbed[1].values()
