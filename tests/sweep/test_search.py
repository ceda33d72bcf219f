"""Searches: what is drawn, where it is kept, what a kill leaves of it."""

import os
import re
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
import yaml
from command import finish, start, wait_until
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from vae_lab import __main__ as commands
from vae_lab.errors import RunError
from vae_lab.sweep.job import read_journal
from vae_lab.sweep.pruning import Pruning
from vae_lab.sweep.search import (
    STORAGE,
    OptunaSweeper,
    build_part,
    check_space,
    distribution,
    open_storage,
    storage_url,
)

SMALL = ["logger=none", "callbacks.gallery=null", "trainer=cpu", "model.hidden_dims=[8]", "sweep.n_jobs=2"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=interval(0,1)", FloatDistribution(0, 1)),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1, log=True)),
        ("a=int(tag(log,interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("a=range(1,9,2)", IntDistribution(1, 9, step=2)),
        ("a=range(0.5,2.5,step=0.5)", FloatDistribution(0.5, 2.5, step=0.5)),
        ("a=choice(x,y)", CategoricalDistribution(["x", "y"])),
        ("a=1,2.5,true,null", CategoricalDistribution([1, 2.5, True, "null"])),
        ("a=choice([8],[16,8])", CategoricalDistribution(["[8]", "[16,8]"])),
    ],
)
def test_what_an_override_is_drawn_from(override, expected):
    (parsed,) = OverridesParser.create().parse_overrides([override])
    assert distribution(parsed) == expected


@pytest.mark.parametrize(
    "override", ["a.b=interval(64,2)", "a.b=int(interval(64,2))", "a.b=tag(log,interval(0,1))", "a.b=range(1,9,-1)"]
)
def test_a_range_that_is_none_is_named(override):
    (parsed,) = OverridesParser.create().parse_overrides([override])
    with pytest.raises(ValueError, match=r"^a\.b: "):
        distribution(parsed)


def test_a_search_cannot_go_on_in_a_space_of_another_kind():
    study = optuna.create_study(study_name="mine")
    space = {"a.b": IntDistribution(1, 3), "c": CategoricalDistribution([1, 2])}
    study.tell(study.ask(space), 1.0)
    check_space(study, space | {"a.b": IntDistribution(2, 9), "new": FloatDistribution(0, 1)})
    for key, changed in (("a.b", FloatDistribution(1, 3)), ("c", CategoricalDistribution([1, 2, 3]))):
        with pytest.raises(ValueError, match=rf"^{re.escape(key)}: .* The study mine .*another sweep.name"):
            check_space(study, space | {key: changed})
    assert len(study.trials) == 1


def sweeper(**changes) -> OptunaSweeper:
    arguments = {"sampler": None, "pruner": None, "direction": "minimize", "metrics": None, "n_trials": 3, "n_jobs": 1,
                 "max_failure_rate": 1.0, "storage": None, "study_name": None, "params": None}  # fmt: skip
    return OptunaSweeper(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"direction": "up"}, "direction must be minimize or maximize, got 'up'"),
        ({"n_trials": 0}, "n_trials must be a whole number >= 1, got 0"),
        ({"metrics": ["val/kl", "val/mse"]}, "direction must have an entry for each of hydra.sweeper.metrics"),
        ({"metrics": ["a", "b"], "direction": ["minimize"] * 2, "pruner": {"a": 1}}, "pruner must be none where"),
    ],
)
def test_wrong_settings_are_named(changes, problem):
    with pytest.raises(ValueError, match=problem):
        sweeper(**changes)


def test_only_samplers_are_built_and_wrong_arguments_are_named():
    for target in ("os.system", "optuna.samplers.os", None):
        with pytest.raises(ValueError, match=r"key\._target_ must be a class of optuna\.samplers, got"):
            build_part("samplers", {"_target_": target}, "key")
    with pytest.raises(ValueError, match="key: .*unexpected keyword argument 'sed'"):
        build_part("samplers", {"_target_": "optuna.samplers.RandomSampler", "sed": 1}, "key")


def test_the_storage_lies_in_the_folder_of_the_sweep(tmp_path):
    assert storage_url(None, tmp_path) == f"journal://{tmp_path}/optuna.journal"
    assert storage_url("sqlite", tmp_path) == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url("sqlite:////elsewhere/x.db", tmp_path) == "sqlite:////elsewhere/x.db"


def open_study(folder: Path, monkeypatch, storage: str | None = None, **changes) -> optuna.Study:
    monkeypatch.setenv(STORAGE, storage_url(storage, folder))
    made = sweeper(sampler=OmegaConf.create({"_target_": "optuna.samplers.RandomSampler"}), **changes)
    made.study_name = "mine"
    made.config = OmegaConf.create({"callbacks": {"checkpoints": {"monitor": "val/loss"}}})
    return made._open_study()


@pytest.mark.parametrize("storage", [None, "sqlite"])
def test_a_study_goes_on_with_its_own_aims_only(storage, tmp_path, monkeypatch):
    open_study(tmp_path, monkeypatch, storage, metrics=["val/los"])
    study = open_study(tmp_path, monkeypatch, storage)  # nothing was found out about the wrong name
    study.add_trial(optuna.trial.create_trial(value=1.0))
    for changes, aim in (
        ({"direction": "maximize"}, "maximize best_value of val/loss"),
        ({"metrics": ["val/kl"]}, "minimize val/kl"),
        ({"metrics": ["a", "b"], "direction": ["minimize", "maximize"]}, "minimize a, maximize b"),
    ):
        problem = f"mine is there, to minimize best_value of val/loss, and cannot go on to {aim}: .*another sweep.name"
        with pytest.raises(ValueError, match=problem):
            open_study(tmp_path, monkeypatch, storage, **changes)


@pytest.mark.parametrize(("owns", "number"), [(True, 0), (False, 1)])
def test_unfinished_trials_in_the_folders_own_storage_go_on_wherever_it_is_now(tmp_path, owns, number, monkeypatch):
    study = optuna.create_study()
    study.ask().set_user_attr("owner", "another search")
    monkeypatch.setenv(STORAGE, f"sqlite:///{tmp_path}/x.db")
    made = sweeper(n_trials=2, sampler=OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 1}))
    made.owner, made.owns_storage = "this one", owns
    (trial,) = made._next_trials(study, {})
    assert trial.number == number


def test_searches_that_share_a_study_draw_its_total_and_never_the_same(tmp_path, monkeypatch):
    """Each has a sampler of its own with the same seed."""
    monkeypatch.setenv(STORAGE, f"journal://{tmp_path}/study")
    drawn = []
    for owner in ("one", "other"):
        study = optuna.create_study(
            study_name="s", storage=open_storage(f"journal://{tmp_path}/study"), load_if_exists=True
        )
        made = sweeper(n_trials=5, sampler=OmegaConf.create({"_target_": "optuna.samplers.RandomSampler", "seed": 1}))
        made.owner, made.owns_storage, made.n_jobs = owner, False, 3
        batch = made._next_trials(study, {"x": FloatDistribution(0, 1)})
        drawn += [(trial.number, trial.params["x"]) for trial in batch]
        assert [trial.number for trial in made._next_trials(study, {})] == [trial.number for trial in batch]  # its own
    assert [number for number, _ in drawn] == list(range(5))
    assert len(dict(drawn)) == len({x for _, x in drawn}) == 5


@pytest.mark.parametrize(
    "url",
    ["no url", "sqlite://host:port/x", "nothing://me:p4ssw0rd@host/x"],
)
def test_a_url_that_is_none_is_named_without_its_password(url, tmp_path, monkeypatch):
    shown = url.replace("me:p4ssw0rd", "***")
    with pytest.raises(ValueError, match=re.escape(f"sqlite:///FILE, got {shown}: ")) as failure:
        open_study(tmp_path, monkeypatch, url)
    assert "p4ssw0rd" not in str(failure.value)


@pytest.mark.parametrize("content", [b"xxx\n", b"\xff\xfe\n", b'{"op_code": 0}\n', 0, 4096])
def test_a_damaged_study_is_named(content, tmp_path, monkeypatch):
    """A journal of this content, or a database that is junk from this byte on."""
    storage, path = (
        (None, tmp_path / "optuna.journal") if isinstance(content, bytes) else ("sqlite", tmp_path / "optuna.db")
    )
    if storage:
        open_study(tmp_path, monkeypatch, storage)
        whole = path.read_bytes()
        content = whole[:content] + b"junk" * ((len(whole) - content) // 4)
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"cannot read the study in {path}: .*another sweep.name"):
        open_study(tmp_path, monkeypatch, storage)


class Lit:
    epochs_begun = 1


class Trainer:
    is_global_zero, sanity_checking, should_stop = True, False, False

    def __init__(self, value: float):
        self.callback_metrics = {"val/loss": value}


def test_a_trial_that_is_no_match_is_ended(tmp_path, monkeypatch):
    url = storage_url(None, tmp_path)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    study = optuna.create_study(study_name="s", storage=open_storage(url), pruner=pruner)
    for value in (1.0, 2.0):
        trial = study.ask()
        trial.report(value, 0)
        study.tell(trial, value)
    monkeypatch.setenv(STORAGE, url)
    monkeypatch.setattr(optuna, "load_study", lambda **arguments: study)
    for value, ends in ((9.0, True), (0.5, False), (9.0, False)):
        number, trainer = study.ask().number, Trainer(value)
        pruning = Pruning(trial=number, study_name="s", monitor="val/loss")
        pruning.on_fit_start(trainer, Lit())
        pruning.on_validation_end(trainer, Lit())
        assert trainer.should_stop is ends
        assert study.trials[number].user_attrs.get("pruned", False) is ends
        assert study.trials[number].intermediate_values == ({0: value} if STORAGE in os.environ else {})
        if not ends:
            monkeypatch.delenv(STORAGE, raising=False)  # outside of its search a trial is never ended


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="hydra/sweeper=optuna needs the package optuna .*: pip install optuna"):
        sweeper()


def test_a_search_goes_on_while_another_makes_the_tables_of_their_storage(tmp_path, monkeypatch):
    failures = iter(["table studies already exists", "database is locked"])

    class Storage(optuna.storages.RDBStorage):
        def __init__(self, url):
            for problem in failures:
                raise sqlalchemy.exc.OperationalError("CREATE TABLE", {}, Exception(problem))
            super().__init__(url)

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(optuna.storages, "RDBStorage", Storage)
    assert open_study(tmp_path, monkeypatch, "sqlite").trials == []
    with pytest.raises(RunError, match="unable to open database file"):
        open_study(tmp_path, monkeypatch, f"sqlite:///{tmp_path}/no/folder/x.db")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metrics": ["val/foo"]}, "metrics: no trial will measure val/foo, only val/kl, val/mse"),
        ({"metrics": ["elbo"], "direction": "maximize"}, "metrics: no trial will measure elbo"),
        ({"metrics": ["val/elbo"]}, "direction must be maximize for val/elbo, got minimize"),
        ({"direction": "maximize"}, "direction must be minimize for val/loss, got maximize"),
        ({"metrics": ["val/mse", "train_seconds"], "direction": ["minimize"] * 2}, ""),
        ({"metrics": ["val/kl", "best_epoch"], "direction": ["maximize"] * 2}, ""),
    ],
)
def test_what_no_trial_measures_is_refused_before_the_first(changes, problem):
    class Pool:
        def names_of_metrics(self, config):
            return {"val/kl", "val/mse", "train/kl"}

    made = sweeper(**changes)
    made.config, made.launcher = OmegaConf.create({"callbacks": {}}), SimpleNamespace(pool=Pool())
    with pytest.raises(ValueError, match=problem) if problem else nullcontext():
        made._check_metrics()


# --- whole searches


@pytest.fixture
def search(tmp_path, monkeypatch, capsys):
    """Search in this process, whose fork server keeps the first search's environment; the exit code, what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(
            sys, "argv", ["vae-lab", "-m", "hydra/sweeper=optuna", "sweep.name=mine", *SMALL, *arguments]
        )
        try:
            commands.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return run


def load(sweep: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="search", storage=open_storage(storage_url(None, sweep))).trials


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.timeout(300)
def test_d4_a_killed_search_goes_on_to_its_total(tmp_path, search):
    settings = ["latent_dim=int(interval(1,30))", "optimizer.lr=interval(0.001,0.01)", "hydra.sweeper.n_trials=5",
                "trainer.max_epochs=12"]  # fmt: skip
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    process = start("-m", "hydra/sweeper=optuna", "sweep.name=mine", *SMALL, *settings, cwd=tmp_path)
    wait_until(lambda: len(list(sweep.glob("*/metrics.jsonl"))) >= 3, process, 120)  # two may begin at once
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    before = load(sweep)
    interrupted = [trial.params for trial in before if not trial.state.is_finished()]
    assert interrupted
    code, said = search(*settings)
    assert code == 0, said
    trials = load(sweep)
    assert [trial.number for trial in trials] == list(range(5))
    assert all(trial.state.is_finished() for trial in trials)
    assert [trial.params for trial in trials][: len(before)] == [trial.params for trial in before]
    assert len({str(trial.params) for trial in trials}) == 5  # nothing drawn again
    assert len(list(sweep.glob("*/result.json"))) == 5
    best = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert best["best_value"] == min(trial.value for trial in trials)
    assert search(*settings)[0] == 0
    assert len(load(sweep)) == 5
    starts = [event for event in read_journal(sweep) if event["event"] == "start"]
    assert len(starts) == 5 + len(interrupted)


@pytest.mark.slow
def test_failed_trials_are_recorded_and_not_fatal(tmp_path, search):
    code, said = search("latent_dim=choice(2,-1)", "hydra.sweeper.n_trials=4", "trainer.max_epochs=1",
                        "hydra/sweeper/sampler=random")  # fmt: skip
    assert code == 0, said
    trials = load(tmp_path / "outputs" / "sweeps" / "mine")
    assert {(trial.params["latent_dim"], trial.state.name) for trial in trials} == {(2, "COMPLETE"), (-1, "FAIL")}
    assert "latent_dim must be a whole number >= 1, got -1" in said


@pytest.mark.slow
def test_a_failure_can_stop_a_search_whose_other_trials_wait(tmp_path, search):
    code, said = search("latent_dim=int(interval(-999,-1))", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3",
                        "sweep.on_failure=stop", "sweep.n_jobs=1")  # fmt: skip
    assert code == 6
    assert said.splitlines()[-1] == "vae-lab: a trial failed, and sweep.on_failure=stop; the same command goes on"
    states = [trial.state.name for trial in load(tmp_path / "outputs" / "sweeps" / "mine")]
    assert states == ["FAIL", "RUNNING", "RUNNING"]


@pytest.mark.slow
def test_several_metrics_give_a_front(tmp_path, search):
    code, said = search(
        "loss.KLD_weight=tag(log,interval(0.01,4))", "hydra.sweeper.n_trials=4", "hydra/sweeper/sampler=nsgaii",
        "hydra.sweeper.metrics=[val/reconstruction,val/kl]", "hydra.sweeper.direction=[minimize,minimize]",
        "hydra.sweeper.storage=sqlite", "trainer.max_epochs=1",
    )  # fmt: skip
    assert code == 0, said
    sweep = tmp_path / "outputs" / "sweeps" / "mine"
    study = optuna.load_study(study_name="search", storage=storage_url("sqlite", sweep))
    front = yaml.safe_load((sweep / "optimization_results.yaml").read_text())["solutions"]
    assert [solution["values"] for solution in front] == [trial.values for trial in study.best_trials]
