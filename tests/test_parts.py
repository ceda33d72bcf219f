"""A new part inside the package is one class and one YAML file: two files, and nothing else is touched."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
TINY = ["logger=none", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]


@pytest.mark.slow
def test_a_part_is_two_files(tmp_path):
    for name in ("vae_lab", "conf", "hydra_plugins"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (tmp_path / "vae_lab/models/wide.py").write_text(CLASS)
    (tmp_path / "conf/prior/wide.yaml").write_text("# p(z) = N(0, 4 I).\n_target_: vae_lab.models.wide.Wide\n")

    words = [["--help"], ["prior=wide", *TINY, "hydra.run.dir=run"], ["eval", "run", "samples=2"]]
    script = (
        f"import sys\nfrom vae_lab.__main__ import main\nfor words in {words}:\n"
        "    sys.argv[1:] = words\n    try: main()\n    except SystemExit as stop: assert not stop.code\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  prior +.*\bwide\b", done.stdout, re.MULTILINE)
    assert "wide.Wide" in (tmp_path / "run/.hydra/config.yaml").read_text()
    assert (tmp_path / "run/result.json").is_file()
    assert "test/elbo" in done.stdout
