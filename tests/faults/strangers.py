"""What a stranger can do to files that he gives away."""

import os
from pathlib import Path

import yaml

DOORS = ("resume", "eval", "export", "load_run")


class Payload:
    """Pickles to a call that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def change_config(folder: Path, change) -> None:
    """Let an attacker edit the config of a run."""
    path = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))
