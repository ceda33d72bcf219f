"""Tables, each described once: columns, cells and their marks; and what draws any of them in the terminal, as HTML and
as Markdown. The table of all runs is CSV only.
"""

import csv
import io
import math
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vae_lab.compare.comparison import Comparison, first_of
from vae_lab.compare.groups import Group, as_text, short_texts, shorten, yardstick
from vae_lab.compare.runs import Entry, image_values
from vae_lab.compare.statistics import image_difference
from vae_lab.metrics.catalogue import find, key_of

RECORD = ("trial", "seconds", "commit", "command", "images")  # of a run, in the CSV
ALWAYS = ("state", "run", "epoch")  # of a run; other columns are left out where no run has them
MAX_SIDE_BY_SIDE = 40  # groups in the table of settings
IMAGES = (
    "One run of each group, image by image. The error is that of these images, not of seeds: it says which of two "
    "models is better, not which setting."
)
STYLES = {"best": "bold", "none": "dim", "failed": "red", "running": "cyan", "preempted": "yellow",
          "interrupted": "yellow"}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column."""

    title: str
    below: str = ""  # in small letters, where there is room for it: a unit, the group of a setting
    kind: str = "text"  # place, setting, count, metric, verdict or text; all but the first metric may be left out
    largest_first: bool = False  # when a reader sorts by it
    decides: bool = False  # whether the rows are sorted by it
    is_wide: bool = False  # shown only in HTML, where there is room

    @property
    def is_number(self) -> bool:
        """Whether its cells are aligned to the right."""
        return self.kind in ("place", "count", "metric")


class Cell(NamedTuple):
    """A cell."""

    text: str
    below: str = ""  # what stands beside or below it, such as the deviation
    tip: str = ""  # more, for a reader who points at it
    value: float | str | None = None  # by which it is sorted; None comes last
    mark: str = ""  # a word of STYLES or of the style sheet
    apart: int = 0  # cells with another number are not compared with this one
    link: str | Path = ""  # where it leads, an address or a file


class Row(NamedTuple):
    """A row: its cells, its group, and its mark."""

    cells: list[Cell]
    group: Group | None = None
    mark: str = ""


class Table(NamedTuple):
    """Columns, and rows with a cell for each of them."""

    columns: list[Column]
    rows: list[Row]


# what the tables hold


def groups_table(comparison: Comparison) -> Table:
    """The groups in their order: settings, seeds, the deciding metric, the comparison with the best, other metrics."""
    groups, keys, sort = comparison.groups, comparison.keys, comparison.sort
    name, several = shorten(keys), len({metric.rpartition("/")[0] for metric in comparison.metrics}) > 1
    measured = []
    for metric in comparison.shown:
        known, digits = find(metric), decimals(groups, metric)
        title = (metric if several else key_of(metric)).replace("_", " ") + " †" * (metric in comparison.apart)
        unit = "" if known.unit == title else known.unit
        below = ({"higher": "↑ ", "lower": "↓ ", None: ""}[known.better] + unit).strip()
        column = Column(title, below, "metric", known.better == "higher", metric == sort)
        kinds = {stick: i for i, stick in enumerate(dict.fromkeys(group.yardstick(metric) for group in groups))}
        cells = []
        for group in groups:
            found, going = group.spread(metric), group.unfinished(metric)
            if not found.n:
                cells.append(Cell(f"({format_number(going.mean, digits)} so far)" if going.n else "–"))
                continue
            tip = f"{key_of(metric)}: n={found.n}, mean {found.mean:.6g} {known.unit}".rstrip()
            if found.n > 1:
                tip += f"\nsd {found.sd:.3g}, 95 % interval of the mean ±{found.ci:.3g}"
            half = found.ci if comparison.spread == "ci" else found.sd
            below = "" if math.isnan(half) else f"± {format_number(half, digits)}"
            kind = kinds[group.yardstick(metric)] if metric in comparison.apart else 0
            cells.append(Cell(format_number(found.mean, digits), below, tip, found.mean, apart=kind))
        measured.append((column, cells))
    settings = [Column(name(key), "" if name(key) == key else key.rpartition(".")[0], "setting") for key in keys]
    first, others = measured[:1], measured[1:]  # the first stands before the settings, and so stays in view
    verdict = Column("against the best", "difference ± 95 %", "verdict")
    trials = [Column("trial", kind="count")] * any(run.trial is not None for run in comparison.entries)
    columns = [Column("#", kind="place"), *(column for column, _ in first), verdict, *trials, *settings]
    columns += [Column("n", "seeds", "count"), *(column for column, _ in others)]
    rows, digits = [], decimals(groups, sort)
    for i, group in enumerate(groups):
        n, seeds = group.spread(sort).n, len({seed for seed, *_ in group.units})
        told = [Cell(str(group.number), value=group.number), *(cells[i] for _, cells in first)]
        told.append(verdict_cell(group, digits))
        if trials:
            numbers = sorted(run.trial for run in group.runs if run.trial is not None)
            told.append(Cell(first_of([str(number) for number in numbers], 3), value=min(numbers, default=None)))
        told += [Cell(group.settings[key], value=group.setting(key)) for key in keys]
        told += [Cell(str(n) if n == seeds else f"{n} of {seeds}", value=n), *(cells[i] for _, cells in others)]
        rows.append(Row(told, group, "best" if group.is_best else "" if group.values(sort) else "none"))
    return Table(columns, rows)


def verdict_cell(group: Group, digits: int) -> Cell:
    """What the comparison with the best group says, and the difference itself."""
    found = group.difference
    mark = "best" if group.is_best else "worse" if group.verdict.startswith("worse") else "same"
    if found is None or math.isnan(found.ci):
        return Cell(group.verdict, mark=mark)
    below = f"{'+' if found.mean > 0 else ''}{format_number(found.mean, digits)} ± {format_number(found.ci, digits)}"
    pairs = f"{found.n} shared seeds" if found.is_paired else "fewer than 3 shared seeds: means compared"
    tip = f"{pairs}\np = {found.p:.2g}, adjusted for the choice of the best"
    return Cell(group.verdict, below, tip, mark=mark)


def runs_table(comparison: Comparison, entries: list[Entry]) -> Table:
    """Single runs: how each is going or ended, its values, what it cost, what it was started with and its files."""
    known = [metric for metric in comparison.metrics if any(metric in entry.metrics for entry in entries)]
    digits = [decimals(comparison.groups, metric) for metric in known]
    several = len({metric.rpartition("/")[0] for metric in known}) > 1
    metrics = [Column(m if several else key_of(m), find(m).unit, "metric", is_wide=i > 1) for i, m in enumerate(known)]
    short = [Column(title, kind="count", is_wide=True) for title in ("group", "seed", "trial")]
    cost = [Column(title, kind="count", is_wide=True) for title in ("time", "parameters")]
    long = [Column(title, is_wide=True) for title in ("pictures", "log", "settings", "commit", "command")]
    columns = [Column("state"), Column("run"), *short, Column("epoch", kind="count"), *metrics, Column("reason"), *cost]
    columns += long
    groups = {id(run): group for group in comparison.groups for run in group.runs}
    rows = []
    for entry in entries:
        group, folder, seconds = groups.get(id(entry)), entry.folder, entry.seconds
        files = [folder / name if folder and (folder / name).exists() else "" for name in ("pictures", "train.log")]
        values = zip([*(entry.value(metric) for metric in known), entry.value("parameters")], [*digits, 0], strict=True)
        *measured, size = (Cell(format_number(v, n), value=None if math.isnan(v) else v) for v, n in values)
        time = str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "–"
        cells = [Cell(entry.state, mark=entry.state), Cell(entry.name, link=folder or entry.location)]
        for value in (group.number if group else None, entry.seed, entry.trial, entry.epoch):
            cells.append(Cell("–" if value is None else as_text(value), value=value))
        cells += [*measured, Cell(entry.reason or "–"), Cell(time, value=None if time == "–" else seconds), size]
        cells += [Cell(name if file else "", link=file) for name, file in zip(("pictures", "log"), files, strict=True)]
        commit = entry.commit[:9] + "-dirty" * entry.commit.endswith("-dirty")
        told = ((group.label if group else "",) * 2, (commit, entry.commit), (entry.command,) * 2)
        cells += [Cell(text, tip=whole) for text, whole in told]
        rows.append(Row(cells, group))
    empty = {i for i in range(len(columns)) if all(row.cells[i].text in ("", "–") for row in rows)}
    return without(Table(columns, rows), {i for i in empty if columns[i].title not in ALWAYS})


def images_table(comparison: Comparison) -> Table:
    """Groups image by image, by the first run of each that has values of images: the difference from the first group.

    Only groups that can be compared in a metric, and have as many images.
    """
    rows: list[Row] = []
    read: dict[Group, tuple[Entry, dict[str, np.ndarray]]] = {}
    for group in comparison.groups:
        runs = sorted(group.completed, key=lambda run: run.seed if isinstance(run.seed, int) else math.inf)
        if first_run := next((run for run in runs if image_values(run)), None):
            read[group] = first_run, image_values(first_run)
    for metric in sorted({metric for _, found in read.values() for metric in found}):
        kinds: dict[tuple, list[Group]] = {}
        for group, (run, found) in read.items():
            if metric in found and np.isfinite(found[metric]).all():
                kinds.setdefault((yardstick(run, metric), len(found[metric])), []).append(group)
        for first, *others in kinds.values():
            for group in others:
                mean, error = image_difference(read[group][1][metric], read[first][1][metric])
                digits = max(1 - math.floor(math.log10(error)), 0) if error > 0 else 6
                text = f"{'+' if mean > 0 else ''}{format_number(mean, digits)}"
                cells = [Cell(metric), *(Cell(f"{own.number}: {read[own][0].name}") for own in (group, first))]
                cells += [Cell(text, f"± {format_number(error, digits)}", value=mean)]
                rows.append(Row([*cells, Cell(f"{len(read[group][1][metric]):,}")], group))
    heads = [Column("metric"), Column("run"), Column("minus"), Column("difference", "± standard error", "metric")]
    return Table([*heads, Column("images", kind="count")], rows)


def without(table: Table, left: set[int]) -> Table:
    """A table without the columns with these numbers."""
    kept = [i for i in range(len(table.columns)) if i not in left]
    rows = [row._replace(cells=[row.cells[i] for i in kept]) for row in table.rows]
    return Table([table.columns[i] for i in kept], rows)


def narrow(table: Table) -> Table:
    """A table without the columns that there is no room for in a terminal."""
    return without(table, {i for i, column in enumerate(table.columns) if column.is_wide})


def settings_table(comparison: Comparison) -> Table:
    """In what the groups differ: a row for each setting, a column for each group."""
    groups = comparison.groups[:MAX_SIDE_BY_SIDE]
    place = {id(run): i for i, run in enumerate(comparison.entries)}
    rows = []
    for key in dict.fromkeys([*comparison.by, *comparison.differing]):
        short = short_texts(comparison.table[key])
        values = [short[as_text(value)] for value in comparison.table[key]]
        texts = [dict.fromkeys(values[place[id(run)]] for run in group.runs) for group in groups]
        rows.append(Row([Cell(key, mark="code"), *(Cell(", ".join(own)) for own in texts)]))
    return Table([Column("setting"), *(Column(str(group.number), kind="place") for group in groups)], rows)


def decimals(groups: list[Group], metric: str) -> int:
    """Digits after the point that show the deviations of a metric with two digits."""
    found = [group.spread(metric) for group in groups if group.values(metric)]
    found = found or [going for group in groups if (going := group.unfinished(metric)).n]
    deviations = sorted(s.sd for s in found if s.sd > 0)
    if not deviations and all(s.mean.is_integer() for s in found):
        return 0
    largest = max((abs(s.mean) for s in found if s.mean), default=1.0)
    scale, digits = (deviations[len(deviations) // 2], 2) if deviations else (largest, 4)
    return min(max(digits - 1 - math.floor(math.log10(scale)), 0), 6)


def format_number(value: float, digits: int) -> str:
    """A number with a true minus sign and commas; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


# what draws them


def to_terminal(table: Table, console: Console, max_rows: int) -> tuple[RichTable, list[str]]:
    """A table that fits the console, and the titles of the columns that are left out.

    Other metrics than the first are left out from the right. Where that is not enough, the settings of a row become one
    text of several lines, so that the metric and the verdict stay in view.
    """
    table = narrow(table)
    spare = [column for column in table.columns if column.kind == "metric"][1:]
    left: list[Column] = []
    is_narrow, unlimited = False, console.options.update(width=10_000)
    while True:
        drawn = rich_table(table, left, max_rows, is_narrow)
        if is_narrow or console.measure(drawn, options=unlimited).maximum <= console.width:
            return drawn, [column.title for column in reversed(left)]
        if spare:
            left.append(spare.pop())
        else:
            is_narrow = True


def rich_table(table: Table, left: list[Column], max_rows: int, is_narrow: bool) -> RichTable:
    """A table without some columns."""
    drawn = RichTable(header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    shown = [(i, column) for i, column in enumerate(table.columns) if column not in left]
    settings = [i for i, column in shown if column.kind == "setting"] if is_narrow else []
    shown = [(i, column) for i, column in shown if i not in settings[1:]]
    for i, column in shown:
        title = "settings" if i in settings else "" if column.kind == "place" else column.title
        wraps = is_narrow and not column.is_number
        drawn.add_column(Text(title), justify="right" if column.is_number else "left", no_wrap=not wraps,
                         overflow="fold")  # fmt: skip
    for row in table.rows[:max_rows]:
        cells = []
        for i, column in shown:
            cell = row.cells[i]
            text = row.group.label if row.group and i in settings else cell.text
            text = f"{text} {cell.below}".rstrip() if column.kind == "metric" else text
            cells.append(Text(text, STYLES.get(cell.mark, "") if column.kind == "text" else ""))
        drawn.add_row(*cells, style=STYLES.get(row.mark))
    return drawn


def to_html(table: Table, css: str = "", home: Path = Path()) -> str:
    """A table of HTML that scrolls where it is too wide; by all columns but verdicts and texts a reader can sort.

    Args:
        table: to draw.
        css: its classes.
        home: the folder of the page, from which links lead.
    """
    heads, rows = [], []
    for column in table.columns:
        order = "descending" if column.largest_first else "ascending"
        title, below = escape(column.title), f"<small>{escape(column.below)}</small>" if column.below else ""
        title = title if column.kind in ("verdict", "text") else f'<button type="button">{title}</button>'
        decides = f' aria-sort="{order}"' if column.decides else ""
        css_of = f"{column.kind} {'num' * column.is_number} {'decides' * column.decides}"
        heads.append(f'<th class="{css_of}" data-first="{order}"{decides}>{title}{below}</th>')
    for row in table.rows:
        number = row.group.number if row.group else ""
        cells = "".join(html_cell(*own, number, home) for own in zip(row.cells, table.columns, strict=True))
        rows.append(f'<tr class="{row.mark}"{f" data-g={number}" if row.group else ""}>{cells}</tr>')
    body = f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{css}">{body}</table></div>'


def html_cell(cell: Cell, column: Column, number: int | str, home: Path) -> str:
    """A cell; that of a place shows the colour of its group."""
    key = f'<span class="key" data-key="{number}"></span> ' if number and column.kind == "place" else ""
    below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
    tip = f' title="{escape(cell.tip)}"' if cell.tip else ""
    value = "" if cell.value is None else escape(as_text(cell.value))
    number_css = "num" if column.is_number and column.kind != "place" else ""
    css = f"{column.kind} {number_css} {'decides' * column.decides} {cell.mark}"
    text = f"<span>{escape(cell.text)}</span>"
    if address := address_of(cell.link, home):
        text = f'<a href="{escape(address)}">{text}</a>'
    return f'<td class="{css}" data-value="{value}" data-apart="{cell.apart}"{tip}>{key}{text}{below}</td>'


def address_of(link: str | Path, home: Path) -> str:
    """Where a link leads from a page in a folder; a stranger's address is one of the web, or none."""
    if isinstance(link, str):
        return link if link.startswith("https://") else ""
    try:
        return quote(Path(os.path.relpath(link.resolve(), home.resolve())).as_posix())
    except ValueError:  # on another drive of Windows
        return link.resolve().as_uri()


def to_markdown(table: Table) -> list[str]:
    """The lines of a table of Markdown."""
    table = narrow(table)
    lines = [[plain(column.title) for column in table.columns]]
    lines.append(["---:" if column.is_number else "---" for column in table.columns])
    lines += [[plain(f"{cell.text} {cell.below}") for cell in row.cells] for row in table.rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def plain(text: str) -> str:
    """Text that is only text in Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)


def runs_csv(comparison: Comparison) -> str:
    """One row for each run, failed and unfinished ones too: its group, settings and metrics, as exactly as they are."""
    metrics = list(dict.fromkeys(key for entry in comparison.entries for key in entry.metrics))
    keys = list(dict.fromkeys([*comparison.keys, *comparison.differing]))
    number = {id(run): group.number for group in comparison.groups for run in group.runs}
    rows: list[list] = [["group", "run", "state", "reason", "epoch", "seed", *keys, *metrics, *RECORD, "location"]]
    for i, entry in enumerate(comparison.entries):
        own = [number.get(id(entry), ""), entry.name, entry.state, entry.reason, entry.epoch or ""]
        own += ["" if entry.seed is None else as_text(entry.seed), *(as_text(comparison.table[key][i]) for key in keys)]
        own += [repr(entry.metrics[m]) if m in entry.metrics else "" for m in metrics]
        record = (getattr(entry, name) for name in RECORD)
        rows.append(
            [*own, *("" if value in (None, "") or value != value else value for value in record), entry.location]
        )
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([harmless(str(text)) for text in row] for row in rows)
    return buffer.getvalue()


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula; a negative number stays one."""
    is_number = re.fullmatch(r"-(\d[\d.]*(e[-+]?\d+)?|inf)", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not is_number else text
