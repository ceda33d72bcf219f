"""The comparison as a table: in the terminal, as Markdown, and one row for each run as CSV."""

import csv
import io
import math
import re
import shutil
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.differences import as_text, shorten
from vae_lab.compare.found import Entry
from vae_lab.compare.groups import Group
from vae_lab.compare.statistics import Spread
from vae_lab.compare.svg import cut
from vae_lab.compare.yardsticks import UNITS, base, has_better
from vae_lab.runs.files import durable_open

MAX_ROWS = 40  # groups in the terminal
MAX_CLASSES = 3  # of groups that can be compared, in the conclusion
METHOD = (
    "Values are those of each run's best checkpoint, val/ on the images that chose it; means over seeds ± {spread}. "
    "Each group is compared with the first one by {sort}, of those that it can be compared with: by differences "
    "between runs with the same seed, or between means where fewer than 3 seeds are shared. It is called different "
    "where chance alone, and having chosen the best of them, would rarely do that (5 % for all comparisons "
    "together). What is not distinguishable may still differ; more seeds would tell. The interval of a difference is "
    "that of this one comparison (95 %)."
)
SPREADS = {"sd": "the standard deviation between seeds", "ci": "the 95 % confidence interval of the mean"}


def decimals(groups: list[Group], metric: str) -> int:
    """Digits after the point that show the deviations of a metric with two digits."""
    found = [group.spread(metric) for group in groups if group.values(metric)]
    found = found or [group.unfinished(metric) for group in groups if group.unfinished(metric).n]
    deviations = sorted(s.sd for s in found if s.sd > 0)
    if deviations:
        return min(max(1 - math.floor(math.log10(deviations[len(deviations) // 2])), 0), 6)
    if all(s.mean.is_integer() for s in found):
        return 0
    largest = max((abs(s.mean) for s in found if s.mean), default=1.0)
    return min(max(4 - 1 - math.floor(math.log10(largest)), 0), 6)


def format_number(value: float, digits: int) -> str:
    """A number with a true minus sign and commas; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def format_spread(found: Spread, digits: int, kind: str) -> str:
    """Mean ± deviation, without the deviation of a single run."""
    half = found.ci if kind == "ci" else found.sd
    text = format_number(found.mean, digits)
    return text if math.isnan(half) else f"{text} ± {format_number(half, digits)}"


def format_cell(comparison: Comparison, group: Group, metric: str, digits: int) -> str:
    """What a table says of a group in a metric; values of unfinished runs are marked, and never mixed with others."""
    if group.values(metric):
        return format_spread(group.spread(metric), digits, comparison.spread)
    going = group.unfinished(metric)
    return f"({format_number(going.mean, digits)} so far)" if going.n else "–"


def format_n(group: Group, metric: str) -> str:
    """How many seeds a mean is of, and of how many."""
    n, total = group.spread(metric).n, len({seed for seed, *_ in group.units})
    return str(n) if n == total else f"{n} of {total}"


def format_verdict(group: Group, metric: str, digits: int) -> str:
    """The verdict, with the difference that it is about."""
    found = group.difference
    if found is None or math.isnan(found.ci):
        return group.verdict
    sign = "+" if found.mean > 0 else ""
    return f"{group.verdict}, {sign}{format_number(found.mean, digits)} ± {format_number(found.ci, digits)}"


def describe(comparison: Comparison) -> str:
    """How many runs there are, in which states."""
    states = [entry.state for entry in comparison.entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
    many = len(comparison.groups)
    return f"{len(states)} run{'s' * (len(states) != 1)} in {many} group{'s' * (many != 1)}: {counts}"


def conclusion(comparison: Comparison) -> str:
    """What can be said of the best group, and of the best of those that cannot be compared with it, in sentences."""
    classes: dict = {}
    for group in comparison.ranked:
        classes.setdefault(group.yardstick(comparison.sort), []).append(group)
    if len(comparison.groups) == len(comparison.ranked) == 1:
        return "All runs are of one group; there is nothing to compare it with."
    if not classes:
        return "No run has been completed yet."
    told = [conclude(comparison.sort, members, len(classes) > 1) for members in list(classes.values())[:MAX_CLASSES]]
    return " ".join([*told, *(["..."] if len(classes) > MAX_CLASSES else [])])


def conclude(metric: str, members: list[Group], has_others: bool) -> str:
    """What can be said of the first of some groups that can be compared."""
    first, *rivals = members
    found = f"{first.label} has the {'best' if has_better(metric) else 'first'} mean {metric}"
    found += " of those that can be compared with it" if has_others else ""
    if not rivals:
        return (
            f"{first.label} can be compared with no other." if has_others else f"Only {first.label} has completed runs."
        )
    if first.spread(metric).n < 2:
        return f"{found}, but of a single seed."
    unclear = [group for group in rivals if not (group.difference and group.difference.is_distinct)]
    if not unclear:
        return f"{found}; it is different from all others."
    numbers = ", ".join(str(group.number) for group in unclear[:8]) + (", ..." if len(unclear) > 8 else "")
    return f"{found}; it is not distinguishable from {len(unclear)} of {len(rivals)} others ({numbers})."


def method(comparison: Comparison) -> str:
    """How values and verdicts came about."""
    return METHOD.format(spread=SPREADS[comparison.spread], sort=comparison.sort)


def print_comparison(comparison: Comparison) -> None:
    """Print the table of groups, the runs that are not completed, and the notes."""
    console = Console(markup=False, highlight=False, width=shutil.get_terminal_size((160, 40)).columns)
    console.print(f"{comparison.title}: {describe(comparison)}", style="bold")
    metrics = comparison.shown
    unlimited = console.options.update(width=10_000)
    while console.measure(table := group_table(comparison, metrics), options=unlimited).maximum > console.width:
        if len(metrics) == 1:
            break
        metrics = metrics[:-1]
    console.print(table)
    left = [base(metric) for metric in comparison.shown[len(metrics) :]]
    more = [f"{len(comparison.groups) - MAX_ROWS} more groups"] if len(comparison.groups) > MAX_ROWS else []
    if more or left:
        console.print(f"in the report: {', '.join([*more, *left])}", style="dim")
    for entry in comparison.unfinished[:MAX_ROWS]:
        style = "red" if entry.state == "failed" else "yellow"
        console.print(Text.assemble((entry.state, style), f"  {about(entry)}"))
    for text in (conclusion(comparison), *comparison.notes):
        console.print(text)


def group_table(comparison: Comparison, metrics: list[str]) -> Table:
    """The groups with some metrics, the deciding one first."""
    table = Table(header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    name = shorten(comparison.keys)
    table.add_column("", justify="right", style="dim")
    for key in comparison.keys:
        table.add_column(Text(name(key)), no_wrap=True)
    table.add_column("n", justify="right", no_wrap=True)
    for i, metric in enumerate(metrics):
        table.add_column(Text(header(comparison, metric)), justify="right", no_wrap=True)
        if i == 0:
            table.add_column("against the best", no_wrap=True)
    digits = {metric: decimals(comparison.groups, metric) for metric in metrics}
    for group in comparison.groups[:MAX_ROWS]:
        cells = [format_cell(comparison, group, metric, digits[metric]) for metric in metrics]
        settings = [Text(cut(group.settings[key], 28)) for key in comparison.keys]
        cells[1:1] = [group.verdict]
        style = "bold" if group.is_best else None if group.values(comparison.sort) else "dim"
        table.add_row(str(group.number), *settings, format_n(group, comparison.sort), *cells, style=style)
    return table


def header(comparison: Comparison, metric: str) -> str:
    """A column's name; a mark says that not all of its values can be compared."""
    stages = {other.rpartition("/")[0] for other in comparison.metrics}
    name = metric if len(stages) > 1 else base(metric)
    return f"{name} †" if metric in comparison.apart else name


def about(entry: Entry) -> str:
    """A run that is not completed: its name, how far it is, why."""
    values = [f"{key} {entry.metrics[key]:.4g}" for key in ("val/elbo", "val/mse") if key in entry.metrics]
    where = [f"epoch {entry.epoch}"] if entry.epoch else []
    return "  ".join([entry.name, *where, *values, *([" ".join(entry.reason.split())] if entry.reason else [])])


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one row for each run, failed and unfinished ones too: its group, settings and metrics."""
    metrics = list(dict.fromkeys(key for entry in comparison.entries for key in entry.metrics))
    keys = list(dict.fromkeys([*comparison.keys, *comparison.differing]))
    number = {id(run): group.number for group in comparison.groups for run in group.runs}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["group", "run", "state", "reason", "epoch", "seed", *map(harmless, (*keys, *metrics)), "location"])
    for i, entry in enumerate(comparison.entries):
        settings = [as_text(comparison.table[key][i]) for key in keys]
        seed = "" if entry.seed is None else as_text(entry.seed)
        row = [number.get(id(entry), ""), entry.name, entry.state, entry.reason, entry.epoch or "", seed, *settings]
        values = [repr(entry.metrics[key]) if key in entry.metrics else "" for key in metrics]
        writer.writerow([*map(harmless, row), *values, harmless(entry.location)])
    with durable_open(path) as file:
        file.write(buffer.getvalue().encode())


def harmless(text: object) -> str:
    """Text that a spreadsheet does not take for a formula; a negative number stays one."""
    text = str(text)
    is_number = re.fullmatch(r"-\d[\d.]*(e[-+]?\d+)?", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not is_number else text


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write the table of groups, the runs that are not completed, and the notes."""
    name = shorten(comparison.keys)
    heads = ["", *map(name, comparison.keys), "n", *(header(comparison, m) for m in comparison.shown)]
    ends = ["---:", *["---"] * len(comparison.keys), "---:", *["---:"] * len(comparison.shown)]
    second = len(comparison.keys) + 3  # after the deciding metric
    heads.insert(second, "against the best")
    ends.insert(second, "---")
    digits = {metric: decimals(comparison.groups, metric) for metric in (*comparison.shown, comparison.sort)}
    rows = [heads, ends]
    for group in comparison.groups:
        cells = [format_cell(comparison, group, metric, digits[metric]) for metric in comparison.shown]
        verdict = format_verdict(group, comparison.sort, digits[comparison.sort])
        settings = [group.settings[key] for key in comparison.keys]
        rows.append([str(group.number), *settings, format_n(group, comparison.sort), *cells])
        rows[-1].insert(second, verdict)
    lines = [f"# {plain(comparison.title)}", "", f"{describe(comparison)}. {plain(conclusion(comparison))}", ""]
    lines += [
        "| " + " | ".join(row if row in ("---", "---:") else plain(row) for row in cells) + " |" for cells in rows
    ]
    units = ", ".join(f"`{m}` {UNITS[base(m)]}" for m in comparison.shown if base(m) in UNITS)
    lines += ["", f"Units: {units}.", "", method(comparison), ""]
    lines += [f"- {plain(note)}" for note in comparison.notes]
    if comparison.unfinished:
        lines += ["", "## Not completed", "", *(f"- {e.state}: {plain(about(e))}" for e in comparison.unfinished)]
    with durable_open(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def plain(text: str) -> str:
    """Text that is only text in Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in text)
