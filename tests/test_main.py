"""The command line: quick answers, one line for every failure, a folder of its own for every run."""

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from compared import write_run
from composed import composed
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from vae_lab.__main__ import CONF, main, refuse_processes
from vae_lab.config.composing import run_once
from vae_lab.config.help import groups


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `vae-lab` in this process, in an empty folder; returns its exit code, its output and its errors."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vae-lab", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


def test_questions_are_answered_without_importing_torch(tmp_path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    run, report = write_run(other / "run"), other / "report"
    questions = [["--help"], ["--help", "model"], ["--cfg", "job"], ["--info", "defaults-tree"], ["ls", "."]]
    questions += [["compare", str(run), f"out={report}"]]
    complete = other / "complete"
    (complete / ".hydra").mkdir(parents=True)
    OmegaConf.save(composed(), complete / ".hydra" / "config.yaml")
    (complete / "status.json").write_text('{"state": "completed"}')
    questions += [[f"resume={complete}"]]
    script = (
        "import sys; from vae_lab.__main__ import main\n"
        f"for question in {questions}:\n"
        "    sys.argv = ['vae-lab', *question]\n"
        "    main()\n"
        "print('torch' in sys.modules, 'lightning' in sys.modules, 'wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False False"
    assert "Strided convolutions" in done.stdout
    assert "already complete" in done.stdout.splitlines()[-2]
    assert sorted(path.name for path in report.iterdir()) == ["report.csv", "report.html", "report.md"]
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_option_and_its_examples_compose(run):
    code, text, _ = run("--help")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 100
    table = re.sub(r"\n {9,}", " ", text[text.index("Groups") : text.index("Examples")]).replace(",", "").splitlines()
    known = groups(CONF)
    assert [line.split() for line in table[1:] if line] == [[group, *options] for group, options in known.items()]
    defaults = {"dataset": "digits", "optimizer/schedule": "none", "hydra/sweeper/sampler": "tpe"}
    assert {group: next(iter(known[group])) for group in defaults} == defaults
    for word in ("eval", "compare", "export", "ls", "play"):
        assert f"  vae-lab {word} " in text
    lines = text[text.index("Examples") : text.index("Every key")].splitlines()
    examples = [line.split()[1:] for line in lines if line.startswith("  vae-lab")]
    assert len(examples) == 5
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for words in examples:
            compose("config", [word for word in words if word != "-m" and "," not in word])
    assert run("--help", "modl")[0] == 2


def test_the_small_commands_are_words(run):
    for word in ("eval", "compare", "export", "ls", "play"):
        code, output, errors = run(word, "nowhere")
        assert code in (2, 5), word
        assert "nowhere" in output + errors
        assert errors.count("vae-lab: ") == 1


def test_a_failure_is_one_line_and_an_exit_code_and_says_why_in_its_folder(run, tmp_path):
    for code, arguments, words in (
        (2, ["dataset=image_folder"], "dataset.root must be a folder, got None: set dataset.root=DIR"),
        (5, ["resume=nowhere"], "nowhere"),
        (3, ["dataset=image_folder", "dataset.root=nowhere"], "nowhere"),
    ):
        shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
        found, _, errors = run("logger=none", *arguments)
        (line,) = errors.strip().splitlines()
        assert (found, line.startswith("vae-lab: "), words in line) == (code, True, True), line
    (status,) = tmp_path.glob("outputs/failed/*/status.json")  # where it does not pass for the latest run
    assert [path.name for path in tmp_path.glob("outputs/*")] == ["failed"]
    content = json.loads(status.read_text())
    assert content["state"] == "failed"
    assert "nowhere" in content["reason"]
    assert "Traceback" in (status.parent / "train.log").read_text()


def test_hydra_full_error_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="KLD_weight"):
        run("logger=none", "loss.KLD_weight=-1")


def test_data_root_comes_from_the_environment_or_an_override(run, monkeypatch):
    question = ["--cfg", "job", "--resolve", "--package", "dataset"]
    assert "root: elsewhere\n" in run("dataset=mnist", "data_root=elsewhere", *question)[1]
    monkeypatch.setenv("VAE_LAB_DATA", "elsewhere")
    assert "root: elsewhere\n" in run("dataset=mnist", *question)[1]


def test_hydras_own_launchers_refuse_several_devices_and_workers_of_what_cannot_start_them(monkeypatch):
    def job(strategy, devices, num_workers=0):
        return OmegaConf.create(
            {"trainer": {"strategy": strategy, "devices": devices}, "dataset": {"num_workers": num_workers}}
        )

    refuse_processes(job("auto", 1, num_workers=1))
    with pytest.raises(ValueError, match="works in a sweep with hydra/launcher=local only"):
        refuse_processes(job("ddp", 2))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "loky")
    refuse_processes(job("auto", 1))
    with pytest.raises(ValueError, match="dataset.num_workers must be 0 with this hydra/launcher, got 1"):
        refuse_processes(job("auto", 1, num_workers=1))


@pytest.mark.parametrize("arguments", [["seed=3"], ["-m", "seed=3", "hydra/launcher=basic"]])
def test_a_config_that_is_composed_once_is_that_of_hydras_own_main(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    seen, compositions = [], []
    once = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", lambda *a, **k: compositions.append(a) or once(*a, **k))

    def task(cfg):
        whole = OmegaConf.to_container(HydraConfig.instance().cfg)
        whole["hydra"]["runtime"].pop("output_dir")
        seen.append((OmegaConf.to_container(cfg), whole))

    others = [argument for argument in arguments if argument != "-m"]
    monkeypatch.setattr(sys, "argv", ["vae-lab", *arguments])
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
    first = len(compositions)
    assert run_once(task, RunMode.RUN if others == arguments else RunMode.MULTIRUN, others)
    assert len(compositions) - first == first - 1
    assert seen[1:] == seen[:1]


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["hydra.mode=MULTIRUN"], ["hydra.mode=MULTIRUN", "seed=0,1"]])
def test_flags_and_other_modes_are_left_to_hydra(arguments):
    assert not run_once(pytest.fail, RunMode.RUN, arguments)
