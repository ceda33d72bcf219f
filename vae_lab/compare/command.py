"""`vae-lab-compare`: which settings are better, over seeds, as a table in the terminal and a report in one file."""

import hashlib
import webbrowser
from pathlib import Path
from typing import Any

from vae_lab.compare.comparison import Comparison, compare
from vae_lab.compare.found import find_runs
from vae_lab.compare.groups import first_run
from vae_lab.compare.table import print_comparison, write_csv, write_markdown
from vae_lab.config.arguments import check_choice, read_arguments
from vae_lab.runs.folder import folder_name
from vae_lab.sweep.job import JOURNAL

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
LISTS = ("metrics", "by")


def compare_runs(arguments: list[str], conf: Path) -> None:
    """Compare the runs named on the command line.

    Args:
        arguments: folders and settings; see `USAGE`.
        conf: the folder of the config groups.

    Raises:
        ValueError: if a setting is wrong.
        RunError: if there is no run, or the report cannot be written.
    """
    if "--help" in arguments or "-h" in arguments:
        print(USAGE)
        return
    folders, settings = read_arguments(plain(arguments), DEFAULTS)
    check(folders, settings)
    entries, notes = find_runs(folders)
    title = ", ".join(dict.fromkeys(entry.source for entry in entries)) or "runs"
    if settings["wandb"]:
        from vae_lab.compare.online import online_runs

        entries += online_runs(settings["wandb"])
        title = ", ".join([*([title] if folders else []), settings["wandb"]])
    comparison = compare(title, entries, settings, conf, notes)
    out = Path(settings["out"]) if settings["out"] else default_out(folders, settings["wandb"])
    print_comparison(comparison)
    write_csv(comparison, out / "report.csv")
    write_markdown(comparison, out / "report.md")
    from vae_lab.compare.report import write_report  # after the table, which should not wait

    path = write_report(comparison, out / "report.html")
    print(f"report    {path}")
    if drawn := gallery(comparison, settings):  # takes longer than all the rest
        write_report(comparison, path, drawn)
    if settings["wandb_view"]:
        from vae_lab.compare.wandb_view import save_view

        print(f"view      {save_view(comparison, settings['wandb_view'])}")
    if settings["open"]:
        webbrowser.open(path.resolve().as_uri())


def plain(arguments: list[str]) -> list[str]:
    """`--key value` and `--key=value` as `key=value`.

    Raises:
        ValueError: naming a key that is unknown or has no value.
    """
    found, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, _ = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            found.append(argument)
        elif key not in DEFAULTS:
            raise ValueError(f"there is no --{key}; see vae-lab-compare --help")
        elif equals:
            found.append(argument[2:])
        elif isinstance(DEFAULTS[key], bool) and not (rest and rest[0] in ("true", "false")):
            found.append(f"{key}=true")
        elif not rest or rest[0].startswith("--") or rest[0].partition("=")[0] in DEFAULTS:
            raise ValueError(f"--{key} needs a value")
        else:
            found.append(f"{key}={rest.pop(0)}")
    return found


def check(folders: list[Path], settings: dict[str, Any]) -> None:
    """Refuse what is not one of the values in `USAGE`, and make lists of those that are.

    Raises:
        ValueError: naming the key.
    """
    if not folders and not settings["wandb"]:
        raise ValueError("no folder given; usage: vae-lab-compare DIR... [key=value], or --help")
    for folder in folders:
        if "=" in str(folder) and not folder.exists():
            raise ValueError(f"{folder} is no setting of vae-lab-compare, and no folder; see vae-lab-compare --help")
    check_choice(settings, "spread", ("sd", "ci"))
    if settings["sort"] == "-":
        raise ValueError("sort must be METRIC or -METRIC, got '-'")
    for key in ("images", "open"):
        if not isinstance(settings[key], bool):
            raise ValueError(f"{key} must be true or false, got {settings[key]!r}")
    if type(settings["max_images"]) is not int or settings["max_images"] < 1:
        raise ValueError(f"max_images must be a number >= 1, got {settings['max_images']!r}")
    for key in LISTS:
        words = (settings[key] or "").strip("[]()").split(",")
        settings[key] = [word.strip() for word in words if word.strip()]


def default_out(folders: list[Path], wandb: str | None) -> Path:
    """Where the report goes: into the one sweep that is compared, else into a folder of these folders' own."""
    if len(folders) == 1 and (folders[0] / JOURNAL).is_file() and not wandb:
        return folders[0]
    names = [folder.resolve().name for folder in folders] + ([wandb] if wandb else [])
    places = repr(([str(folder.resolve()) for folder in folders], wandb))
    key = hashlib.sha256(places.encode()).hexdigest()[:6]
    return Path("outputs/compare") / f"{folder_name(None, '+'.join(names)[:60]) or 'runs'}_{key}"


def gallery(comparison: Comparison, settings: dict[str, Any]):
    """The images of the models, where they are wanted and a run keeps a model."""
    if not settings["images"] or not any(first_run(group) for group in comparison.groups):
        return None
    from vae_lab.compare.images import draw_groups  # imports torch, several seconds

    return draw_groups(comparison.groups, settings["max_images"], settings["data_root"])
