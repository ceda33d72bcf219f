"""The built wheel runs from an empty folder: it carries the config; and a new part in it is two files."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from command import TINY

REPOSITORY = Path(__file__).parent.parent

CLASS = '''"""A prior that is wider than the standard normal."""

import torch
from torch import nn


class Wide(nn.Module):
    """p(z) = N(0, 4 I)."""

    def __init__(self, latent_shape):
        super().__init__()
        self.latent_shape = tuple(latent_shape)

    def log_prob(self, z):
        """Log p(z), (S, B, *latent_shape) -> (S, B)."""
        return torch.distributions.Normal(0.0, 2.0).log_prob(z).flatten(2).sum(2)

    def sample(self, n, generator=None):
        """Draw n latents."""
        return 2 * torch.randn(n, *self.latent_shape, generator=generator)
'''


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
def test_the_wheel_with_a_part_that_is_two_files_trains_and_answers_from_an_empty_folder(installed, tmp_path):
    def run(*command: str | Path) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        environment["MPLBACKEND"] = "of a notebook"  # which may hand on what matplotlib does not know here
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    (package,) = installed.parent.glob("lib/*/site-packages/vae_lab")
    (package / "models/wide.py").write_text(CLASS)
    (package / "conf/prior/wide.yaml").write_text("# p(z) = N(0, 4 I).\n_target_: vae_lab.models.wide.Wide\n")
    words = [["prior=wide", *TINY, "hydra.run.dir=run"], ["eval", "run", "samples=2"]]
    script = (
        f"import sys\nfrom vae_lab.__main__ import main\nfor words in {words}:\n"
        "    sys.argv[1:] = words\n    try: main()\n    except SystemExit as stop: assert not stop.code\n"
        "import vae_lab; assert type(sys.modules['scipy.signal']) is vae_lab.Later\n"  # a second that nobody waits for
    )
    assert "test/elbo" in run(installed / "python", "-c", script).stdout
    assert "val/elbo" in (tmp_path / "run/result.json").read_text()
    assert "wide.Wide" in (tmp_path / "run/.hydra/config.yaml").read_text()
    assert re.search(r"^  prior +.*\bwide\b", run(installed / "vae-lab", "--help").stdout, re.MULTILINE)
    assert "vae-lab-eval RUN_DIR" in run(installed / "vae-lab-eval", "--help").stdout
