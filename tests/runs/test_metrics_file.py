"""The lines of metrics.jsonl, read back."""

import json

import pytest

from vae_lab.runs.metrics_file import read_history

ROWS = [{"step": 0, "train/loss": 2.5}, {"step": 4, "val/loss": None, "epoch": 1}]
DAMAGED = [
    "gar",
    "5",
    "[]",
    "{}",
    "",
    "null",
    '{"step": "4"}',
    '{"step": 1e999}',
    '{"step": 1, "loss": {}}',
    "[" * 99999,
]


def test_what_is_written_is_read(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_history(tmp_path / "metrics.jsonl") == ROWS
    assert not caplog.records


@pytest.mark.fault
@pytest.mark.parametrize("line", [*DAMAGED, '{"step": 1' + "0" * 9999 + "}", "\xff\0"])
def test_c8_a_damaged_line_is_left_out_and_told(line, tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{json.dumps(ROWS[0])}\n{line}\n{json.dumps(ROWS[1])}\n".encode("latin1"))
    assert read_history(path) == ROWS
    assert f"{path}: 1 of 3 lines are damaged" in caplog.text
