"""Sweeps whose jobs and whose own process end in every way: nothing lost, nothing done twice, nothing silent."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from command import TINY, finish, message, record, start, status, wait_until
from windows import on_windows

from vae_lab import __main__ as commands
from vae_lab.runs.files import locked
from vae_lab.sweep.job import JOURNAL, read_journal

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.timeout(300)]
SMALL = ["logger=none", "callbacks.gallery=null", "trainer=cpu", "model.hidden_dims=[8]", "sweep.n_jobs=2"]
GRID = ["-m", "loss=bce,mse", "latent_dim=2,3"]  # four jobs
EPOCHS = "trainer.max_epochs=4"

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
    "by setting": lambda: (_ for _ in ()).throw(ValueError("model.ends must be well")),
    "by numbers": lambda: None,
}

class Bad(nn.Sequential):
    def __init__(self, image_shape, out_features, ends):
        super().__init__(nn.Flatten(), nn.Linear(64, out_features))
        if ends == "by numbers":
            nn.init.constant_(self[1].weight, 1e30)
        ENDS[ends]()
"""
BAD_MODEL = """
ends: well
encoder: {_target_: bad.Bad, ends: "${model.ends}"}
decoder: {_target_: vae_lab.models.networks.mlp.MLPDecoder, hidden_dims: [8], activation: relu}
"""


@pytest.fixture
def sweep(command, tmp_path, monkeypatch):
    """Sweep in this process, whose fork server imports torch once for all tests; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return lambda *arguments: command("vae-lab", *arguments)[0]


def folders(sweep: Path) -> dict[str, Path]:
    """The job folders by name."""
    return {path.parent.name: path.parent for path in sorted(sweep.glob("*/status.json"))}


def only_sweep(folder: Path) -> Path:
    (sweep,) = (folder / "outputs" / "sweeps").iterdir()
    return sweep


def test_d1_d2_d7_a_job_that_ends_badly_ends_alone(tmp_path):
    (tmp_path / "bad.py").write_text(BAD)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "bad.yaml").write_text(BAD_MODEL)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "VAE_LAB_TRUST": "bad"}
    expected = {
        "well": "", "byexit": "SystemExit: 3", "atonce": "ended with exit code 9", "bysegfault": "killed by SIGSEGV",
        "bykill": "killed by SIGKILL", "formemory": "no memory left", "byerror": "planted",
        "bysetting": "model.ends must be well", "bynumbers": "became",  # NaN or infinite
    }  # fmt: skip
    ends = "model.ends=well,by exit,at once,by segfault,by kill,for memory,by error,by setting,by numbers"
    small = [argument for argument in SMALL if not argument.startswith("model.")]
    settings = ["--config-dir", "conf", "model=bad", "trainer.max_steps=2", "latent_dim=2"]
    done = finish(start("-m", *settings, *small, ends, cwd=tmp_path, env=environment), 240)
    assert done.returncode == 6, done.stderr
    assert message(done) == "vae-lab: 8 of 9 jobs did not complete, see above; the same command tries again"
    runs = {
        folder.name.rpartition("_")[0].partition("=")[2]: folder for folder in folders(only_sweep(tmp_path)).values()
    }
    assert runs.keys() == expected.keys()
    for how, reason in expected.items():
        said = status(runs[how])
        assert said["state"] == ("failed" if reason else "completed")
        assert reason in said.get("reason", "")
        assert not reason or any(reason in line for line in done.stderr.splitlines() if line.startswith("failed: job"))
    assert "best val/loss" in done.stderr
    log = (runs["byerror"] / "train.log").read_text()
    assert "Traceback" in log
    assert "RuntimeError: planted" in log


def test_on_failure_stop_starts_no_more(tmp_path, sweep, command):
    assert sweep("-m", "latent_dim=-1,2", "seed=0,1", *SMALL, "sweep.n_jobs=1", "sweep.on_failure=stop") == 6
    assert "1 failed, 3 pending" in command.printed
    assert len(folders(only_sweep(tmp_path))) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of the four jobs, by folder name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setattr(sys, "argv", ["vae-lab", *GRID, *SMALL, EPOCHS])
        commands.main()
    sweep = only_sweep(folder)
    assert len(folders(sweep)) == 4
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


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes of a sweep that was started in that folder: itself, its servers, its jobs and theirs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has just ended, or is another user's
            if process.pid != os.getpid() and process.cwd() == str(folder):
                found.append(process)
    return found


def test_d4_no_process_outlives_a_killed_sweep_and_the_same_command_goes_on(tmp_path, undisturbed, sweep):
    settings = [*GRID, *SMALL, EPOCHS]
    folder = tmp_path / "outputs" / "sweeps" / undisturbed[0]
    process = start(*settings, cwd=tmp_path)
    wait_until(has_started(folder, 0), process, 120)
    assert len(processes_of(tmp_path)) > 2  # the sweep, its server, a job
    wait_until(has_started(folder, 2), process, 120)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while left := processes_of(tmp_path):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
    states = {name: status(path)["state"] for name, path in folders(folder).items()}
    assert set(states.values()) == {"completed", "preempted"}  # the jobs at work have stopped, not gone on to their end
    completed = {name for name, state in states.items() if state == "completed"}
    done_before = {name: (folder / name / "result.json").stat().st_mtime_ns for name in completed}
    assert sweep(*settings) == 0
    check_same(folder, undisturbed)
    assert {name: (folder / name / "result.json").stat().st_mtime_ns for name in completed} == done_before
    started = [event["folder"] for event in read_journal(folder) if event["event"] == "start"]
    assert all(started.count(name) == 1 for name in completed)


def test_d3_ctrl_c_stops_the_sweep_and_the_same_command_goes_on(tmp_path, undisturbed, sweep):
    """As a terminal sends it: to all processes of the group; and once more to the first."""
    folder = tmp_path / "outputs" / "sweeps" / undisturbed[0]
    process = start(*GRID, *SMALL, EPOCHS, cwd=tmp_path, start_new_session=True)
    wait_until(has_started(folder, 1), process, 120)  # of four, two at a time: some are left
    os.killpg(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130
    states = [status(path)["state"] for path in folders(folder).values()]
    assert {"preempted"} <= set(states) <= {"preempted", "completed"}
    assert f" pending: {folder}" in done.stderr
    assert sweep(f"resume_sweep={folder}") == 0
    check_same(folder, undisturbed)


def test_a_grown_grid_keeps_what_is_there_and_leaves_others_their_runs(tmp_path, sweep, command):
    """Also a job written twice, or in two ways, is trained once."""
    settings = ["-m", "loss.KLD_weight=1,1.0,1", *SMALL, "trainer.max_epochs=1", "sweep.name=mine"]
    folder = tmp_path / "outputs" / "sweeps" / "mine"
    assert sweep(*settings, "seed=0") == 0
    assert "1 completed" in command.printed
    (run,) = folders(folder).values()
    assert [event["event"] for event in read_journal(folder)] == ["sweep", "start", "end"]
    assert "no checkpoint yet" not in (run / "train.log").read_text()
    before = (run / "status.json").read_text()

    assert sweep(*settings, "seed=0,1") == 0
    assert (run / "status.json").read_text() == before
    assert len(folders(folder)) == 2

    at_work = before.replace("completed", "running")
    (run / "status.json").write_text(at_work)
    with locked(run / ".lock"):  # by somebody else
        assert sweep(*settings, "seed=0", "sweep.on_failure=stop") == 6
        assert "is locked by process" in command.printed
        assert (run / "status.json").read_text() == at_work
    (run / "status.json").write_text(before)

    assert sweep(f"resume={run}", "trainer.max_epochs=2") == 0
    assert sweep(*settings, "seed=0") == 6
    assert "was continued to other limits of training; go on with resume_sweep=" in command.printed


def test_a_sweep_goes_on_to_more_epochs_and_ends_as_if_it_had_them_from_the_start(tmp_path, sweep, command):
    """And it is told where a folder holds another study, too."""
    grid = ["-m", "seed=0,1", *SMALL, "latent_dim=2", "trainer.limit_train_batches=3"]
    sweeps = tmp_path / "outputs" / "sweeps"
    assert sweep(*grid, "trainer.max_epochs=3", "sweep.name=short") == 0
    assert sweep(*grid, "trainer.max_epochs=6", "sweep.name=long") == 0
    names = set(folders(sweeps / "short"))
    assert sweep(f"resume_sweep={sweeps / 'short'}", "trainer.max_epochs=6") == 0
    assert set(folders(sweeps / "short")) == names
    grown, whole = ([record(path) for path in folders(sweeps / name).values()] for name in ("short", "long"))
    assert grown == whole
    assert "another study" not in command.printed

    assert sweep(f"resume_sweep={sweeps / 'short'}", "trainer.max_epochs=5") == 6
    assert "trainer.max_epochs must be >= 6, where it is already, got 5" in command.printed
    assert {status(path)["state"] for path in folders(sweeps / "short").values()} == {"completed"}
    assert sweep(*grid, "trainer.max_epochs=1", "loss=mse", "seed=0", "sweep.name=short") == 0
    assert "short also holds another study, vae-lab --multirun" in command.printed
    assert "2 jobs, which stay" in command.printed


@pytest.mark.parametrize("moment", ["before", "as they come and go"])
def test_d3_a_signal_while_jobs_start_fails_none(moment, tmp_path):
    """As `timeout` sends it."""
    arguments = [*GRID, "sweep.name=mine", *SMALL, "sweep.n_jobs=4", "trainer.max_epochs=1"]
    process = start(*arguments, cwd=tmp_path, start_new_session=True)
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    if moment == "before":
        wait_until(lambda: (sweep / JOURNAL).exists(), process, 120)
    else:
        wait_until(has_started(sweep, 0), process, 120)
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert {status(path)["state"] for path in folders(sweep).values()} <= {"completed", "preempted"}, done.stderr


def test_d5_two_sweeps_in_the_same_instant(tmp_path, sweep, command):
    """The same sweep is refused while it runs; another has another folder."""
    settings = ["-m", "seed=0,1", *SMALL, "trainer.max_epochs=300"]
    first, other = start(*settings, cwd=tmp_path), start(*settings, "latent_dim=2", cwd=tmp_path)
    sweeps = tmp_path / "outputs" / "sweeps"
    try:
        wait_until(lambda: len(list(sweeps.glob(f"*/{JOURNAL}"))) == 2, first, 120)
        assert sweep(*settings) == 5
        assert f"is locked by process {first.pid}" in command.printed
    finally:
        for process in (first, other):
            process.terminate()
    assert finish(first).returncode == finish(other).returncode == 143
    assert len(list(sweeps.iterdir())) == 2


def test_two_processes_train_a_job_together(tmp_path, sweep):
    more = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=none", "callbacks.gallery=null"]
    assert sweep("-m", "seed=0", "latent_dim=2", *more) == 0
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["sweeps"]  # no process ran anything else
    assert [status(path)["state"] for path in folders(only_sweep(tmp_path)).values()] == ["completed"]


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_other_launchers_find_their_jobs_again(tmp_path, launcher, sweep):
    pytest.importorskip({"basic": "hydra"}.get(launcher, "hydra_plugins.hydra_joblib_launcher"))
    settings = ["-m", f"hydra/launcher={launcher}", "seed=0", *SMALL, "trainer.max_epochs=1"]
    assert sweep(*settings) == 0
    (run,) = folders(only_sweep(tmp_path)).values()
    written = (run / "status.json").stat().st_mtime_ns
    assert sweep(*settings) == 0
    assert (run / "status.json").stat().st_mtime_ns == written


def test_a_job_that_submitit_preempts_is_started_again_and_ends_the_same(
    tmp_path, undisturbed, sweep, command, monkeypatch
):
    """And is found again."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("VAE_LAB_TRUST", "signal_at")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    preempted = f"+callbacks.stop={{_target_:signal_at.SignalAt,batch:17,number:{int(signal.SIGUSR2)}}}"  # as submitit
    one = ["-m", "loss=bce", "latent_dim=2", *SMALL, EPOCHS, "hydra/launcher=slurm_local", "sweep.name=mine"]
    one.append("dataset.num_workers=1")
    assert sweep(*one, preempted) == 0, command.printed
    (run,) = folders(only_sweep(tmp_path)).values()
    before = (run / "status.json").read_text()
    assert len(status(run)["times"]) == 2
    assert record(run) in undisturbed[1].values()
    assert sweep(*one, preempted) == 0
    assert (run / "status.json").read_text() == before
    assert [event["event"] for event in read_journal(run.parent)][:2] == ["sweep", "start"]


@pytest.fixture
def ray_cluster(monkeypatch):
    """Start a Ray on loopback: a head without a core, and two nodes of one each."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else it looks for an address beside loopback
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for whatever else runs
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "15")  # after which a lost head ends the command
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    begun = []

    def begin() -> Cluster:
        begun.append(Cluster())
        for cores in (0, 1, 1):
            begun[-1].add_node(num_cpus=cores, include_dashboard=False, node_ip_address="127.0.0.1")
        return begun[-1]

    yield begin
    for cluster in begun:
        cluster.shutdown()


def start_on(cluster, folder: Path):
    """Start the sweep of four jobs on a Ray cluster."""
    address = f"hydra.launcher.address={cluster.address}"
    return start(*GRID, *SMALL, EPOCHS, "hydra/launcher=ray", address, cwd=folder)


@pytest.mark.timeout(900)
def test_a_sweep_on_ray_loses_a_worker_and_nothing_else(tmp_path, undisturbed, ray_cluster):
    cluster, folder = ray_cluster(), tmp_path / "outputs" / "sweeps" / undisturbed[0]
    process = start_on(cluster, tmp_path)
    wait_until(has_started(folder, 0), process, 300)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    done = finish(process, 500)
    assert done.returncode == 0, done.stderr
    check_same(folder, undisturbed)
    started = [event["folder"] for event in read_journal(folder) if event["event"] == "start"]
    assert len(started) == len(set(started))  # Ray itself starts a lost job again


@pytest.mark.timeout(900)
def test_a_sweep_on_ray_goes_on_after_ctrl_c_and_after_its_head_is_lost(tmp_path, undisturbed, ray_cluster):
    cluster, folder = ray_cluster(), tmp_path / "outputs" / "sweeps" / undisturbed[0]
    process = start_on(cluster, tmp_path)
    wait_until(has_started(folder, 0), process, 300)
    process.send_signal(signal.SIGINT)
    done = finish(process, 300)
    assert done.returncode == 130, done.stderr
    states = [status(path)["state"] for path in folders(folder).values()]
    assert {"preempted"} <= set(states) <= {"preempted", "completed"}

    stopped = len([event for event in read_journal(folder) if event["event"] == "start"])
    process = start_on(cluster, tmp_path)
    wait_until(has_started(folder, stopped), process, 300)
    cluster.remove_node(cluster.head_node, allow_graceful=False)
    assert finish(process, 300).returncode != 0
    cluster.shutdown()
    completed = {name for name, path in folders(folder).items() if status(path)["state"] == "completed"}
    done = finish(start_on(ray_cluster(), tmp_path), 500)
    assert done.returncode == 0, done.stderr
    check_same(folder, undisturbed)
    started = [event.get("folder") if event["event"] == "start" else event["event"] for event in read_journal(folder)]
    assert not completed & set(started[len(started) - started[::-1].index("sweep") :])  # by the last command


def test_a_machine_without_what_only_posix_has_trains_continues_sweeps_and_compares(tmp_path):
    """All in one process there; the job of the sweep is spawned."""
    run, sweep = tmp_path / "run", tmp_path / "outputs" / "sweeps" / "mine"
    done = on_windows(
        ["main", *TINY, "hydra.run.dir=run"],
        ["main", "resume=run", "trainer.max_steps=4"],
        ["main", "-m", "seed=0", *SMALL, "trainer.max_steps=2", "sweep.name=mine"],
        ["main", "compare", str(sweep), "images=false"],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert status(run)["state"] == "completed"
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 4
    assert result["peak_memory_mb"] > 0
    assert [status(path)["state"] for path in folders(sweep).values()] == ["completed"]
    assert "1 completed" in done.stdout
