"""vae_lab from Python: the command line's configs and words, arrays of any size, and nothing left behind."""

import itertools
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from compared import write_run
from composed import composed
from conftest import TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

import vae_lab
from vae_lab.errors import DataError, RunError
from vae_lab.objectives.elbo import ELBO

SMALL = [*TINY, "trainer.max_epochs=1", "trainer.limit_val_batches=1.0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run of a conditional model."""
    folder = tmp_path_factory.mktemp("api") / "run"
    return vae_lab.train([*SMALL, "model.conditional=true", f"run_dir={folder}"])


def test_public_names_come_without_torch_and_work_whatever_was_imported_before():
    script = (
        "import sys, vae_lab; assert 'hydra' not in sys.modules; vae_lab.compose(['latent_dim=2'])\n"
        "assert set(vae_lab.__all__) <= {n for n in vae_lab.__all__ if callable(getattr(vae_lab, n))}\n"
        "import vae_lab.compare.runs, vae_lab.compare as room; assert callable(vae_lab.compare) and room.runs\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_module_for_later_is_imported_when_something_in_it_is_wanted(monkeypatch):
    later = vae_lab.Later("colorsys", hamming=None)
    monkeypatch.setitem(sys.modules, "colorsys", later)
    assert find_spec("colorsys")
    assert not hasattr(later, "__file__")
    assert later.hamming is None
    assert sys.modules["colorsys"] is later
    from colorsys import rgb_to_hsv

    assert sys.modules["colorsys"].rgb_to_hsv is rgb_to_hsv is later.rgb_to_hsv
    assert sys.modules["colorsys"] is not later
    assert later.__file__
    assert pickle.loads(pickle.dumps(later)) is sys.modules["colorsys"]
    with pytest.raises(AttributeError, match="no_such"):
        _ = later.no_such
    monkeypatch.setitem(sys.modules, "colorsys", vae_lab.Later("colorsys"))
    everything: dict = {}
    exec("from colorsys import *", everything)
    assert "rgb_to_hsv" in everything


def test_a_config_is_that_of_the_command_line():
    overrides = ["model=conv", "latent_dim=3", "~callbacks.summary", "+logger.own=null", "hydra.run.dir=here"]
    cfg = vae_lab.compose(overrides)
    assert (cfg.overrides, cfg.run_dir) == (overrides, str(Path("here").absolute()))
    more = {"run_dir": cfg.run_dir, "overrides": overrides}
    assert OmegaConf.to_container(cfg) == OmegaConf.to_container(composed(*overrides)) | more
    assert vae_lab.compose().run_dir is None
    assert vae_lab.compose(["run_dir=there"]).run_dir == "there"


REFUSED = {
    "modl=conv": "there is no key modl; did you mean model?",
    "model=com": "there is no model=com (options of model: conv,",
    "latent_dim=1,2": "a sweep over several values needs -m",
    "--multirun": "--multirun is a flag of the command line; give key=value and group=option",
    "logger.api_key=abcdefgh": "looks like a secret",
    "resume=auto": "resume=auto needs the run's folder",
    "latent_dim=-1": "latent_dim must be a whole number >= 1, got -1",
    "loss.KLD_weight=-1": "loss.KLD_weight must be >= 0",
    "trainer=ddp": "trainer.strategy=ddp with trainer.devices=2 needs processes of the command's own",
}


def state() -> dict:
    """What a training could leave in a process."""
    flags = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.get_num_threads())
    logs = [logging.getLogger(name) for name in (None, "lightning.pytorch", "lightning.fabric")]
    numbers = (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))
    return {
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg, VersionBase.instance().version_base),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warnings": list(warnings.filters),
        "logging": [(log.level, list(log.handlers)) for log in logs],
        "torch": (*flags, torch.is_grad_enabled()),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.argv, sys.excepthook, Path.cwd()),
        "environment": dict(os.environ),
        "numbers": numbers,
        "threads": threading.active_count(),
    }


@pytest.mark.slow
def test_what_fails_raises_the_words_of_the_command_line_and_leaves_nothing_behind(
    tmp_path, request, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_PROCID", "3")  # of a launcher: the run is one of its own for all that
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    vae_lab.train([*SMALL, "run_dir=first"])  # imports leave their marks once
    ended = signal.signal(signal.SIGCHLD, lambda *_: None)  # as torch does where it has workers
    request.addfinalizer(lambda: signal.signal(signal.SIGCHLD, ended))
    before = state()
    for override, words in REFUSED.items():
        with pytest.raises(ValueError) as refusal:
            vae_lab.train([*SMALL, override])
        assert words in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert state() == before, override
    with pytest.raises(ValueError, match="overrides are a list of texts"):
        vae_lab.train("latent_dim=2")
    with pytest.raises(DataError, match="nowhere"):
        vae_lab.train([*SMALL, "dataset=image_folder", "dataset.root=nowhere"])
    assert not list(tmp_path.glob("outputs/2*"))  # all failed before their first step
    original = ELBO.forward

    def fails(self, vae, batch, context):
        return original(self, vae, batch, context) if context.step < 2 else 1 / 0

    with monkeypatch.context() as context:
        context.setattr(ELBO, "forward", fails)
        with pytest.raises(ZeroDivisionError):
            vae_lab.train([*SMALL, "trainer.deterministic=true", "run_dir=failed"])
    assert state() == before
    run = vae_lab.train([*SMALL, "trainer.deterministic=true", "seed=7"])
    assert state() == before
    again = vae_lab.train(vae_lab.compose([*SMALL, "seed=7"]))
    assert run.folder != again.folder
    assert run.result["parameters_sha256"] == again.result["parameters_sha256"]
    assert (run.folder.parent.parent.name, run.folder.name[8:-7]) == ("outputs", "_digits_mlp")
    assert "Result of" not in capsys.readouterr().out
    assert OmegaConf.load(run.folder / ".hydra" / "choices.yaml").model == "mlp"


@pytest.mark.slow
def test_a_run_goes_on_and_says_where_it_is(tmp_path):
    cfg = vae_lab.compose([*SMALL, f"hydra.run.dir={tmp_path / 'run'}"])
    first = vae_lab.train(cfg)
    assert (first.folder, first.result["epochs"]) == (tmp_path / "run", 1)
    with pytest.raises(RunError, match="already holds a run"):
        vae_lab.train(cfg)
    longer = vae_lab.train([f"resume={first.folder}", "trainer.max_epochs=2"])
    assert (longer.folder, longer.result["epochs"]) == (first.folder, 2)
    assert vae_lab.train([f"resume={first.folder}"]).result == longer.result
    with pytest.raises(ValueError, match="model cannot change when a run continues"):
        vae_lab.train([f"resume={first.folder}", "model=conv"])
    assert repr(longer).startswith(f"Run('{first.folder}', completed, val/elbo=-")


def test_arrays_and_tensors_of_any_size_have_the_values_that_were_recorded(run):
    batch = run.data.to_pixels(run.data.splits["val"][:])
    found = run.reconstruct(batch.x, batch.y)
    assert found.shape == batch.x.shape
    # Means of float32 over images, in batches of other sizes.
    assert float(((found - batch.x) ** 2).mean()) == pytest.approx(run.result["val/mse"], rel=1e-5)
    codes = run.encode(batch.x.numpy().astype(np.float64), batch.y.numpy())
    assert (type(codes), codes.dtype, codes.shape) == (np.ndarray, np.float32, (len(batch.x), 3))
    assert np.allclose(run.decode(codes, batch.y.numpy()), found, atol=1e-5)
    pixels = run.data.splits["val"][[0, 5]]
    assert torch.equal(run.encode(pixels.x, pixels.y), run.encode(pixels.x / 255, pixels.y[:, 0]))
    assert [len(run.decode(np.zeros((n, 3)), 4)) for n in (0, 1, 600)] == [0, 1, 600]
    assert torch.equal(run.sample(3, 1, seed=0), run.sample(3, [1, 1, 1], seed=0))
    assert run.sample(5, 1, seed=0, sampler="gaussian").shape == (5, 1, 8, 8)
    readonly = batch.x[:1].numpy()[:, :, ::-1]
    readonly.flags.writeable = False
    assert len(run.encode(readonly, 0)) == 1


def test_what_cannot_be_computed_is_refused(run):
    images, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, dtype=torch.int64)
    for call, words in (
        (lambda: run.encode(images[0], labels), r"images must have the shape \(N, 1, 8, 8\), got \(1, 8, 8\)"),
        (lambda: run.encode(images + 2, labels), r"images must be bytes, or lie in \[0, 1\], got 2 to 2"),
        (lambda: run.encode(images * float("nan"), labels), "images must be bytes"),
        (lambda: run.decode(images, labels), r"latents must have the shape \(N, 3\)"),
        (lambda: run.encode(images), "a conditional model needs labels y"),
        (lambda: run.encode(images, labels + 10), r"labels must be whole numbers >= 0 below \[10\], got \[\[10\]"),
        (lambda: run.encode(images, [1, 2, 3]), r"labels must have the shape \(2, 1\), got \(3,\)"),
        (lambda: run.sample(-1, 0), "the number of samples must be >= 0, got -1"),
        (lambda: run.sample(2, 0, sampler="best"), "sampler must be one of prior, gaussian"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_what_a_run_measured_is_a_row_for_each_step(run, monkeypatch):
    frame = run.metrics
    assert frame.index.name == "step"
    assert frame["val/elbo"].dropna().tolist() == [run.result["val/elbo"]]
    monkeypatch.setitem(sys.modules, "pandas", None)
    rows = run.metrics
    assert [row["step"] for row in rows] == frame.index.tolist()
    (found,) = vae_lab.compare(run).table
    assert (found["group"], found["n"], found["val/elbo"]) == (1, 1, run.result["val/elbo"])


def test_a_model_is_at_rest_or_trainable(run):
    rest, own = vae_lab.load_run(run.folder), vae_lab.load_run(run.folder, trainable=True)
    assert (rest.vae.training, own.vae.training) == (False, True)
    assert not any(parameter.requires_grad for parameter in rest.vae.parameters())
    loss = own.vae.decode(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64)).sum()
    loss.backward()
    own.sample(2, 0)
    assert own.vae.training
    with pytest.raises(ValueError, match="checkpoint must be best, last or one that was kept"):
        vae_lab.load_run(run.folder, "first")


@pytest.mark.slow
def test_threads_take_turns_and_closed_streams_do_not_matter(tmp_path, monkeypatch):
    refused: list[str] = []
    found, told = {}, vae_lab.compose([*SMALL, "callbacks=default", "callbacks.gallery=null", "callbacks.summary=null"])

    def work(name: str) -> None:
        cfg = told.copy()
        cfg.run_dir = str(tmp_path / name)
        found[name] = vae_lab.train(cfg).result["parameters_sha256"]
        with pytest.raises(ValueError, match="latent_dim must be a whole number >= 1"):
            vae_lab.train([*SMALL, "latent_dim=-1", f"run_dir={tmp_path / name}_refused"])
        refused.append(name)

    monkeypatch.setattr(sys, "stdin", None)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work("c")
    assert len(set(found.values())) == 1
    assert len(found) == len(refused) == 3


@pytest.mark.slow
def test_an_interruption_saves_a_checkpoint_and_reaches_the_program(tmp_path, monkeypatch):
    original, before = ELBO.forward, signal.getsignal(signal.SIGINT)

    def interrupted(self, vae, batch, context):
        if context.stage == "train" and context.step == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, vae, batch, context)

    overrides = [*SMALL, f"run_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as context:
        context.setattr(ELBO, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vae_lab.train(overrides)
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "preempted"
    assert vae_lab.train([f"resume={tmp_path / 'run'}"]).result["epochs"] == 1


def test_a_comparison_is_a_table_and_figures(tmp_path):
    for i, (weight, seed) in enumerate(itertools.product((1, 4), range(3))):
        write_run(tmp_path / str(i), seed, elbo=-100.0 - weight - seed / 10, loss__KLD_weight=weight)
    found = vae_lab.compare([tmp_path], metrics=["mse"])
    table = found.table
    assert table.columns[:6].tolist() == ["loss.KLD_weight", "n", "val/elbo", "val/elbo sd", "val/mse", "val/mse sd"]
    assert table["loss.KLD_weight"].tolist() == [1, 4]
    assert table["val/elbo"].tolist() == pytest.approx([-101.1, -104.1])
    assert table["verdict"].tolist() == ["best", "worse"]
    for figure in (found.curves(), found.curves("mse"), found.plane(), found.effect("KLD_weight"), found.speed()):
        assert figure.data
    assert str(found).startswith("6 runs in 2 groups: 6 completed. KLD_weight=1 has")
    with pytest.raises(ValueError, match="none of the runs has the metric elbow; did you mean"):
        found.curves("elbow")
