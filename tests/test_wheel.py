"""The built wheel runs from an empty folder: it carries the config."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The scripts of a fresh environment in which the wheel is installed, and which can see the dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    (site,) = (folder / "venv" / "lib").glob("*/site-packages")
    # Only the dependencies: this repository itself is an editable install, which a .pth file would activate.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "venv" / "bin"


@pytest.mark.slow
def test_the_wheel_trains_and_answers_from_an_empty_folder(installed, tmp_path):
    def run(*command: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    where = run(str(installed / "python"), "-c", "import vae_lab; print(vae_lab.__file__)").stdout
    assert str(installed.parent) in where
    tiny = ["logger=none", "callbacks.gallery=null", "trainer.max_steps=2", "trainer.limit_val_batches=1"]
    done = run(str(installed / "vae-lab"), *tiny)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    assert "val/elbo" in result.read_text()
    done = run(str(installed / "vae-lab-eval"), "--help")
    assert done.returncode == 0, done.stderr
    assert "vae-lab-eval RUN_DIR" in done.stdout
