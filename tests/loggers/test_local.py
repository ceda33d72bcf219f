"""Copies of a run's metrics and pictures, read back with other programs' readers."""

import csv
import json
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vae_lab.loggers.local import CsvLogger, TensorBoardLogger
from vae_lab.runs.measurements import MetricsLogger
from vae_lab.runs.metrics_file import MetricsFile

EVENTS = [(0, {"train/loss": 3.5, "epoch": 0}), (1, {"train/loss": 1 / 3, "epoch": 0}), (1, {"val/loss": 2.0}),
          (2, {"train/loss": float("nan"), "epoch": 1}), (2, {"val/loss": 1e-30})]  # fmt: skip


def log(folder: Path, events: list = EVENTS) -> None:
    """What the trainer does: the record first, then the copies."""
    metrics = MetricsLogger(MetricsFile(folder))
    loggers = [metrics, CsvLogger(save_dir=str(folder)), TensorBoardLogger(save_dir=str(folder))]
    for step, metrics in events:
        for logger in loggers:
            logger.log_metrics(metrics, step)
            logger.save()
    for logger in loggers:
        logger.finalize("success")


def rows(folder: Path) -> list[dict]:
    """The table, without empty cells."""
    with open(folder / "csv" / "metrics.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def record(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def scalars(folder: Path, key: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def test_the_table_has_every_row_of_the_record(tmp_path):
    log(tmp_path)
    assert repr(rows(tmp_path)) == repr([{key: float(value) for key, value in row.items()} for row in record(tmp_path)])


def test_the_table_of_a_continued_run_has_every_step_once(tmp_path):
    log(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    MetricsFile(tmp_path).truncate(len("".join(lines[:3])))  # as when a checkpoint is loaded
    log(tmp_path, EVENTS[3:])
    assert [(row["step"], "val/loss" in row) for row in rows(tmp_path)] == [
        (0, False), (1, False), (1, True), (2, False), (2, True),
    ]  # fmt: skip


def test_tensorboard_reads_what_was_written(tmp_path):
    log(tmp_path)
    assert scalars(tmp_path, "val/loss") == [(1, 2.0), (2, pytest.approx(1e-30))]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [0, 1, 2]


def test_tensorboard_shows_a_continued_run_without_the_steps_that_it_repeats(tmp_path):
    log(tmp_path, [(step, {"loss": 1.0}) for step in range(10)])
    log(tmp_path, [(step, {"loss": 2.0}) for step in range(7, 12)])
    assert [step for step, value in scalars(tmp_path, "loss") if value == 1.0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [step for step, value in scalars(tmp_path, "loss") if value == 2.0] == [7, 8, 9, 10, 11]


def test_tensorboard_gets_pictures(tmp_path):
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a.png")
    tracker = TensorBoardLogger(save_dir=str(tmp_path))
    tracker.log_picture("pictures/a", tmp_path / "a.png", 3)
    tracker.log_picture("pictures/a", tmp_path / "missing.gif", 4)
    (image,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("pictures/a")
    assert (image.step, image.width, image.height) == (3, 5, 4)
    assert image.encoded_image_string == (tmp_path / "a.png").read_bytes()


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log(tmp_path)
    assert list(tmp_path.iterdir()) == []
