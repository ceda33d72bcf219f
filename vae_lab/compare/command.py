"""`vae-lab-compare`: which settings are better, over seeds, as a table in the terminal and a report in one file."""

import hashlib
import re
import shutil
import webbrowser
from pathlib import Path

from rich.console import Console

from vae_lab.compare.comparison import Comparison, compare, conclusion
from vae_lab.compare.runs import find_runs
from vae_lab.compare.table import (
    IMAGES,
    groups_table,
    images_table,
    plain,
    runs_csv,
    runs_table,
    to_markdown,
    to_terminal,
)
from vae_lab.config.arguments import read_arguments
from vae_lab.metrics.catalogue import find
from vae_lab.runs.files import durable_open
from vae_lab.runs.states import SWEEP

MAX_ROWS = 40  # groups in the terminal
USAGE = """vae-lab-compare: which settings are better, over seeds; a table here, and a report to open in a browser.

  vae-lab-compare DIR... [key=value]      sweeps, runs, or folders of them; also while they are running
  vae-lab-compare wandb=ENTITY/PROJECT[/GROUP]     runs that are online in W&B

  sort=METRIC         decides the order, such as val/mse; -METRIC: the largest first
  metrics=A,B         to show, such as val/elbo,val/mse,val/kl
  by=A,B              settings that make a group, such as model,loss.KLD_weight; folder: where a run lies
  spread=sd           what stands behind the plus-minus sign: sd, or ci: the 95 % confidence interval of the mean
  images=true         draw reconstructions, samples and traversals from the models
  max_images=12       groups that are drawn, the first ones
  data_root=DIR       where the images are now
  out=DIR             for report.html, report.md and report.csv: the sweep itself where one is given, else
                      outputs/compare/NAMES
  open=false          open the report in a browser
  wandb_view=ENTITY/PROJECT[/GROUP]   save a view there with the same columns, planes and curves

Settings may also be written --sort METRIC. Groups are runs that differ in nothing but the seed."""
DEFAULTS = {
    "sort": None,
    "metrics": None,
    "by": None,
    "spread": "sd",
    "images": True,
    "max_images": 12,
    "data_root": None,
    "out": None,
    "open": False,
    "wandb": None,
    "wandb_view": None,
}
ALLOWED = {"spread": ("sd", "ci"), "max_images": range(1, 10**6)}


def compare_runs(arguments: list[str]) -> None:
    """Compare the runs named on the command line, see `USAGE`.

    Raises:
        ValueError: if a setting is wrong.
        RunError: if there is no run, or the report cannot be written.
    """
    folders, settings = read_arguments(arguments, DEFAULTS, USAGE, ALLOWED)
    online = settings["wandb"]
    if not folders and not online:
        raise ValueError("no folder given; usage: vae-lab-compare DIR... [key=value], or --help")
    if settings["sort"] == "-":
        raise ValueError("sort must be METRIC or -METRIC, got '-'")
    by, metrics = (re.findall(r"[^\s,]+", (settings[key] or "").strip("[]()")) for key in ("by", "metrics"))
    entries, notes = find_runs(folders)
    titles = list(dict.fromkeys(entry.source for entry in entries))
    if online:
        from vae_lab.compare.wandb import online_runs

        entries += online_runs(online)
        titles.append(online)
    title, sort, spread = ", ".join(titles), settings["sort"], settings["spread"]
    comparison = compare(entries, notes, title=title, by=by, metrics=metrics, sort=sort, spread=spread)
    print_comparison(comparison)
    from vae_lab.compare.report import page  # after the table, which should not wait

    out = Path(settings["out"]) if settings["out"] else default_out(folders, online)
    path = out / "report.html"
    write(path.with_suffix(".csv"), runs_csv(comparison))
    write(path.with_suffix(".md"), markdown(comparison))
    write(path, page(comparison, home=out))
    print(f"report    {path}")
    if settings["images"] and any(group.first_run for group in comparison.groups):
        from vae_lab.compare.images import draw_groups  # imports torch, and takes longer than all the rest

        gallery = draw_groups(comparison.groups, settings["max_images"], settings["data_root"])
        write(path, page(comparison, gallery, out))
    if settings["wandb_view"]:
        from vae_lab.compare.wandb import save_view

        print(f"view      {save_view(comparison, settings['wandb_view'])}")
    if settings["open"]:
        webbrowser.open(path.resolve().as_uri())


def default_out(folders: list[Path], wandb: str | None) -> Path:
    """Where the report goes: into the one sweep that is compared, else into a folder of these folders' own."""
    if len(folders) == 1 and (folders[0] / SWEEP).is_file() and not wandb:
        return folders[0]
    names = [folder.resolve().name for folder in folders] + ([wandb] if wandb else [])
    places = repr(([str(folder.resolve()) for folder in folders], wandb))
    name = re.sub(r"[^\w.,+=@-]", "-", "+".join(names)[:60]).lstrip(".-") or "runs"
    return Path("outputs/compare") / f"{name}_{hashlib.sha256(places.encode()).hexdigest()[:6]}"


def print_comparison(comparison: Comparison) -> None:
    """Print the table of groups, the runs that are not completed, and the notes."""
    console = Console(markup=False, highlight=False, width=shutil.get_terminal_size((160, 40)).columns)
    console.print(f"{comparison.title}: {comparison.counts}", style="bold")
    table, left = to_terminal(groups_table(comparison), console, MAX_ROWS)
    console.print(table)
    more = [f"{len(comparison.groups) - MAX_ROWS} more groups"] if len(comparison.groups) > MAX_ROWS else []
    if more or left:
        console.print(f"in the report: {', '.join([*more, *left])}", style="dim")
    if (paired := images_table(comparison)).rows:
        console.print(IMAGES, style="dim")
        console.print(to_terminal(paired, console, MAX_ROWS)[0])
    if comparison.unfinished:
        unfinished = len(comparison.unfinished)
        if unfinished > MAX_ROWS:
            console.print(f"the first {MAX_ROWS} of {unfinished} runs that are not completed:", style="dim")
        console.print(to_terminal(runs_table(comparison, comparison.unfinished), console, MAX_ROWS)[0])
    for text in (conclusion(comparison), *comparison.notes):
        console.print(text)


def markdown(comparison: Comparison) -> str:
    """The table of groups, the runs that are not completed, and the notes."""
    lines = [f"# {plain(comparison.title)}", "", f"{comparison.counts}. {plain(conclusion(comparison))}", ""]
    lines += to_markdown(groups_table(comparison))
    units = ", ".join(f"`{metric}` {find(metric).unit}" for metric in comparison.shown if find(metric).unit)
    lines += ["", f"Units: {units}.", "", comparison.method, "", *(f"- {plain(note)}" for note in comparison.notes)]
    if (paired := images_table(comparison)).rows:
        lines += ["", "## Image by image", "", IMAGES, "", *to_markdown(paired)]
    if comparison.unfinished:
        lines += ["", "## Not completed", "", *to_markdown(runs_table(comparison, comparison.unfinished))]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file of the report whole or not at all."""
    with durable_open(path) as file:
        file.write(text.encode())
