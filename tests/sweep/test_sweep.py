"""The parts of a sweep: names, identity, journal, shares of the machine, what is shown."""

import json
import math
import sys
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from vae_lab.__main__ import CONF
from vae_lab.errors import RunError
from vae_lab.runs.folder import RunFolder
from vae_lab.sweep.clusters import RayPool
from vae_lab.sweep.command_line import config_flags, sweep_arguments
from vae_lab.sweep.job import JOURNAL, Job, append_event, identity, job_folder, read_journal
from vae_lab.sweep.processes import Machine, Slot
from vae_lab.sweep.table import SweepTable
from vae_lab.training.result import program


@cache
def composed(*overrides: str, **keywords):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", list(overrides), **keywords)


def test_a_job_is_what_decides_its_numbers():
    mnist, digits = composed("dataset=mnist"), composed()
    assert identity(composed("dataset=mnist", "logger=none", "model=mlp")) == identity(mnist)
    same = {"data_root": "/elsewhere", "dataset.num_workers": 2, "trainer.log_every_n_steps": 1, "sweep.n_jobs": 3,
            "resume": "auto", "run_name": "mine", "run_dir": "/elsewhere"}  # fmt: skip
    for key, value in same.items():
        assert identity(changed(mnist, key, value)) == identity(mnist), key
    other = {"seed": 1, "loss.KLD_weight": 2, "trainer.max_epochs": 31, "latent_dim": 3, "optimizer.lr": 0.1,
             "trainer.precision": "bf16-mixed"}  # fmt: skip
    others = [digits, mnist, composed("loss=mse"), composed("callbacks=early_stopping")]
    others += [changed(digits, key, value) for key, value in other.items()]
    assert len(set(map(identity, others))) == 10
    weights = {value: identity(composed(f"loss.KLD_weight={value}")) for value in ("1", "1.0", "1e0", "2")}
    assert weights["1"] == weights["1.0"] == weights["1e0"] != weights["2"]
    written = {"${seed}": 0, "${seed}.${latent_dim}": f"0.{digits.latent_dim}", "${trainer}": digits.trainer}
    for reference, value in written.items():
        for one, other in ((reference, value), ([reference], [value])):
            assert identity(changed(digits, "prior.own", one)) == identity(changed(digits, "prior.own", other))
    assert identity(composed("model.hidden_dims=[8.0]")) == identity(composed("model.hidden_dims=[8]"))


def changed(cfg, key: str, value):
    cfg = cfg.copy()
    OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def test_the_folder_of_a_job_is_found_again_by_what_the_job_is(tmp_path):
    cfg = composed("seed=3", f"hydra.sweep.dir={tmp_path}", "latent_dim=2", return_hydra_config=True)
    name = job_folder(["seed=3"], _root_=cfg)
    assert name == f"seed=3_{identity(cfg)}"
    assert job_folder(_root_=cfg) == f"seed=3,latent_dim=2_{identity(cfg)}"
    (tmp_path / name).mkdir()
    assert job_folder(_root_=cfg) == name


def test_a_job_is_found_again_after_a_key_is_new_in_its_config(tmp_path):
    cfg = composed("seed=3", f"hydra.sweep.dir={tmp_path}", return_hydra_config=True)
    before = composed("seed=3").copy()
    OmegaConf.set_struct(before, False)
    del before.trainer.detect_anomaly, before.dataset.flip
    begun = {"choices": cfg.hydra.runtime.choices, "overrides": cfg.hydra.overrides.task}
    for name, saved in (("other", composed("seed=4")), ("seed=3", before)):
        RunFolder(tmp_path / f"{name}_{identity(saved)}").write_config(config=saved, **begun)
    assert identity(before) != identity(cfg)
    assert job_folder(_root_=cfg) == f"seed=3_{identity(before)}"
    for override in ("dataset.flip=true", "optimizer.lr=0.002", "seed=5"):  # the first at no default, a default changed
        now = composed("seed=3", override, f"hydra.sweep.dir={tmp_path}", return_hydra_config=True)
        assert job_folder(_root_=now).endswith(identity(now)), override


def test_a_folder_name_cannot_lead_elsewhere_or_be_too_long(tmp_path):
    cfg = composed(f"hydra.sweep.dir={tmp_path}", return_hydra_config=True)
    for overrides in (["../../x=1"], ["dataset.root=/a/b"], ["model.hidden_dims=[" + "512," * 100 + "2]"]):
        name = job_folder(overrides, _root_=cfg)
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name) < 100
    many = composed("optimizer.lr=0.00123456789", f"hydra.sweep.dir={tmp_path}", return_hydra_config=True)
    assert job_folder(_root_=many).startswith("optimizer.lr=0.001235_")


def name_of(*arguments: str) -> str:
    return sweep_arguments(["-m", *arguments], CONF)[1].removeprefix("sweep.default_name=")


def test_the_same_command_has_the_same_name():
    assert name_of("model=mlp,conv", "dataset=mnist", "seed=0,1").startswith("mnist-model-seed_")
    assert name_of("seed=0,1", "logger=none") == name_of("seed=0,1,2,3", "sweep.n_jobs=4", "hydra/launcher=basic")
    assert name_of("seed=0,1") != name_of("seed=0,1", "latent_dim=2")
    assert name_of("seed=0,1") != name_of("seed=0,1", "hydra/sweeper=other")
    assert len({name_of("seed=0,1", *more) for more in ([], ["~callbacks.gallery"], ["--config-dir", "mine"])}) == 3
    assert name_of("seed=0,1", "callbacks=none").startswith("seed_")
    assert name_of("seed=0,1", "sweep.name=null") == name_of("seed=0,1")
    assert sweep_arguments(["--multi", "seed=0,1"], CONF)[1] == f"sweep.default_name={name_of('seed=0,1')}"


@pytest.mark.parametrize("given", [["seed=0,1"], ["-m", "seed=0,1", "sweep.name=mine"], ["-m", "seed=[0"], []])
def test_other_command_lines_stay_as_they_are(given):
    assert sweep_arguments(given, CONF) == given


def test_a_single_run_has_no_jobs():
    with pytest.raises(ValueError, match="sweep.n_jobs=2 has no effect on a single run"):
        sweep_arguments(["latent_dim=2", "sweep.n_jobs=2"], CONF)


def test_resume_sweep_is_the_last_command_in_its_folder(tmp_path):
    append_event(tmp_path, "sweep", arguments=["-m", "seed=0,1", "sweep.name=x"])
    append_event(tmp_path, "sweep", arguments=["--multirun", "seed=0,1,2", "sweep.name=x"])
    arguments = sweep_arguments([f"resume_sweep={tmp_path}", "sweep.n_jobs=1"], CONF)
    moved = f"hydra.sweep.dir='{tmp_path}'"
    assert arguments == ["--multirun", moved, "sweep.n_jobs=1", "seed=0,1,2", "sweep.name=x"]
    append_event(tmp_path, "sweep", arguments=[*arguments, "hydra.sweep.dir=elsewhere"])
    arguments = sweep_arguments([f"resume_sweep={tmp_path}", "sweep.n_jobs=3"], CONF)
    assert arguments == ["--multirun", moved, "sweep.n_jobs=3", "seed=0,1,2", "sweep.name=x"]  # what is said now
    append_event(tmp_path, "start", job=0)
    append_event(tmp_path, "sweep", arguments=["-m", "seed=7", "sweep.name=x"])  # which was refused
    assert sweep_arguments([f"resume_sweep={tmp_path}", "sweep.n_jobs=3"], CONF) == arguments


def test_resume_sweep_is_refused_without_a_sweep_and_for_another(tmp_path):
    with pytest.raises(RunError, match="is not the folder of a sweep"):
        sweep_arguments([f"resume_sweep={tmp_path}"], CONF)
    append_event(tmp_path, "sweep", arguments=["-m", "seed=0,1"])
    with pytest.raises(ValueError, match="seed=0 would make resume_sweep=.* another sweep"):
        sweep_arguments([f"resume_sweep={tmp_path}", "seed=0"], CONF)


def test_flags_may_follow_the_overrides():
    arguments = sweep_arguments(["seed=0,1", "latent_dim=2", "-m", "--config-dir", "mine"], CONF)
    assert arguments[1:] == ["seed=0,1", "latent_dim=2", "-m", "--config-dir", "mine"]
    assert arguments[0].startswith("sweep.default_name=seed_")
    assert config_flags(["-m", "--config-dir", "mine", "seed=1", "-cn=other"]) == ["--config-dir", "mine", "-cn=other"]


@pytest.mark.fault
def test_d6_a_torn_line_is_left_out_with_a_warning(tmp_path, caplog):
    torn = [b'"a"\n', b"[1]\n", b"\xff\n", b'{"job": 1}\n', b'{"event": "sta']
    append_event(tmp_path, "start", job=0)
    with open(tmp_path / JOURNAL, "ab") as file:
        file.writelines(torn)
    append_event(tmp_path, "end", job=0)
    assert [event["event"] for event in read_journal(tmp_path)] == ["start", "end"]
    assert [f"line {number} is torn" in caplog.text for number in range(1, 8)] == [False, *[True] * 5, False]


def test_no_secret_is_in_the_journal(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted0secret1234")
    append_event(tmp_path, "end", reason="denied for planted0secret1234")
    assert b"planted" not in (tmp_path / JOURNAL).read_bytes()


def trainer(devices=1, accelerator="cpu"):
    return OmegaConf.create({"devices": devices, "accelerator": accelerator})


@pytest.fixture
def machine(monkeypatch):
    def make(cores: int, gpus: list[str]):
        monkeypatch.setattr("joblib.cpu_count", lambda: cores)
        monkeypatch.setattr("vae_lab.sweep.processes.visible_gpus", lambda: gpus)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)

    return make


def test_the_cores_are_shared_out(machine, monkeypatch):
    machine(8, [])
    assert Machine(None, 1).slots(trainer()) == [Slot(1, None)] * 8
    assert Machine(2, 1).slots(trainer()) == [Slot(4, None)] * 2
    assert Machine(16, 1).slots(trainer()) == [Slot(1, None)] * 16
    assert Machine(None, 1).slots(trainer(devices=2)) == [Slot(1, None)] * 4
    assert Machine(2, 1).slots(trainer(devices=2)) == [Slot(2, None)] * 2
    for name, value, threads in (("OMP", "3", 3), ("OMP", "2,4", 2), ("OMP", "x", 4), ("MKL", "1", 1)):
        monkeypatch.setenv(f"{name}_NUM_THREADS", value)
        assert Machine(2, 1).slots(trainer()) == [Slot(threads, None)] * 2
    machine(16, ["0", "1", "3"])
    assert Machine(None, 2).slots(trainer(accelerator="gpu")) == [Slot(2, device) for device in ("0", "1", "3") * 2]
    assert Machine(None, 1).slots(trainer("auto", "auto")) == [Slot(16, "0,1,3")]


def test_a_job_gets_what_its_own_trainer_wants(machine):
    def fill(n_jobs, jobs_per_device, *trainers) -> list[str | None]:
        """Where jobs with these trainers run at the same time; a dash waits."""
        shares, at_work, found = Machine(n_jobs, jobs_per_device), [], []
        for one in trainers:
            slot = shares.room(one, at_work)
            at_work += [(one, slot)] if slot else []
            found.append(slot.device if slot else "-")
        return found

    cpu, gpu, two, everything = trainer(), *(trainer(n, "gpu") for n in (1, 2, "auto"))
    machine(4, ["0", "1", "3"])
    assert fill(None, 1, gpu, gpu, gpu, gpu) == ["0", "1", "3", "-"]
    assert fill(None, 2, *[gpu] * 7) == ["0", "1", "3", "0", "1", "3", "-"]  # two jobs on each
    assert fill(None, 1, gpu, two, gpu) == ["0", "1,3", "-"]
    assert fill(None, 2, gpu, two, two, two) == ["0", "1,3", "0,1", "-"]
    assert fill(None, 1, gpu, everything, cpu, gpu) == ["0", "-", None, "1"]  # who waits keeps nobody else waiting
    assert fill(None, 1, everything, cpu, gpu) == ["0,1,3", None, "-"]
    assert fill(2, 1, gpu, cpu, gpu) == ["0", None, "-"]
    assert fill(4, 1, *[gpu] * 5) == ["0", "1", "3", "0", "-"]
    machine(4, [])
    assert fill(None, 1, *[cpu] * 5) == [None] * 4 + ["-"]
    assert fill(None, 1, trainer(2), cpu, trainer(2), cpu, cpu) == [None, None, "-", None, "-"]
    assert fill(None, 1, trainer(8), cpu) == [None, "-"]


def make_job(folder: Path, number: int, **status) -> Job:
    job = Job(number, [f"seed={number}", "latent_dim=2"], {"latent_dim=2"})
    job.folder = folder / f"seed={number}"
    job.folder.mkdir()
    if status:
        (job.folder / "status.json").write_text(json.dumps(status))
    job.config = composed("trainer.max_epochs=10")
    return job


@pytest.mark.parametrize(
    ("exit_code", "said", "state", "reason"),
    [
        (0, {"state": "completed"}, "completed", ""),
        (0, {"state": "running"}, "failed", "ended without a result"),
        (4, {"state": "failed", "reason": "NumericsError: nan"}, "failed", "NumericsError: nan"),
        (143, {"state": "preempted", "reason": "signal 15"}, "preempted", "signal 15"),
        (143, {"state": "running"}, "preempted", "signal 15"),
        (-15, {}, "preempted", "signal 15"),
        (-11, {"state": "running"}, "failed", "killed by SIGSEGV"),
    ],
)
def test_how_a_job_ended(tmp_path, exit_code, said, state, reason):
    job = make_job(tmp_path, 0, state="failed", reason="of an earlier start")
    job.begin()
    if said:
        (job.folder / "status.json").write_text(json.dumps(said))
    job.end(exit_code)
    assert (job.state, job.reason) == (state, reason)
    if said:
        assert json.loads((job.folder / "status.json").read_text())["state"] == state


def test_the_last_words_of_a_job_are_its_reason_but_not_those_of_an_earlier_start(tmp_path):
    job = make_job(tmp_path, 0, state="failed", reason="of an earlier start")
    output = job.folder / "output.log"
    output.write_text("vae-lab: of an earlier start\n")
    job.begin()
    job.end(9)
    assert job.reason == "ended with exit code 9"
    assert json.loads((job.folder / "status.json").read_text())["reason"] == job.reason
    job.begin()
    output.write_text(output.read_text() + "epoch 1\nvae-lab: latent_dim must be >= 1, got -1\n")
    job.end(2)
    assert job.reason == "latent_dim must be >= 1, got -1"


def test_the_progress_of_a_job_is_in_its_metrics(tmp_path):
    job = make_job(tmp_path, 0)
    assert job.progress()[:2] == (None, None)
    lines = [{"step": i, "epoch": i + 1, "val/loss": 10.0 - i} for i in range(4)]
    text = "x" * 9000 + "\n" + "".join(json.dumps(line) + "\n" for line in lines) + '{"epoch": 9, "val'
    (job.folder / "metrics.jsonl").write_text(text)
    job.begin()
    epoch, value, left = job.progress()
    assert (epoch, value) == (4, 7.0)
    assert math.isnan(left)
    job.first_epoch, job.started = 2, job.started - 20
    assert job.progress()[2] == pytest.approx(60, abs=1)  # two epochs in 20 s, six to go


def test_without_a_terminal_each_event_is_a_line(tmp_path, capsys):
    job = make_job(tmp_path, 0)
    table = SweepTable(tmp_path, [job, make_job(tmp_path, 1)])
    with table:
        job.begin()
        table.tell(job)
        job.state, job.reason = "failed", "[red]boom"
        table.tell(job)
    table.close([job])
    table.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "job 0 of 2  running    seed=0",
        "job 0 of 2  failed     seed=0  [red]boom",
        f"failed: job 0  seed=0  [red]boom  (logs in {job.folder})",
        f"1 failed, 1 pending: {tmp_path}",
        f"compare  {program()} compare {tmp_path}",
    ]


def test_the_table_of_72_jobs_fits_a_small_terminal(tmp_path):
    sweep = tmp_path / "mnist-model-loss-KLD_weight-latent_dim-seed_0a1b2c"
    jobs = [Job(i, [f"model=mlp loss.KLD_weight={i / 7} latent_dim=16 seed={i}"], set()) for i in range(72)]
    console = Console(file=StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    table = SweepTable(sweep, jobs, console=console)
    for i, job in enumerate(jobs[:43]):
        job.config, job.folder = composed("trainer.max_epochs=10"), sweep / str(i)
        job.state, job.value, job.seconds, job.started = "completed", 100.0 - i % 41, 60, table.started
    for i, job in ((2, jobs[2]), (42, jobs[42])):
        job.state, job.value = "running", None
        job.folder.mkdir(parents=True)
        (job.folder / "metrics.jsonl").write_text(f'{{"step": 9, "epoch": {i % 10 + 1}, "val/loss": {i}.5}}\n')
    jobs[5].state = "failed"
    console.print(table.draw())
    lines = console.file.getvalue().splitlines()
    text = "\n".join(lines)
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    for number, epoch in (2, 3), (42, 3):
        (line,) = [line for line in lines if line.split()[0] == str(number)]
        assert f"loss.KLD_weight={number / 7:.4g}" in line
        assert line.split()[-3:] == ["running", str(epoch), f"{number}.5"]
    assert "failed" in text
    assert "72 jobs: 40 completed, 2 running, 1 failed, 29 pending, about 0:" in text
    assert lines[-1] == "best val/loss 60: job 40  model=mlp loss.KLD_weight=5.714 latent_dim=16 seed=40"


def test_a_sweep_goes_on_to_more_epochs_in_its_folders(tmp_path):
    append_event(tmp_path, "sweep", arguments=["-m", "seed=0,1", "trainer.max_epochs=3", "sweep.name=x"])
    arguments = sweep_arguments([f"resume_sweep={tmp_path}", "trainer.max_epochs=6"], CONF)
    moved = f"hydra.sweep.dir='{tmp_path}'"
    assert arguments == ["--multirun", moved, "trainer.max_epochs=6", "sweep.longer=True", "seed=0,1", "sweep.name=x"]
    append_event(tmp_path, "sweep", arguments=["-m", "trainer.max_epochs=3,4"])
    with pytest.raises(ValueError, match="trainer.max_epochs is what the sweep varies"):
        sweep_arguments([f"resume_sweep={tmp_path}", "trainer.max_epochs=6"], CONF)

    begun = composed("seed=3", "trainer.max_epochs=3")
    folder = tmp_path / f"seed=3_{identity(begun)}"
    RunFolder(folder).write_config(config=begun)
    (folder / "status.json").write_text('{"state": "completed"}')
    (folder / "result.json").write_text('{"epochs": 3, "steps": 9, "best_value": 1.5}')
    for settings, place, is_done, state, reason in (
        (["trainer.max_epochs=3"], folder.name, True, "completed", ""),
        (["trainer.max_epochs=6", "sweep.longer=true"], folder.name, False, "pending", ""),
        (["trainer.max_steps=20", "sweep.longer=true"], folder.name, False, "pending", ""),
        (["trainer.max_epochs=2", "sweep.longer=true"], folder.name, True, "failed", "trainer.max_epochs must be >= 3"),
        (["trainer.max_epochs=6"], None, False, "pending", ""),
    ):
        cfg = composed("seed=3", *settings, f"hydra.sweep.dir={tmp_path}", return_hydra_config=True)
        name = job_folder(["seed=3"], _root_=cfg)
        assert name == (place or f"seed=3_{identity(cfg)}"), settings
        job = Job(0, ["seed=3"], set())
        job.folder, job.config = tmp_path / name, cfg
        assert job.is_done() == is_done, settings
        assert job.state == state
        assert job.reason.startswith(reason)


class Ray:
    """As much of Ray as a sweep needs, with one worker that is lost."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self, **resources: float):
        self.resources, self.options_given = resources, []

    def init(self, address, **options):
        if address != "here":
            raise ConnectionError("nobody is there")

    def cluster_resources(self):
        return self.resources

    def remote(self, function):
        return self

    def options(self, **options):
        self.options_given.append(options)
        return type("Task", (), {"remote": staticmethod(lambda call, place, environment: call.config)})

    def wait(self, tasks, timeout):
        return tasks[:1], tasks[1:]

    def get(self, task):
        if task == "lost":
            raise self.exceptions.RayError
        return 3


def test_jobs_on_ray_get_their_share_and_a_lost_worker_is_a_preempted_job(tmp_path, monkeypatch):
    ray = Ray(CPU=8, GPU=2)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(RunError, match="no Ray cluster answers at hydra.launcher.address=there"):
        RayPool(None, 1, 2, "there")
    pool = RayPool(None, 4, 2, "here")
    gpu, two, cpu = trainer(accelerator="gpu"), trainer(2, "auto"), trainer()
    assert [pool.gpus(one) for one in (gpu, two, cpu)] == [0.25, 2, 0]
    assert [pool.most(one) for one in (gpu, two, cpu)] == [4, 1, 4]
    ray.resources["GPU"] = 0
    assert pool.gpus(gpu) == 0
    assert RayPool(3, 1, 2, "here").most(cpu) == 3

    jobs = [make_job(tmp_path, number) for number in range(2)]
    monkeypatch.setattr("vae_lab.sweep.clusters.JobProcess", lambda *_: type("Call", (), {"config": next(tasks)}))
    tasks = iter(("lost", "ends"))
    for job in jobs:
        pool.start(job, pool.room(cpu))
    assert {(o["num_cpus"], o["num_gpus"], o["max_retries"]) for o in ray.options_given} == {(2, 0, 3)}
    assert pool.ended(0) == [(jobs[0], 143)]
    assert pool.ended(0) == [(jobs[1], 3)]
    assert pool.ended(0) == []
    jobs[0].end(143)
    assert jobs[0].state == "preempted"


def test_a_cluster_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs the package ray: pip install 'vae_lab\[ray\]'"):
        RayPool(None, 1, 1, "auto")
