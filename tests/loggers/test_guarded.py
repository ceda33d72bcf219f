"""A logger that fails is one warning, not the end of the run."""

import logging

import pytest
from lightning.pytorch.loggers.logger import Logger

from vae_lab.loggers.guarded import GuardedLogger
from vae_lab.loggers.local import CsvLogger, TensorBoardLogger
from vae_lab.runs.measurements import MetricsLogger
from vae_lab.runs.metrics_file import MetricsFile


class Failing(Logger):
    """Takes three things, then none."""

    name, version = "failing", ""

    def __init__(self):
        super().__init__()
        self.taken = []

    def log_hyperparams(self, *args, **kwargs):
        raise AssertionError("not called")

    def log_metrics(self, metrics, step=None):
        if len(self.taken) == 3:
            raise OSError(28, "No space left\non device")
        self.taken.append((step, metrics))

    def log_picture(self, key, path, step):
        self.taken.append((step, key, path))


def test_a_copy_gets_everything_until_it_fails_which_is_one_warning(caplog):
    caplog.set_level(logging.INFO)
    logger = Failing()
    copy = GuardedLogger("mine", logger)
    for step in range(5):
        copy.log_picture("samples", "a.png", step)
        copy.log_metrics({"loss": 1.0}, step)
        copy.save()
    copy.finalize("success")
    assert logger.taken == [(0, "samples", "a.png"), (0, {"loss": 1.0}), (1, "samples", "a.png")]
    assert [record.message for record in caplog.records] == [
        "logger.mine ends here, the run and metrics.jsonl go on: [Errno 28] No space left on device"
    ]
    assert (copy.name, copy.version) == ("failing", "")


@pytest.mark.parametrize("kind", [CsvLogger, TensorBoardLogger])
def test_a_full_disk_is_one_warning(tmp_path, caplog, kind):
    tracker = kind(save_dir=str(tmp_path))
    record, copy = MetricsLogger(MetricsFile(tmp_path)), GuardedLogger("mine", tracker)
    for step in range(4):
        if step == 2:
            tracker.path.unlink()
            tracker.path.symlink_to("/dev/full")
        for logger in (record, copy):
            logger.log_metrics({"loss": 1.0}, step)
    (warning,) = [entry.message for entry in caplog.records]
    assert "No space left on device" in warning
