"""A config from a stranger, in a run folder or in a file of its own, executes nothing and writes nowhere else."""

import os
import pickle
import re
from pathlib import Path

import pytest
from command import TINY
from composed import composed
from strangers import DOORS, Payload, change_config

from vae_lab.runs.signals import Preemption
from vae_lab.training.build import build

pytestmark = pytest.mark.fault

# G3: code named in a config

# A place for an object in every group.
OBJECTS = (
    *("trainer", "callbacks.progress", "callbacks.checkpoints", "dataset.source", "model.encoder", "model.decoder"),
    *("loss.likelihood", "posterior", "optimizer", "objective"),
)


def refused(code: int, message: str, key: str, marker: Path) -> None:
    assert not marker.exists()
    assert code == 2, message
    assert message.startswith("vae-lab: ")
    assert key in message


def not_built(override: str, key: str, marker: Path) -> None:
    """A config with an override is refused, and nothing was run; how a command ends then, others test."""
    with pytest.raises(ValueError, match=re.escape(key)):
        build(composed(*TINY, override, f"run_dir={marker.parent / 'run'}"), Preemption())
    assert not marker.exists()
    assert not (marker.parent / "run").exists()


@pytest.mark.parametrize("key", OBJECTS)
def test_g3_a_hostile_target_in_every_group_is_refused(key, marker):
    not_built(f"{key}._target_=hostile_module.Thing", key, marker)


# What takes the environment, or Hydra's own keys; ../config/test_instantiate.py has more places.
HIDDEN = {
    "arguments": "{_target_: vae_lab.training.progress.Progress, _args_: [{_target_: hostile_module.Thing}]}",
    "from the environment": "{_target_: '${oc.env:HOSTILE}'}",
    "decoded": "{_target_: '${oc.decode:${oc.env:HOSTILE}}'}",
    "created": "{x: '${oc.create:${oc.env:HOSTILE_NODE}}'}",
}


@pytest.mark.parametrize("form", HIDDEN)
def test_g3_a_hidden_target_is_refused(form, marker, monkeypatch):
    monkeypatch.setenv("HOSTILE", "hostile_module.Thing")
    monkeypatch.setenv("HOSTILE_NODE", "{_target_: hostile_module.Thing}")
    not_built(f"+callbacks.guest={HIDDEN[form]}", "callbacks.guest", marker)


def through_doors(*things: str) -> list[tuple[str, str]]:
    """The first thing through every door, and every other one through one door: behind them is one reader."""
    return [*((door, things[0]) for door in DOORS), *(("eval", thing) for thing in things[1:])]


def test_g3_a_hostile_target_in_a_config_file_is_refused(tmp_path, marker, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    content = "# @package _global_\ncallbacks: {guest: {_target_: hostile_module.Thing}}\n"
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(content)
    folder = f"--config-dir={tmp_path / 'conf'}"
    refused(*command("vae-lab", folder, *TINY, "experiment=evil"), "callbacks.guest", marker)


@pytest.mark.parametrize("name", [".hydra", "checkpoints", "../outside"])
def test_g3_hydra_writes_no_config_of_its_own_over_that_of_a_run(name, run_dir, tmp_path, command):
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    code, message = command("vae-lab", *TINY, f"hydra.run.dir={run_dir}", f"hydra.output_subdir={name}")
    assert code == 2, message
    assert "hydra.output_subdir" in message
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "outside").exists()


SAVED = {  # by what is said of it; Hydra obeys the last two while it composes a config
    "posterior": lambda config: config["posterior"].update(_target_="hostile_module.Thing"),
    "model.encoder": lambda config: config["model"]["encoder"].update(_target_="hostile_module.Thing"),
    "loss.likelihood": lambda config: config["loss"]["likelihood"].update(_target_="hostile_module.Thing"),
    "config.yaml": lambda config: config.update(hydra={"callbacks": {"guest": {"_target_": "hostile_module.Thing"}}}),
    "config.yaml: ": lambda config: config.update(defaults=[{"override hydra/job_logging": "default"}]),
}


@pytest.mark.parametrize(("door", "key"), [*through_doors(*SAVED), *((door, "config.yaml") for door in DOORS)])
def test_g3_a_saved_config_runs_no_code(door, key, run_dir, marker, open_run):
    change_config(run_dir, SAVED[key])
    code, message = open_run(door, run_dir)
    assert not marker.exists()
    assert code == 2, message
    assert key.removesuffix(": ") in message


def test_g3_files_beside_a_saved_config_are_not_read_and_its_run_dir_does_not_say_where_to_write(
    run_dir, marker, tmp_path, open_run
):
    for group in ("hydra/config", "hydra/env/default", "hydra/output/default", "hydra/launcher/basic"):
        path = run_dir / ".hydra" / f"{group}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package hydra.callbacks\nguest: {_target_: hostile_module.Thing}\n")
    change_config(run_dir, lambda config: config.update(run_dir=str(tmp_path / "elsewhere")))
    code, message = open_run("resume", run_dir)
    assert not marker.exists()
    assert code == 0, message
    assert not (tmp_path / "elsewhere").exists()


def test_g3_a_pickle_that_hydra_would_run_is_refused(tmp_path, marker, command):
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Payload(marker)))
    for option in ("--experimental-rerun", "--exp"):
        refused(*command("vae-lab", f"{option}={tmp_path / 'config.pickle'}"), "--experimental-rerun", marker)


# G6: YAML that builds objects

TAGS = ("!!python/object/apply:os.mkdir [MARKER]", "!!python/object/new:hostile_module.Thing []", "!!python/name:os.x")


@pytest.mark.parametrize("tag", TAGS)
def test_g6_a_yaml_tag_in_a_config_file_or_a_setting_is_refused(tag, run_dir, tmp_path, marker, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tag = tag.replace("MARKER", str(marker))
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(f"# @package _global_\nseed: {tag}\n")
    refused(*command("vae-lab", f"--config-dir={tmp_path / 'conf'}", *TINY, "experiment=evil"), "python/", marker)
    refused(*command("vae-lab", *TINY, f"seed={tag}"), "seed", marker)
    refused(*command("vae-lab-eval", run_dir, f"batch_size={tag}"), "batch_size", marker)
    refused(*command("vae-lab-export", run_dir, f"checkpoint={tag}"), "checkpoint", marker)


ALIASED = "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}' if n else 'x'] * 9)}]\n" for n in range(12))


YAML = [*(f"MORE\nextra: {tag}\n" for tag in TAGS), ALIASED, "[" * 50_000]
EVERY_WAY = [*through_doors(*YAML), *((door, ALIASED) for door in DOORS)]


@pytest.mark.parametrize(("door", "text"), EVERY_WAY, ids=lambda text: text[:9])
def test_g6_yaml_that_builds_objects_or_unfolds_without_end_is_refused(door, text, run_dir, marker, open_run):
    path = run_dir / ".hydra" / "config.yaml"
    path.write_text(text.replace("MORE", path.read_text()).replace("MARKER", str(marker)))
    code, message = open_run(door, run_dir)
    assert not marker.exists()
    assert code == 2 or (code == 5 and text not in YAML[:3]), message
    assert "config.yaml" in message
    assert "\n" not in message or text not in YAML[:3]


# A folder that leads elsewhere


LINKED = ("metrics.jsonl", "train.log", "result.json", "checkpoints/last.ckpt", "pictures", "wandb")


@pytest.mark.parametrize(("door", "name"), through_doors(*LINKED))
def test_g3_a_run_folder_with_a_link_out_of_it_is_refused(door, name, run_dir, tmp_path, open_run):
    outside = tmp_path / "outside"
    path = run_dir / name
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    path.symlink_to(outside)
    before = outside.stat().st_mtime_ns
    code, message = open_run(door, run_dir)
    assert code == 5, message
    assert name in message
    assert outside.stat().st_mtime_ns == before


PIPES = ("status.json", "metrics.jsonl", "train.log", "pictures/x.png", ".hydra/config.yaml")


@pytest.mark.parametrize(("door", "name"), through_doors(*PIPES))
@pytest.mark.timeout(30)
def test_g3_a_pipe_in_a_run_folder_keeps_nobody_waiting(door, name, run_dir, open_run):
    path = run_dir / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    code, message = open_run(door, run_dir)
    assert code == 5, message
    assert name in message


LOGGERS = {
    "vae_lab.loggers.local.CsvLogger": ["save_dir: ELSEWHERE", "save_dir: ../elsewhere"],
    "vae_lab.loggers.local.TensorBoardLogger": ["save_dir: ELSEWHERE"],
    "lightning.pytorch.loggers.CSVLogger": [
        "save_dir: ELSEWHERE",
        "save_dir: '${run_dir}', name: ../../elsewhere",
        "save_dir: '${run_dir}', version: ../../elsewhere",
    ],
    "lightning.pytorch.loggers.TensorBoardLogger": ["save_dir: '${run_dir}', sub_dir: ../../../../elsewhere"],
}


@pytest.mark.parametrize("logger", LOGGERS)
def test_g3_a_logger_that_would_write_elsewhere_is_refused(logger, marker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in LOGGERS[logger]:
        node = f"{{_target_: {logger}, {arguments.replace('ELSEWHERE', str(tmp_path / 'elsewhere'))}}}"
        not_built(f"+logger.guest={node}", "logger.guest", marker)
        assert not list(tmp_path.rglob("elsewhere"))


def test_g3_a_trackers_folder_is_the_runs(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = [setting for setting in TINY if setting != "logger=none"]
    refused(*command("vae-lab", *tiny, "logger.wandb.save_dir=../elsewhere"), "logger.wandb", tmp_path / "x")
