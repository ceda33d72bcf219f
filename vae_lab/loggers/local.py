"""Copies of a run's metrics and pictures in its folder, for other programs: a table, and events for TensorBoard."""

import csv
import io
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from vae_lab.runs.files import durable_open
from vae_lab.runs.metrics_file import read_events


class CsvLogger(Logger):
    """Keeps `csv/metrics.csv`: `metrics.jsonl` as a table, without the times.

    It is written anew when a column is added and when a run continues, so a resumed run has every step once.

    Args:
        save_dir: the run folder.
    """

    name, version = "csv", ""

    def __init__(self, *, save_dir: str):
        super().__init__()
        self.source = Path(save_dir) / "metrics.jsonl"
        self.path = Path(save_dir) / "csv" / "metrics.csv"
        self.columns: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Store values of one step, which `metrics.jsonl` has already."""
        row = {"step": step, **metrics}
        if row.keys() <= set(self.columns):
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        rows = read_events(self.source)
        columns = list(dict.fromkeys(key for row in rows for key in row if key != "time"))
        with durable_open(self.path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.DictWriter(text, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
            text.detach()
        self.columns = columns


class TensorBoardLogger(Logger):
    """Writes `tensorboard/events.*`: metrics as scalars, PNG files as images.

    Every start writes a file of its own. It says first that the later steps of earlier files are void, so TensorBoard
    shows a continued run without what it repeats. Each event is written when it happens, without the thread that
    TensorBoard's own writer has, whose failures nobody could catch.

    Args:
        save_dir: the run folder.

    Raises:
        ValueError: if TensorBoard is not installed.
    """

    name, version = "tensorboard", ""

    def __init__(self, *, save_dir: str):
        super().__init__()
        try:
            import tensorboard.summary.writer.record_writer  # noqa: F401
            from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: F401
        except ImportError as error:
            reason = f"logger.tensorboard needs the package tensorboard ({error}): pip install tensorboard"
            raise ValueError(reason) from error
        self.folder = Path(save_dir) / "tensorboard"
        self.path: Path | None = None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is in `.hydra/`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Store values of one step."""
        self._write(step, [{"tag": key, "simple_value": value} for key, value in metrics.items()])

    @rank_zero_only
    def log_picture(self, key: str, path: str | Path, step: int) -> None:
        """Store a PNG file under a key; TensorBoard shows no GIF."""
        if Path(path).suffix == ".png":
            with Image.open(path) as image:
                content = {"width": image.width, "height": image.height}
            self._write(step, [{"tag": key, "image": content | {"encoded_image_string": Path(path).read_bytes()}}])

    def _write(self, step: int | None, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        events = [Event(wall_time=time.time(), step=step, summary=Summary(value=values))]
        if self.path is None:
            self.folder.mkdir(exist_ok=True)
            self.path = self.folder / f"events.out.tfevents.{time.time():.6f}"
            start = SessionLog(status=SessionLog.START)
            events.insert(0, Event(wall_time=time.time(), file_version="brain.Event:2"))
            events.insert(1, Event(wall_time=time.time(), step=(step or 0) + 1, session_log=start))
        with open(self.path, "ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())
