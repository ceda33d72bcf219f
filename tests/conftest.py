"""What the tests share: real images where they exist, and small experiments composed from the real config."""

import os
import shutil
import sys
from pathlib import Path

import pytest

os.fsync = lambda descriptor: None  # milliseconds each, against the loss of power alone: kills lose no page
REPOSITORY = Path(__file__).parent.parent


# A tiny experiment: two epochs of three batches on the bundled digits, nothing on the side.
TINY = [
    "logger=none", "callbacks.gallery=null", "callbacks.summary=null", "trainer=cpu", "trainer.max_epochs=2",
    "trainer.limit_train_batches=3", "trainer.limit_val_batches=2", "dataset.batch_size=16", "model.hidden_dims=[16]",
    "latent_dim=3",
]  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests run side by side. Imported here: the process that hands out the tests needs no torch."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with real images; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("VAE_LAB_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "MNIST").is_dir() or not (folder / "cifar10_jpg").is_dir():
        pytest.skip(f"no MNIST/ and cifar10_jpg/ in {folder}")
    return folder.resolve()


@pytest.fixture
def config(tmp_path):
    """Compose the config of a tiny experiment from overrides, its run folder below tmp_path."""
    from composed import composed

    def compose_config(*overrides: str, tiny: list[str] = TINY, run_dir: str = "run"):
        return composed(*tiny, *overrides, f"run_dir={tmp_path / run_dir}")

    return compose_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of two batches, for all tests: to be read."""
    from command import TINY

    from vae_lab.__main__ import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        whole = ["trainer.limit_val_batches=1.0", "dataset.batch_size=16", f"hydra.run.dir={folder}"]
        patch.setattr(sys, "argv", ["vae-lab", *TINY, *whole])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        main()
    return folder


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy of that folder, for any change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
