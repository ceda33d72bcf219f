"""The command line: quick answers, one line for every failure, a folder of its own for every run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command import TINY, vae_lab

from vae_lab.__main__ import CONF


@pytest.mark.parametrize("question", [["--help"], ["--cfg", "job"], ["--info", "defaults-tree"]], ids=" ".join)
def test_questions_are_answered_without_importing_torch(question, tmp_path):
    script = (
        "import sys; from vae_lab.__main__ import main\n"
        f"sys.argv = ['vae-lab', *{question}]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, 'lightning' in sys.modules, 'wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False False"
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_every_option_and_its_examples_compose(tmp_path):
    text = vae_lab("--help", cwd=tmp_path).stdout
    groups = text[text.index("Groups") : text.index("Examples")]
    for path in CONF.glob("*/*.yaml"):
        assert path.stem in groups, path
    lines = text[text.index("Examples") : text.index("Every key")].splitlines()
    examples = [line.split()[1:] for line in lines if line.startswith("  vae-lab")]
    assert len(examples) == 5
    for words in examples:
        overrides = [word for word in words if word != "-m" and "," not in word]
        assert vae_lab("--cfg", "job", *overrides, cwd=tmp_path).returncode == 0, words


@pytest.mark.slow
def test_a_run_writes_below_outputs_only_and_two_runs_never_share_a_folder(tmp_path):
    printed = []
    for _ in range(2):
        done = vae_lab(*TINY, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed.append(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("result ")))
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert {str(path) for path in tmp_path.glob("outputs/*/*/result.json")} == set(printed)
    assert len(set(printed)) == 2
    for result in map(Path, printed):
        assert json.loads((result.parent / "status.json").read_text())["state"] == "completed"
        assert {path.name for path in result.parent.iterdir()} == {
            ".hydra", ".lock", "status.json", "metrics.jsonl", "result.json", "checkpoints", "train.log",
        }  # fmt: skip
        cfg = yaml.safe_load((result.parent / ".hydra" / "config.yaml").read_text())
        assert cfg["latent_dim"] == 2


@pytest.mark.slow
def test_a_multirun_runs_every_job_and_returns_its_metric(tmp_path):
    done = vae_lab("-m", *TINY, "latent_dim=1,2", "loss=bce,mse", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/sweeps/*/*/result.json")]
    assert len(results) == 4
    assert len({result["parameters_sha256"] for result in results}) == 4


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    done = vae_lab(*TINY, "trainer=ddp", "trainer.accelerator=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("outputs/*/*")
    assert json.loads((folder / "status.json").read_text())["state"] == "completed"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([row for row in rows if "val/loss" in row]) == 1


FAILURES = {
    "unknown option": (["model=cnv"], 2, "cnv"),
    "unknown key": (["model.latnt_dim=8"], 2, "latnt_dim"),
    "unknown root key": (["foo=1"], 2, "foo"),
    "range": (["loss.KLD_weight=-1"], 2, "loss.KLD_weight must be >= 0"),
    "size": (["model=conv", "dataset.image_size=30"], 2, "dataset.image_size=30"),
    "device": (["trainer.accelerator=gpu"], 2, "trainer"),
    "missing data": (["dataset=image_folder", "dataset.root=nowhere"], 3, "nowhere"),
    "missing run": (["resume=nowhere"], 5, "nowhere"),
    "secret": (["+logger.api_key=abcdefgh"], 2, "logger.api_key"),
    "broken syntax": (["model.hidden_dims=[1"], 2, "hidden_dims"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_line_and_an_exit_code(name, tmp_path):
    arguments, exit_code, words = FAILURES[name]
    done = vae_lab("logger=none", *arguments, cwd=tmp_path)
    assert done.returncode == exit_code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("vae-lab: ")
    assert words in line
    assert "abcdefgh" not in line


def test_a_failed_run_says_why_in_its_folder(tmp_path):
    done = vae_lab("logger=none", "dataset=image_folder", "dataset.root=nowhere", cwd=tmp_path)
    assert done.returncode == 3
    (status,) = tmp_path.glob("outputs/*/*/status.json")
    content = json.loads(status.read_text())
    assert content["state"] == "failed"
    assert "nowhere" in content["reason"]
    assert "Traceback" in (status.parent / "train.log").read_text()


def test_hydra_full_error_shows_the_traceback(tmp_path):
    done = vae_lab("logger=none", "loss.KLD_weight=-1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_data_root_comes_from_the_environment_or_an_override(tmp_path):
    for arguments, environment in (([], {"VAE_LAB_DATA": "elsewhere"}), (["data_root=elsewhere"], {})):
        question = ["--cfg", "job", "--resolve", "--package", "dataset"]
        done = vae_lab("dataset=mnist", *arguments, *question, cwd=tmp_path, **environment)
        assert "root: elsewhere\n" in done.stdout, done.stderr


def test_wandb_without_a_key_ends_well_offline(tmp_path):
    tiny = [argument for argument in TINY if argument != "logger=none"]
    done = vae_lab("logger=wandb", *tiny, cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/*/*/wandb/offline-run-*/*.wandb"))
    assert "offline" in done.stderr


def test_no_secret_is_in_any_byte_of_a_run(tmp_path):
    secrets = {"WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567", "MY_SERVICE_TOKEN": "tok-planted-token-1"}
    tiny = [argument for argument in TINY if argument != "logger=none"]
    done = vae_lab(
        "logger=wandb",
        "logger.wandb.mode=offline",
        "logger.wandb.tags=['${oc.env:MY_SERVICE_TOKEN}']",
        "logger.wandb.name=${oc.env:MIRROR}",
        *tiny,
        cwd=tmp_path,
        MIRROR="https://user:planted-password@example.org/x",
        **secrets,
    )
    assert done.returncode == 0, done.stderr
    planted = [value.encode() for value in (*secrets.values(), "planted-password")]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not any(secret in content for secret in planted), path
    assert not any(secret.decode() in done.stdout + done.stderr for secret in planted)


@pytest.mark.slow
def test_csv_and_tensorboard_get_copies(tmp_path):
    tiny = [argument for argument in TINY if argument != "logger=none"]
    for logger, pattern in (("csv", "csv/**/metrics.csv"), ("tensorboard", "tensorboard/**/events.*")):
        done = vae_lab(f"logger={logger}", *tiny, f"hydra.run.dir={logger}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert list((tmp_path / logger).glob(pattern)), logger
