"""A secret is in no byte that a run writes or prints, and in no name of a file."""

from pathlib import Path

import pytest
import yaml
from command import TINY, finish
from forks import Forked

pytestmark = pytest.mark.fault

HEX = "0123456789abcdef0123456789abcdef01234567"
SECRETS = {
    "WANDB_API_KEY": HEX,
    "HF_TOKEN": "hf_plantedplantedplanted",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret/key",
    "MYSQL_PWD": "plan\"ted\\pwd'1",
    "GPG_PASSPHRASE": "a planted pass phrase",
    "GITHUB_PAT": "planted-pat",
    "DB_PASS": "planted_Tr0ub4dor",
    "PROXY_AUTH": "Basic cGxhbnRlZDpwbGFudGVk",
    "DATABASE_URL": "postgres://me:planted-in-a-url@host/db",
    "MIRROR": "https://planted0token0in0a0url@host/simple",
    "HOOK": "https://host/hook?user=me&token=planted-in-a-query&x=1",
    "DEPLOY_KEY": "-----BEGIN KEY-----\nplantedlineofakey\n-----END KEY-----",
}
PLANTED = (
    *(HEX, "hf_plantedplantedplanted", "planted/aws", 'plan"ted', 'plan\\"ted', "a planted pass", "planted-pat"),
    *("cGxhbnRlZDpwbGFudGVk", "planted-in-a-url", "planted0token0in0a0url", "planted-in-a-query", "plantedlineofakey"),
    "planted_Tr0ub4dor",
)
EVERYWHERE = [f"${{oc.env:{name}}}" for name in SECRETS]


def assert_nowhere(folder: Path, *printed: str) -> None:
    """No planted secret is in a byte or a name below a folder, or in what was printed."""
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found = [secret for secret in PLANTED if secret.encode() in content or secret in path.name]
        assert not found, (path, found)
    for text in printed:
        assert not [secret for secret in PLANTED if secret in text], text


@pytest.mark.slow
def test_g4_no_secret_of_the_environment_is_in_any_byte(tmp_path, command, monkeypatch):
    tags = "[" + ",".join(f"'{text}'" for text in EVERYWHERE) + "]"
    loggers = [
        "logger=wandb",
        "logger.wandb.mode=offline",
        f"logger.wandb.tags={tags}",
        "logger.wandb.name='${oc.env:DATABASE_URL}'",
        "logger.wandb.group='${oc.env:MYSQL_PWD}'",
        "+logger.csv={_target_: vae_lab.loggers.local.CsvLogger, save_dir: '${run_dir}'}",
        "+logger.tensorboard={_target_: vae_lab.loggers.local.TensorBoardLogger, save_dir: '${run_dir}'}",
    ]
    tiny = [setting for setting in TINY if setting != "logger=none"]
    run_dir = tmp_path / "run"
    url = "data_root=${oc.env:DATABASE_URL}"
    variables = SECRETS | {"HOME": str(tmp_path / "home")}  # W&B writes there too
    done = finish(Forked(*tiny, *loggers, url, f"hydra.run.dir={run_dir}", cwd=tmp_path, env=variables))
    assert done.returncode == 0, done.stderr
    assert_nowhere(tmp_path, done.stdout, done.stderr)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, *settings in (
        ("vae-lab", f"resume={run_dir}", "trainer.max_steps=4"),
        ("vae-lab-eval", run_dir, url, "pictures=true"),
        ("vae-lab-export", run_dir, f"out={tmp_path / 'export'}"),
    ):
        code, message = command(name, *settings)
        assert code == 0, message
        assert_nowhere(tmp_path, command.printed)
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert (tmp_path / "export" / "config.json").exists()
    # What the run needs is still there: where the secret is.
    saved = yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text())
    assert saved["data_root"] == "${oc.env:DATABASE_URL}"
    assert saved["logger"]["wandb"]["tags"] == EVERYWHERE


@pytest.fixture
def failing_source(tmp_path):
    """A package of the user's own whose source fails in a way that nobody thought of, with a secret in its words."""
    (tmp_path / "my_package.py").write_text(
        "import os\nclass Source:\n    def __init__(self, image_shape, fit):\n        pass\n"
        "    def read(self):\n        raise KeyError('cannot log in', os.environ['MYSQL_PWD'], dict(os.environ))\n"
    )
    return "dataset.source._target_=my_package.Source"


CSV = "_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}'"
FAILURES = {
    "data": (["dataset=image_folder", "dataset.root='${oc.env:DATABASE_URL}'"], 3),
    "a setting": (["model.activation='${oc.env:MYSQL_PWD}'"], 2),
    "a column's name": ([f"+logger.csv={{{CSV}, prefix: '${{oc.env:GITHUB_PAT}}'}}"], 2),
    "the tracker's mode": (["logger=wandb", "logger.wandb.mode='${oc.env:HF_TOKEN}'"], 2),
}


@pytest.mark.slow
def test_g4_no_secret_is_in_what_an_unforeseen_failure_leaves(failing_source, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    done = finish(Forked(*TINY, failing_source, cwd=tmp_path, env={"VAE_LAB_TRUST": "my_package", **SECRETS}))
    assert done.returncode == 1, done.stderr
    assert "cannot log in" in done.stderr
    assert_nowhere(tmp_path / "outputs", done.stdout, done.stderr)
    (status,) = tmp_path.glob("outputs/*/*/status.json")
    assert "cannot log in" in status.read_text()


@pytest.mark.parametrize("failure", FAILURES)
def test_g4_no_secret_is_in_what_a_failed_run_leaves(failure, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings, expected = FAILURES[failure]
    code, message = command("vae-lab", *TINY, *settings)
    assert code == expected, message
    assert_nowhere(tmp_path, command.printed)


@pytest.mark.slow
def test_g4_a_config_file_that_holds_a_secret_is_refused(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_PAT", SECRETS["GITHUB_PAT"])
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    for number, setting in enumerate(
        (
            "data_root: https://host/x?token=planted-in-a-query",
            "logger: {wandb: {api_key: planted-in-a-query}}",
        )
    ):
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{setting}\n")
        start = ["-m", "seed=0,1"] if number % 2 else ["seed=0"]
        code, message = command("vae-lab", f"--config-dir={tmp_path / 'conf'}", *start, "experiment=mine")
        assert code == 2, message
        assert "looks like a secret" in message
        assert setting.partition(":")[0] in message
        assert_nowhere(tmp_path / "outputs", command.printed)


@pytest.mark.parametrize(
    "override",
    [
        "logger.wandb.name=planted-pat",
        "data_root=${oc.env:MIRROR_PASSWORD,planted-in-a-query}?password=planted-in-a-query",
        "hydra.run.dir=outputs/planted-pat",
        "run_name=planted-pat",
    ],
)
def test_g4_an_override_that_holds_a_secret_is_refused(override, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_PAT", SECRETS["GITHUB_PAT"])
    code, message = command("vae-lab", "logger=wandb", override)
    assert code == 2
    assert "looks like a secret" in message
    assert_nowhere(tmp_path, command.printed)
    assert not list(tmp_path.iterdir())
