"""The benchmarks run, and the judgements of `benchmarks/faults.py` are those that it states."""

import copy
import json
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lab.data.batches import Batch
from vae_lab.objectives import Context

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Import one of the scripts, which import each other by their bare names."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str):
        spec = spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.slow
def test_checkpoints_measures_every_size_and_both_directions(benchmark, capsys, tmp_path):
    benchmark("checkpoints").main(["--sizes", "0.01", "0.1", "--rounds", "1", "--folder", str(tmp_path)])
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| 0")]
    assert rows == [[f" {size} ", f" {action} "] for size in ("0.01", "0.1") for action in ("save", "load")]
    assert list(tmp_path.iterdir()) == []


def test_cost_measures_in_a_process_of_its_own_and_draws(benchmark, tmp_path):
    cost = benchmark("cost")
    assert cost.forked(lambda folder: 1.5, tmp_path).seconds == 1.5
    whole = cost.forked(lambda folder: None, tmp_path)
    assert 0 < whole.seconds < 5
    assert whole.megabytes > 10
    with pytest.raises(AssertionError, match="SystemExit"):
        cost.forked(lambda folder: exit(3), tmp_path)
    lines = {name: [(1, cost.Cost(1, 2)), (10, cost.Cost(9, 3))] for name in ("one", "other")}
    cost.draw(tmp_path / "plot.png", "title", "runs", "seconds", lines, "a machine")
    assert 1_000 < (tmp_path / "plot.png").stat().st_size < 60_000


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mlp", "conv", "resnet", "gan", "vq"])
def test_the_bare_loop_has_the_losses_of_the_program(case, benchmark, tmp_path):
    throughput = benchmark("throughput")
    args = throughput.parse_arguments(["--data", str(tmp_path)])
    cfg = throughput.compose_config([*throughput.overrides(args, case, 4, positions=2), f"run_dir={tmp_path}"])
    lit = throughput.prepare(cfg).lit.train()
    vae, (x, y) = lit.vae, (torch.rand(4, *lit.vae.image_shape), None)
    batch, context, before = Batch(x, y), Context(0, 100, "train"), copy.deepcopy(vae.state_dict())
    torch.manual_seed(0)
    expected = [lit.objective(vae, batch, context)["loss"]]
    if lit.adversary is not None:
        expected.append(lit.objective.adversary_loss(vae, batch, context)["discriminator_loss"])
    after = copy.deepcopy(vae.state_dict())
    vae.load_state_dict(before)
    torch.manual_seed(0)
    torch.testing.assert_close(list(throughput.losses(vae, lit.adversary, x)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vae.state_dict(), after)  # the book, and running statistics


@pytest.mark.slow
def test_gpu_lists_its_rows_and_goes_on_after_one_that_fails(benchmark, capsys, monkeypatch, tmp_path):
    gpu = benchmark("gpu")
    assert gpu.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    for words in ("default run", "16-mixed", "kill and resume, conv", "sweep of eight", "out of memory", "compile"):
        assert any(words in line for line in listed), words

    def fail(trial):
        raise gpu.Failed("exit 1: no")

    monkeypatch.setattr(gpu, "ON_GPU", False)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    small = ["callbacks.gallery=null", "callbacks.summary=null", "model.hidden_dims=[8]"]
    monkeypatch.setitem(gpu.throughput.CASES, "mlp", small)
    rows = [row for row in gpu.ROWS if row.what in ("throughput, mlp, batch 64", "two jobs share a device")]
    late = gpu.Row("late", 1e9, 1e9, fail)
    monkeypatch.setattr(gpu, "ROWS", [gpu.Row("failing", 0, 0, fail), *rows, late])
    assert gpu.main(["--data", str(tmp_path)]) == 1
    table = capsys.readouterr().out.splitlines()[-4:]
    patterns = ["failing +FAILED .*exit 1: no", "two jobs .* skipped .*no device"]
    patterns += ["throughput.* ok .*bare [0-9]+ .*ratio vae-lab [0-9.]+", "late +not run .*time"]
    for line, pattern in zip(table, patterns, strict=True):
        assert re.match(pattern, line), line


# Programs that a fault meets; the harness must tell them apart without knowing them.
CARELESS = "import pathlib, sys; [pathlib.Path(a.split('=')[1]).touch() for a in sys.argv if 'mine.file=' in a]"
CRASHING = "raise RuntimeError('something is wrong')"
CAREFUL = 'import sys; sys.exit(f\'refused: {[a for a in sys.argv if "mine" in a or "latnt" in a]}\')'


@pytest.fixture
def trial(benchmark, tmp_path):
    """A trial of a program that is one line of Python."""
    programs = benchmark("programs")

    def make(code: str):
        (tmp_path / "program.py").write_text(code)
        program = programs.LAB._replace(target=(str(tmp_path / "program.py"),))
        return benchmark("trial").Trial(program, tmp_path / "trial", tmp_path, tmp_path)

    return make


@pytest.mark.parametrize(
    ("code", "verdict"),
    [(CARELESS, "SILENT"), (CRASHING, "failed loudly"), (CAREFUL, "survived")],
    ids=["careless", "crashing", "careful"],
)
def test_a_setting_must_be_refused_by_name(code, verdict, benchmark, trial):
    outcome = benchmark("inputs").setting(trial(code), "latnt_dim", unknown="8")
    assert outcome.verdict == verdict, outcome


@pytest.mark.parametrize(
    ("code", "words"), [(CARELESS, "EXECUTED"), (CAREFUL, "exit 1: refused")], ids=["careless", "careful"]
)
def test_what_a_stranger_wrote_must_not_be_executed(code, words, benchmark, trial):
    outcome = benchmark("inputs").target(trial(code), "builtins.open", ["+callbacks.mine.file={}"])
    assert outcome.evidence.startswith(words), outcome
    assert (outcome.verdict == "SILENT") == (code == CARELESS)


def test_pixels_are_compared_with_what_the_picture_shows(benchmark):
    inputs = benchmark("inputs")
    truth = np.full((3, 4, 4), 0.5)
    truth[:, :, 2:] = np.nan  # transparent: any one colour will do
    for background, error in ((0.0, 0.0), (1.0, 0.0), (np.linspace(0, 0.8, 8).reshape(4, 2), 0.8)):
        pixels = np.full((3, 4, 4), 0.5)
        pixels[:, :, 2:] = background
        assert inputs.largest_error(pixels, truth) == pytest.approx(error)
    assert inputs.largest_error(np.full((3, 4, 4), 0.25), truth) == pytest.approx(0.25)


@pytest.mark.slow
def test_faults_compares_the_two_programs(benchmark, monkeypatch, capsys, tmp_path):
    faults, file = benchmark("faults"), tmp_path / "outcomes.json"
    monkeypatch.setattr(faults.Trial, "run_undisturbed", lambda trial: None)  # nothing is compared with it here
    assert faults.main(["--only", "unknown key", "--json", str(file)]) == 0
    outcomes = json.loads(file.read_text())
    verdicts = {name: found["unknown key"]["verdict"] for name, found in outcomes.items()}
    assert verdicts == {"plain": "survived", "vae-lab": "survived"}
    table = capsys.readouterr().out
    assert "| **survived** | **1 of 1** | **1 of 1** |" in table
    assert "| **SILENT** | **0 of 1** | **0 of 1** |" in table
