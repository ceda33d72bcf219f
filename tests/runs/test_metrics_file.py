"""The lines of metrics.jsonl, written and read back."""

import json
import math

import pytest

from vae_lab.runs.metrics_file import MetricsFile, read_events

EVENTS = [{"step": 0, "train/loss": 2.5}, {"step": 4, "val/loss": None, "epoch": 1}]
DAMAGED = [
    *("gar", "5", "[]", "{}", "", "null", '{"step": "4"}', '{"step": 1e999}', '{"step": 1, "loss": {}}'),
    *('{"step": 1, "loss": true}', '{"step": 2.5}', "[" * 99999, '{"step": 1' + "0" * 9999 + "}", "\xff\0"),
]


def test_what_is_written_is_read(tmp_path, caplog):
    file = MetricsFile(tmp_path)
    for step, metrics in ((0, {"train/loss": 2.5}), (3, {"val/loss": math.inf, "epoch": 1})):
        file.append(metrics, step)
    events = read_events(tmp_path / "metrics.jsonl")
    assert [event["step"] for event in events] == [0, 3]
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert events[1]["val/loss"] == math.inf
    size = file.sync()
    file.append({"val/loss": 1.0}, 4)
    file.truncate(size)
    assert read_events(tmp_path / "metrics.jsonl") == events
    assert not caplog.records
    assert read_events(tmp_path / "none.jsonl") == []


def test_a_part_of_the_file_is_read_without_a_word_about_what_is_cut(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS) + '{"step": 5, "val/lo')
    assert read_events(path, containing='"val/') == EVENTS[1:]
    assert read_events(path, last_bytes=70) == EVENTS[1:]
    assert read_events(path, last_bytes=10**6) == EVENTS
    assert not caplog.records


@pytest.mark.fault
def test_c8_a_damaged_line_is_left_out_and_told(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    for line in DAMAGED:
        path.write_bytes(f"{json.dumps(EVENTS[0])}\n{line}\n{json.dumps(EVENTS[1])}\n".encode("latin1"))
        caplog.clear()
        assert read_events(path) == EVENTS, line
        assert f"{path}: 1 of 3 lines are damaged" in caplog.text
