"""Tables, each described once: columns, cells and their marks; and what draws any of them in the terminal, as HTML and
as Markdown. The table of all runs is CSV only.
"""

import csv
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
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

RECORD = ("trial", "seconds", "commit", "command", "machine", "images")  # of a run, in the CSV
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


# what the tables hold: of each column, what it is and how its cells are made


def groups_table(comparison: Comparison) -> Table:
    """The groups in their order: settings, seeds, the deciding metric, the comparison with the best, other metrics."""
    groups, sort = comparison.groups, comparison.sort
    name, digits = shorten(comparison.keys), decimals(groups, sort)
    measured = [metric_column(comparison, metric) for metric in comparison.shown]

    def trial(group: Group) -> Cell:
        numbers = sorted(run.trial for run in group.runs if run.trial is not None)
        return Cell(first_of([str(number) for number in numbers], 3), value=min(numbers, default=None))

    def setting(key: str, group: Group) -> Cell:
        return Cell(group.settings[key], value=group.setting(key))

    def seeds(group: Group) -> Cell:
        n, started = group.spread(sort).n, len({seed for seed, *_ in group.units})
        return Cell(str(n) if n == started else f"{n} of {started}", value=n)

    described: list[tuple[Column, Callable[[Group], Cell]]] = [
        (Column("#", kind="place"), lambda group: Cell(str(group.number), value=group.number)),
        *measured[:1],  # stands before the settings, and so stays in view
        (Column("against the best", "difference ± 95 %", "verdict"), lambda group: verdict_cell(group, digits)),
    ]
    if any(run.trial is not None for run in comparison.entries):
        described.append((Column("trial", kind="count"), trial))
    for key in comparison.keys:
        column = Column(name(key), "" if name(key) == key else key.rpartition(".")[0], "setting")
        described.append((column, partial(setting, key)))
    described += [(Column("n", "seeds", "count"), seeds), *measured[1:]]
    marks = ["best" if group.is_best else "" if group.values(sort) else "none" for group in groups]
    rows = [Row([make(g) for _, make in described], g, mark) for g, mark in zip(groups, marks, strict=True)]
    return Table([column for column, _ in described], rows)


def metric_column(comparison: Comparison, metric: str) -> tuple[Column, Callable[[Group], Cell]]:
    """The means of the groups in a metric, with their deviations."""
    groups, known, digits = comparison.groups, find(metric), decimals(comparison.groups, metric)
    title = comparison.title_of(metric).replace("_", " ") + "\N{NO-BREAK SPACE}†" * (metric in comparison.apart)
    arrow, unit = {"higher": "↑ ", "lower": "↓ ", None: ""}[known.better], "" if known.unit == title else known.unit
    column = Column(title, f"{arrow}{unit}".strip(), "metric", known.better == "higher", metric == comparison.sort)
    kinds = list(dict.fromkeys(group.yardstick(metric) for group in groups))

    def make(group: Group) -> Cell:
        found, going = group.spread(metric), group.unfinished(metric)
        if not found.n:
            return Cell(f"({format_number(going.mean, digits)} so far)" if going.n else "–")
        tip = f"{key_of(metric)}: n={found.n}, mean {found.mean:.6g} {known.unit}".rstrip()
        if found.n > 1:
            tip += f"\nsd {found.sd:.3g}, 95 % interval of the mean ±{found.ci:.3g}"
        half = found.ci if comparison.spread == "ci" else found.sd
        below = "" if math.isnan(half) else f"± {format_number(half, digits)}"
        kind = kinds.index(group.yardstick(metric)) if metric in comparison.apart else 0
        return Cell(format_number(found.mean, digits), below, tip, found.mean, apart=kind)

    return column, make


def verdict_cell(group: Group, digits: int) -> Cell:
    """What the comparison with the best group says, and the difference itself."""
    found = group.difference
    mark = "best" if group.is_best else "worse" if group.verdict.startswith("worse") else "same"
    if found is None or math.isnan(found.ci):
        return Cell(group.verdict, mark=mark)
    below = f"{'+' if found.mean > 0 else ''}{format_number(found.mean, digits)} ± {format_number(found.ci, digits)}"
    pairs = f"{found.n} shared seeds" if found.is_paired else "fewer than 3 shared seeds: means compared"
    return Cell(group.verdict, below, f"{pairs}\np = {found.p:.2g}, adjusted for the choice of the best", mark=mark)


def runs_table(comparison: Comparison, entries: list[Entry]) -> Table:
    """Single runs: how each is going or ended, its values, what it cost, what it was started with and its files."""
    groups = {id(run): group for group in comparison.groups for run in group.runs}
    known = [metric for metric in comparison.metrics if any(metric in entry.metrics for entry in entries)]
    wide, count = partial(Column, is_wide=True), partial(Column, kind="count", is_wide=True)

    def number(metric: str, digits: int, run: Entry) -> Cell:
        value = run.value(metric)
        return Cell(format_number(value, digits), value=None if math.isnan(value) else value)

    def fact(value: Any, write: Callable[[Any], str] = as_text) -> Cell:
        return Cell("–" if value is None else write(value), value=value)

    def file(run: Entry, text: str, name: str) -> Cell:
        return Cell(text, link=run.folder / name) if run.folder and (run.folder / name).exists() else Cell("")

    described: list[tuple[Column, Callable[[Entry], Cell]]] = [
        (Column("state"), lambda run: Cell(run.state, mark=run.state)),
        (Column("run"), lambda run: Cell(run.name, link=run.folder or run.location)),
        (count("group"), lambda run: fact(groups[id(run)].number if id(run) in groups else None)),
        (count("seed"), lambda run: fact(run.seed)),
        (count("trial"), lambda run: fact(run.trial)),
        (Column("epoch", kind="count"), lambda run: fact(run.epoch)),
        *((Column(comparison.title_of(metric, known), find(metric).unit, "metric", is_wide=i > 1),
           partial(number, metric, decimals(comparison.groups, metric))) for i, metric in enumerate(known)),
        (Column("reason"), lambda run: Cell(run.reason or "–")),
        (count("time"), lambda run: fact(run.seconds, lambda value: str(timedelta(seconds=round(value))))),
        (count("parameters"), partial(number, "parameters", 0)),
        (wide("pictures"), lambda run: file(run, "pictures", "pictures")),
        (wide("log"), lambda run: file(run, "log", "train.log")),
        (wide("settings"), lambda run: Cell(label := groups[id(run)].label if id(run) in groups else "", tip=label)),
        (wide("commit"), lambda run: Cell(run.commit[:9] + "-dirty" * run.commit.endswith("-dirty"), tip=run.commit)),
        (wide("machine"), lambda run: Cell(run.machine.partition(": ")[0], tip=run.machine)),
        (wide("command"), lambda run: Cell(run.command, tip=run.command)),
    ]  # fmt: skip
    rows = [Row([make(run) for _, make in described], groups.get(id(run))) for run in entries]
    kept = [i for i, (column, _) in enumerate(described)
            if column.title in ALWAYS or any(row.cells[i].text not in ("", "–") for row in rows)]  # fmt: skip
    return some_columns(Table([column for column, _ in described], rows), kept)


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


def some_columns(table: Table, kept: list[int]) -> Table:
    """A table of the columns with these numbers."""
    rows = [row._replace(cells=[row.cells[i] for i in kept]) for row in table.rows]
    return Table([table.columns[i] for i in kept], rows)


def narrow(table: Table) -> Table:
    """A table without the columns that there is no room for in a terminal."""
    return some_columns(table, [i for i, column in enumerate(table.columns) if not column.is_wide])


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
    return Table([Column("setting"), *(Column(str(group.number)) for group in groups)], rows)


def decimals(groups: list[Group], metric: str) -> int:
    """Digits after the point that show the deviations of a metric with two digits."""
    found = [group.spread(metric) for group in groups if group.values(metric)]
    found = found or [going for group in groups if (going := group.unfinished(metric)).n]
    deviations = sorted(s.sd for s in found if s.sd > 0)
    if not deviations and all(s.mean.is_integer() for s in found):
        return 0
    means = sorted(abs(s.mean) for s in found if s.mean) or [1.0]
    scale, digits = (deviations[len(deviations) // 2], 2) if deviations else (means[len(means) // 2], 4)
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
    table, left, unlimited = narrow(table), list[str](), console.options.update(width=10_000)
    while console.measure(drawn := rich_table(table, max_rows), options=unlimited).maximum > console.width:
        metrics = [i for i, column in enumerate(table.columns) if column.kind == "metric"]
        if len(metrics) < 2:
            return rich_table(table, max_rows, is_narrow=True), left
        left.insert(0, table.columns[metrics[-1]].title)
        table = some_columns(table, [i for i in range(len(table.columns)) if i != metrics[-1]])
    return drawn, left


def rich_table(table: Table, max_rows: int, is_narrow: bool = False) -> RichTable:
    """A table as it is, or with the settings in one column."""
    drawn = RichTable(header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    settings = [i for i, column in enumerate(table.columns) if column.kind == "setting"] if is_narrow else []
    shown = [(i, column) for i, column in enumerate(table.columns) if i not in settings[1:]]
    for i, column in shown:
        title = "settings" if i in settings else "" if column.kind == "place" else column.title
        drawn.add_column(Text(title), justify="right" if column.is_number else "left",
                         no_wrap=column.is_number or not is_narrow, overflow="fold")  # fmt: skip
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

    Links lead from the folder of the page, `home`.
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
        number, cells = row.group.number if row.group else "", ""
        for cell, column in zip(row.cells, table.columns, strict=True):
            key = f'<span class="key" data-key="{number}"></span> ' if number and column.kind == "place" else ""
            below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
            tip = f' title="{escape(cell.tip)}"' if cell.tip else ""
            value = "" if cell.value is None else escape(as_text(cell.value))
            align = "num" if column.is_number and column.kind != "place" else ""
            css_of = f"{column.kind} {align} {'decides' * column.decides} {cell.mark}"
            text = f"<span>{escape(cell.text)}</span>"
            if address := address_of(cell.link, home):
                text = f'<a href="{escape(address)}">{text}</a>'
            data = f'data-value="{value}" data-apart="{cell.apart}"'
            cells += f'<td class="{css_of}" {data}{tip}>{key}{text}{below}</td>'
        rows.append(f'<tr class="{row.mark}"{f" data-g={number}" if row.group else ""}>{cells}</tr>')
    body = f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="{css}">{body}</table></div>'


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
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ["group", "run", "state", "reason", "epoch", "seed", *keys, *metrics, *RECORD, "location"]
    writer.writerow(map(harmless, names))
    for i, run in enumerate(comparison.entries):
        values = [number.get(id(run)), run.name, run.state, run.reason, run.epoch or None]
        values += [
            None if run.seed is None else as_text(run.seed),
            *(as_text(comparison.table[key][i]) for key in keys),
        ]
        values += [repr(run.metrics[metric]) if metric in run.metrics else None for metric in metrics]
        values += [*(getattr(run, name) for name in RECORD), run.location]
        writer.writerow("" if value is None else harmless(str(value)) for value in values)
    return buffer.getvalue()


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula; a negative number stays one."""
    is_number = re.fullmatch(r"-(\d[\d.]*(e[-+]?\d+)?|inf)", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not is_number else text
