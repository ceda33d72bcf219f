"""What is shown of a run fits the terminal, and belongs to the step that it is shown with."""

import io
import json
import logging
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rich.console import Console

from vae_lab.metrics.catalogue import HEADLINE
from vae_lab.runs import folder
from vae_lab.training import progress
from vae_lab.training.train import train

PROGRESS = "callbacks.progress={_target_:vae_lab.training.progress.Progress}"


def lines_of(cfg) -> list[str]:
    """The lines of `train.log` that tell of epochs, without time and name."""
    text = (Path(cfg.run_dir) / "train.log").read_text()
    return re.findall(r"vae_lab.training.progress: (epoch .*)", text)


def recorded(cfg) -> dict[str, set[str]]:
    """stage -> 'step loss' of every value in `metrics.jsonl`, as the lines show it."""
    found: dict[str, set[str]] = {"val": set(), "train": set()}
    for line in (Path(cfg.run_dir) / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for stage in found:
            if f"{stage}/loss" in row:
                found[stage].add(f"step {row['step']}  {stage}  loss {progress.short(row[f'{stage}/loss'])}")
    return found


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (["trainer.check_val_every_n_epoch=2"], ["train", "val", "train", "val"]),
        (["dataset.val_size=0"], ["train", "train", "train", "train"]),
        (["trainer.max_steps=5"], ["val", "train", "val"]),  # the end of training within an epoch is validated after it
    ],
    ids=["every second epoch", "no validation", "steps within an epoch"],
)
def test_a_line_shows_the_values_of_its_own_step(overrides, stages, config):
    cfg = config(PROGRESS, "trainer.max_epochs=4", *overrides)
    train(cfg)
    lines = lines_of(cfg)
    assert [re.search(r"  (val|train)  ", line).group(1) for line in lines] == stages
    known = recorded(cfg)
    for line, stage in zip(lines, stages, strict=True):
        assert line.partition("  ")[2].startswith(tuple(known[stage])), line
    assert all(line.startswith(f"epoch {i}/4") for i, line in enumerate(lines[:2], 1))


def test_a_line_has_the_metrics_of_the_catalogue_that_fit():
    metrics = {f"val/{key}": torch.tensor(value) for key, value in (
        ("kl", 25.14159), ("own", 1.0), ("reconstruction", 79.12), ("elbo", -104.0), ("loss", 123456.7), ("mse", 1e-5),
    )}  # fmt: skip
    full = progress.show(metrics, "val")
    assert full == "val  loss 123457  elbo -104  reconstruction 79.12  kl 25.14  mse 1.000e-05"
    assert progress.show(metrics, "val", HEADLINE) == "val  loss 123457  elbo -104  kl 25.14  mse 1.000e-05"
    assert progress.show(metrics, "val", width=54) == "val  loss 123457  elbo -104  reconstruction 79.12"
    assert progress.show(metrics, "train") == ""


def test_a_notebook_has_a_bar_in_the_output_of_the_cell_of_which_a_line_stays(config, monkeypatch, capsys):
    shown = []
    output = SimpleNamespace(update=shown.append)
    there = {"IPython": ModuleType("IPython"), "IPython.display": ModuleType("IPython.display")}
    vars(there["IPython.display"]).update(HTML=str, display=lambda html, display_id: output)
    for name, module in there.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(progress, "Console", lambda stderr: SimpleNamespace(is_terminal=False, is_jupyter=True))
    monkeypatch.setattr(folder, "Console", lambda: SimpleNamespace(is_jupyter=True))
    train(config(PROGRESS), tells=False)
    assert re.match(r'<div><progress value="\d" max="6" style=.* epoch \d/2, \d batches, 0:00:\d\d', shown[0])
    assert any("<pre>step 3  val  loss " in html for html in shown)
    assert re.fullmatch(r"<div>epoch 2/2, 6 batches, 0:00:\d\d</div>", shown[-1])
    output, errors = capsys.readouterr()
    assert ("epoch 2/2  step 6  val" in output, errors) == (True, "")


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_has_a_bar_and_a_line_of_metrics_that_fit(width, config, monkeypatch, capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0)
    cfg = config(PROGRESS, "trainer.max_epochs=2", "trainer.limit_train_batches=20", "trainer.steps_per_execution=1")
    told = logging.getLogger("told")
    original = progress.Progress.on_train_epoch_end

    def warning(self, trainer, lit):
        told.warning("something is odd")
        original(self, trainer, lit)

    monkeypatch.setattr(progress.Progress, "on_train_epoch_end", warning)
    train(cfg)
    shown = [re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", line) for line in re.split(r"[\r\n]+", screen.getvalue())]
    assert max(map(len, shown)) <= width
    assert "epoch" not in capsys.readouterr().err
    if width == 80:
        assert any(re.match(r"epoch 2/2 .* 21/40 batches ", line) for line in shown)
        assert any(line.startswith("step 20  val  loss ") for line in shown)
        assert len([line for line in shown if line.startswith("epoch 1/2  step 20  val  loss")]) == 1
        assert len([line for line in shown if line.strip() == "something is odd"]) == 2  # above the bar, not within it
