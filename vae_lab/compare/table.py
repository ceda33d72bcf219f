"""Tables, each described once: columns, cells and their marks; and what draws any of them in the terminal, as HTML, as
Markdown and as CSV.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.groups import Group, as_text, classes, is_higher_better, shorten
from vae_lab.compare.runs import Entry
from vae_lab.metrics.catalogue import find, key_of

MAX_SIDE_BY_SIDE = 40  # groups in the table of settings
STYLES = {"best": "bold", "none": "dim", "failed": "red", "running": "cyan", "preempted": "yellow",
          "interrupted": "yellow"}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column: its title, what stands below it (a unit, the group of a setting) and what it holds.

    Attributes:
        title: one or a few words.
        below: in small letters, where there is room for it.
        kind: `place`, `setting`, `count`, `metric`, `verdict` or `text`; all but the first metric may be left out.
        ascending: whether the smallest value comes first when a reader sorts by it.
        decides: whether the rows are sorted by it.
    """

    title: str
    below: str = ""
    kind: str = "text"
    ascending: bool = True
    decides: bool = False

    @property
    def is_number(self) -> bool:
        """Whether its cells are aligned to the right."""
        return self.kind in ("place", "count", "metric")


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it says.
        below: what stands beside or below it, such as the deviation.
        tip: more, for a reader who points at it.
        value: by which it is sorted; None comes last.
        mark: a word of `STYLES` or of the style sheet.
        apart: cells with another number are not compared with this one.
    """

    text: str
    below: str = ""
    tip: str = ""
    value: float | str | None = None
    mark: str = ""
    apart: int = 0


@dataclass(frozen=True)
class Row:
    """A row: its cells, the number of its group, its name where there is no room for the settings, and its mark."""

    cells: list[Cell]
    group: int | None = None
    label: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, and rows with a cell for each of them."""

    columns: list[Column]
    rows: list[Row]


# what the tables hold


def groups_table(comparison: Comparison) -> Table:
    """The groups in their order: settings, seeds, the deciding metric, the comparison with the best, other metrics."""
    name, shown = shorten(comparison.keys), comparison.shown
    digits = {metric: decimals(comparison.groups, metric) for metric in (*shown, comparison.sort)}
    stages = {metric.rpartition("/")[0] for metric in comparison.metrics}

    def metric_column(metric: str) -> Column:
        known = find(metric)
        arrow = {"higher": "↑ ", "lower": "↓ ", None: ""}[known.better]
        mark = " †" if metric in comparison.apart else ""
        title = (metric if len(stages) > 1 else key_of(metric)).replace("_", " ")
        decides = metric == comparison.sort
        unit = "" if known.unit == title else known.unit
        return Column(f"{title}{mark}", f"{arrow}{unit}".strip(), "metric", not is_higher_better(metric), decides)

    settings = [
        Column(name(key), "" if name(key) == key else key.rpartition(".")[0], "setting") for key in comparison.keys
    ]
    metrics = [metric_column(metric) for metric in shown]
    verdict = Column("against the best", "difference ± 95 %", "verdict")
    columns = [Column("#", kind="place"), *settings, Column("n", "seeds", "count"), *metrics[:1], verdict, *metrics[1:]]
    parts = {metric: classes(comparison.groups, metric) for metric in shown}
    kinds = {m: {g.number: i for i, members in enumerate(parts[m]) for g in members} for m in shown}
    rows = []
    for group in comparison.groups:
        n, seeds = group.spread(comparison.sort).n, len({seed for seed, *_ in group.units})
        cells = [value_cell(comparison, group, m, digits[m], kinds[m].get(group.number, 0)) for m in shown]
        told = [
            Cell(str(group.number), value=group.number),
            *(Cell(group.settings[key], value=comparison.setting(key, group)) for key in comparison.keys),
            Cell(str(n) if n == seeds else f"{n} of {seeds}", value=n),
            *cells[:1],
            verdict_cell(group, digits[comparison.sort]),
            *cells[1:],
        ]
        mark = "best" if group.is_best else "" if group.values(comparison.sort) else "none"
        rows.append(Row(told, group.number, group.label, mark))
    return Table(columns, rows)


def value_cell(comparison: Comparison, group: Group, metric: str, digits: int, apart: int) -> Cell:
    """Mean ± deviation; values of unfinished runs are marked, and never mixed with others."""
    found, going = group.spread(metric), group.unfinished(metric)
    if not found.n:
        return Cell(f"({format_number(going.mean, digits)} so far)" if going.n else "–")
    half = found.ci if comparison.spread == "ci" else found.sd
    tip = f"{key_of(metric)}: n={found.n}, mean {found.mean:.6g} {find(metric).unit}".rstrip()
    if found.n > 1:
        tip += f"\nsd {found.sd:.3g}, 95 % interval of the mean ±{found.ci:.3g}"
    below = "" if math.isnan(half) else f"± {format_number(half, digits)}"
    return Cell(format_number(found.mean, digits), below, tip, found.mean, apart=apart)


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


def unfinished_table(comparison: Comparison) -> Table:
    """The runs that are not completed, failed ones first, each with its reason and its last values."""
    entries = comparison.unfinished
    known = [metric for metric in comparison.metrics if any(metric in entry.metrics for entry in entries)][:2]
    digits = {metric: decimals(comparison.groups, metric) for metric in known}

    def row(entry: Entry) -> Row:
        values = [entry.metrics.get(metric, math.nan) for metric in known]
        texts = [format_number(value, digits[metric]) for metric, value in zip(known, values, strict=True)]
        epoch = str(entry.epoch or "–")
        cells = [Cell(entry.state, mark=entry.state), Cell(entry.name), Cell(epoch), *map(Cell, texts)]
        return Row([*cells, Cell(entry.reason or "–")])

    metrics = [Column(key_of(metric), kind="metric") for metric in known]
    columns = [Column("state"), Column("run"), Column("epoch", kind="count"), *metrics, Column("reason")]
    return Table(columns, [row(entry) for entry in entries])


def settings_table(comparison: Comparison) -> Table:
    """In what the groups differ: a row for each setting, a column for each group."""
    groups = comparison.groups[:MAX_SIDE_BY_SIDE]
    rows = []
    for key in dict.fromkeys([*comparison.by, *comparison.differing]):
        values = comparison.table[key]
        texts = [dict.fromkeys(as_text(values[comparison.index[id(run)]]) for run in group.runs) for group in groups]
        rows.append(Row([Cell(key, mark="code"), *(Cell(", ".join(own)) for own in texts)]))
    return Table([Column("setting"), *(Column(str(group.number), kind="place") for group in groups)], rows)


def runs_table(comparison: Comparison) -> Table:
    """One row for each run, failed and unfinished ones too: its group, settings and metrics, as exactly as they are."""
    metrics = list(dict.fromkeys(key for entry in comparison.entries for key in entry.metrics))
    keys = list(dict.fromkeys([*comparison.keys, *comparison.differing]))
    number = {id(run): group.number for group in comparison.groups for run in group.runs}
    rows = []
    for i, entry in enumerate(comparison.entries):
        own = [number.get(id(entry), ""), entry.name, entry.state, entry.reason, entry.epoch or ""]
        settings = [as_text(comparison.table[key][i]) for key in keys]
        values = [repr(entry.metrics[key]) if key in entry.metrics else "" for key in metrics]
        seed = "" if entry.seed is None else as_text(entry.seed)
        rows.append(Row([Cell(str(text)) for text in (*own, seed, *settings, *values, entry.location)]))
    names = ["group", "run", "state", "reason", "epoch", "seed", *keys, *metrics, "location"]
    return Table([Column(name) for name in names], rows)


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


# what draws them


def to_terminal(table: Table, console: Console, max_rows: int) -> tuple[RichTable, list[str]]:
    """A table that fits the console, and the titles of the columns that are left out.

    Other metrics than the first are left out from the right. Where that is not enough, the settings of a row become one
    text of several lines, so that the metric and the verdict stay in view.
    """
    columns = list(range(len(table.columns)))
    spare = [i for i in columns if table.columns[i].kind == "metric"][1:]
    drawn, unlimited = rich_table(table, columns, max_rows), console.options.update(width=10_000)
    while console.measure(drawn, options=unlimited).maximum > console.width and spare:
        columns.remove(spare.pop())
        drawn = rich_table(table, columns, max_rows)
    if console.measure(drawn, options=unlimited).maximum > console.width:
        drawn = rich_table(table, columns, max_rows, is_narrow=True)
    return drawn, [column.title for i, column in enumerate(table.columns) if i not in columns]


def rich_table(table: Table, shown: list[int], max_rows: int, is_narrow: bool = False) -> RichTable:
    """Some columns of a table."""
    drawn = RichTable(header_style="bold", pad_edge=False, box=box.SIMPLE_HEAD)
    settings = [i for i in shown if table.columns[i].kind == "setting"] if is_narrow else []
    for i in shown:
        column = table.columns[i]
        title = "settings" if i in settings else "" if column.kind == "place" else column.title
        if i not in settings[1:]:
            wraps = is_narrow and not column.is_number
            drawn.add_column(Text(title), justify="right" if column.is_number else "left", no_wrap=not wraps,
                             overflow="fold" if wraps else None)  # fmt: skip
    for row in table.rows[:max_rows]:
        cells = []
        for i in shown:
            cell, column = row.cells[i], table.columns[i]
            text = row.label if i in settings else cell.text
            text = f"{text} {cell.below}".rstrip() if column.kind == "metric" else text
            if i not in settings[1:]:
                cells.append(Text(text, STYLES.get(cell.mark, "") if column.kind == "text" else ""))
        drawn.add_row(*cells, style=STYLES.get(row.mark))
    return drawn


def to_html(table: Table, css: str = "") -> str:
    """A table of HTML that scrolls where it is too wide."""
    heads = "".join(html_head(column) for column in table.columns)
    rows = "".join(
        f'<tr class="{row.mark}"{f" data-g={row.group}" if row.group else ""}>'
        + "".join(html_cell(cell, column, row.group) for cell, column in zip(row.cells, table.columns, strict=True))
        + "</tr>"
        for row in table.rows
    )
    body = f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="{css}">{body}</table></div>'


def html_head(column: Column) -> str:
    """The head of a column; by all but verdicts and texts a reader can sort."""
    order = "ascending" if column.ascending else "descending"
    title = escape(column.title)
    if column.kind not in ("verdict", "text"):
        title = f'<button type="button">{title}</button>'
    below = f"<small>{escape(column.below)}</small>" if column.below else ""
    decides = f' aria-sort="{order}"' if column.decides else ""
    css = f"{column.kind} {'num' if column.is_number else ''}"
    return f'<th class="{css}" data-first="{order}"{decides}>{title}{below}</th>'


def html_cell(cell: Cell, column: Column, group: int | None) -> str:
    """A cell; that of a place shows the colour of its group."""
    key = f'<span class="key" data-key="{group}"></span> ' if group and column.kind == "place" else ""
    below = f"<small>{escape(cell.below)}</small>" if cell.below else ""
    tip = f' title="{escape(cell.tip, quote=True)}"' if cell.tip else ""
    value = "" if cell.value is None else escape(as_text(cell.value), quote=True)
    css = f"{column.kind} {'num' if column.is_number and column.kind != 'place' else ''} {cell.mark}"
    text = f"<span>{escape(cell.text)}</span>"
    return f'<td class="{css}" data-value="{value}" data-apart="{cell.apart}"{tip}>{key}{text}{below}</td>'


def to_markdown(table: Table) -> list[str]:
    """The lines of a table of Markdown."""
    lines = [[plain(column.title) for column in table.columns]]
    lines.append(["---:" if column.is_number else "---" for column in table.columns])
    lines += [[plain(f"{cell.text} {cell.below}") for cell in row.cells] for row in table.rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def plain(text: str) -> str:
    """Text that is only text in Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in text)


def to_csv(table: Table) -> str:
    """A table of comma-separated values."""
    buffer = io.StringIO()
    lines: list[Sequence[str]] = [[column.title for column in table.columns]]
    lines += [[cell.text for cell in row.cells] for row in table.rows]
    csv.writer(buffer, lineterminator="\n").writerows([list(map(harmless, line)) for line in lines])
    return buffer.getvalue()


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula; a negative number stays one."""
    is_number = re.fullmatch(r"-(\d[\d.]*(e[-+]?\d+)?|inf)", text)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not is_number else text
