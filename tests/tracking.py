"""One run logged by the tracker, and what W&B's own reader finds of it."""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from vae_lab.loggers.wandb import WandbLogger

KEY = "a1" * 20
METRICS = [(step, {"val/loss": 100 / 3 - step, "val/kl": step / 7, "epoch": step // 2}) for step in range(0, 50, 5)]
CONFIG = {"seed": 0, "loss": {"KLD_weight": 1.0}, "sizes": [1, 2]}


def tracker(folder: Path, **changes) -> WandbLogger:
    """A tracker of a run folder; `changes` to its arguments."""
    arguments = {"project": "p", "entity": None, "group": "g", "job_type": "train", "tags": ["a", "b"], "name": None}
    return WandbLogger(**{"save_dir": str(folder), **arguments, "mode": "auto", "init_timeout": 15, **changes})


def log_run(folder: Path, exit_code: int = 0, metrics: list = METRICS, **changes) -> None:
    """Everything that a run tells its tracker, pictures aside."""
    run = tracker(folder, **changes)
    run.log_config(CONFIG)
    for step, values in metrics:
        run.log_metrics(values, step)
    run.summarize({"best_value": 1.25, "images_per_second": 1000})
    run.finalize("success")
    run.finish(exit_code)
    run.finish(1)  # must not change how it ended


def alone(monkeypatch, home: Path) -> None:
    """An environment without W&B's settings, with an empty home and no W&B server that could be reached by accident."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "NETRC"))]:
        monkeypatch.delenv(name)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def go_online(monkeypatch, url: str) -> None:
    """A key, and the server it is for."""
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)


def parts(folder: Path, pattern: str = "*run-*") -> list[Path]:
    """The folders that W&B made, one for each start."""
    return sorted(Path(folder).glob(f"wandb/{pattern}"))


def read_back(part: Path) -> list[dict]:
    """The records of one of them."""
    (file,) = part.glob("run-*.wandb")
    (package,) = find_spec("wandb").submodule_search_locations
    # As `wandb leet inspect` starts it, which takes a second to import the rest of W&B.
    command = [f"{package}/bin/wandb-core", "leet", "inspect", "--no-observability", "--json", "--run-file", file]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment["WANDB_CONFIG_DIR"] = os.devnull  # whatever a test has done to its home
    done = subprocess.run(
        [*command, part.parent], check=True, capture_output=True, text=True, timeout=120, env=environment
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def history(records: list[dict]) -> list[tuple[int, dict]]:
    """Step and values of every log event."""
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [(item["step"], {key: item[key] for key in item if key[0] != "_" and key != "step"}) for item in items]


def said(caplog) -> list[str]:
    """The tracker's log records, level and text."""
    return [f"{record.levelname} {record.message}" for record in caplog.records if record.name.startswith("vae_lab.")]
