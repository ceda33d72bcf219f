"""The table of a run's result, as it is printed at the end."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

UNITS = {
    "loss": "nats per image, weighted",
    "elbo": "nats per image",
    "reconstruction": "nats per image",
    "kl": "nats per image",
    "mse": "per pixel",
    "active_units": "latents",
    "clamped": "latents per image",
    "images_per_second": "images per second",
    "train_seconds": "seconds",
    "peak_memory_mb": "MB",
}
HIDDEN = ("best_value", "parameters_sha256")


def print_result(folder: Path, result: dict) -> None:
    """Print the values of `result.json` with their units and where everything lies."""
    table = Table(title=f"Result of {folder.name}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for key, value in result.items():
        if key not in HIDDEN and value is not None:
            shown = f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            table.add_row(key, shown, UNITS.get(key.rsplit("/", 1)[-1], ""))
    console = Console(soft_wrap=True, markup=False)  # folders may be called [/b]
    console.print(table)
    console.print(f"result    {folder / 'result.json'}", highlight=False, soft_wrap=True)
    if (folder / "pictures").is_dir():
        console.print(f"pictures  {folder / 'pictures'}", highlight=False, soft_wrap=True)
