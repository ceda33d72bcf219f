"""What is printed at the end of a run or an evaluation."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vae_lab.metrics.catalogue import find

HIDDEN = ("best_value", "parameters_sha256", "warnings")  # which are for programs, or were told


def print_result(folder: Path, result: dict, commands: Sequence[str] = ()) -> None:
    """Print values with their units, where everything lies, and what to type next.

    Args:
        folder: the run folder.
        result: what `result.json` says, or the part that is new.
        commands: arguments of `vae-lab` that go on from here.
    """
    table = Table(title=f"Result of {folder.name}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for key, value in result.items():
        if key not in HIDDEN and value is not None:
            shown = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            table.add_row(key, shown, find(key).unit)
    console = Console(soft_wrap=True, markup=False, highlight=False)  # folders may be called [/b]
    console.print(table)
    lines = [f"run      {nearby(folder)}"]
    if (picture := folder / "pictures" / "training.gif").is_file():
        lines.append(f"picture  {nearby(picture)}")
    lines += [f"next     {program()} {command}" for command in commands]
    for line in lines:
        console.print(line, soft_wrap=True)


def next_commands(folder: Path, trainer: DictConfig) -> list[str]:
    """What to type after a run: measure it on the test split, train it for twice as long."""
    limit = next((key for key in ("max_steps", "max_epochs") if trainer[key] not in (None, -1)), None)
    longer = f" trainer.{limit}={2 * trainer[limit]}" if limit else ""
    here = nearby(folder)
    return [shlex.join(["eval", here]), shlex.join([f"resume={here}"]) + longer]


def nearby(path: Path) -> str:
    """A path as one would type it from here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def program() -> str:
    """How this program is called here, also where its environment is not activated."""
    return "vae-lab" if shutil.which("vae-lab") else f"{os.path.relpath(sys.executable)} -m vae_lab"
