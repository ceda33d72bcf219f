"""The tables of the report: the groups in their order, and the runs that are not completed."""

import math
from html import escape

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.differences import shorten
from vae_lab.compare.found import Entry
from vae_lab.compare.groups import Group
from vae_lab.compare.table import decimals, format_n, format_number
from vae_lab.compare.yardsticks import base, has_better, sign, unit

SHORT_UNITS = {
    "images per second": "images / s",
    "nats per image, weighted": "nats, weighted",
    "nats per image": "nats / image",
}


def ranking(comparison: Comparison) -> str:
    """The table of groups."""
    name = shorten(comparison.keys)
    shown = comparison.shown
    digits = {metric: decimals(comparison.groups, metric) for metric in (*shown, comparison.sort)}
    heads = [head("", "", css="rank")]
    heads += [head(name(key), "" if name(key) == key else key.rpartition(".")[0]) for key in comparison.keys]
    heads.append(head("n", "seeds", css="num"))
    heads += [metric_head(comparison, metric) for metric in shown]
    heads.insert(len(comparison.keys) + 3, "<th>against the best<small>difference ± 95 %</small></th>")
    rows = [row(comparison, group, shown, digits) for group in comparison.groups]
    body = f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="sortable">{body}</table></div>'


def head(text: str, small: str, css: str = "", first: str = "ascending") -> str:
    """The head of a column that can be sorted."""
    below = f"<small>{escape(small)}</small>" if small else ""
    label = escape(text) or '<span aria-label="place">#</span>'
    return f'<th class="{css}" data-first="{first}"><button type="button">{label}</button>{below}</th>'


def metric_head(comparison: Comparison, metric: str) -> str:
    """The head of a metric's column: with its unit, its better direction, and a mark if not all can be compared."""
    measure = SHORT_UNITS.get(unit(metric), unit(metric))
    arrow = ("↑ " if sign(metric) < 0 else "↓ ") if has_better(metric) else ""
    mark = " †" if metric in comparison.apart else ""
    stages = {other.rpartition("/")[0] for other in comparison.metrics}
    text = (metric if len(stages) > 1 else base(metric)).replace("_", " ")
    found = head(f"{text}{mark}", f"{arrow}{measure}", "num", "descending" if sign(metric) < 0 else "ascending")
    if metric == comparison.sort:
        found = found.replace("<th ", f'<th aria-sort="{"descending" if sign(metric) < 0 else "ascending"}" ', 1)
    return found


def row(comparison: Comparison, group: Group, shown: list[str], digits: dict[str, int]) -> str:
    """A group."""
    number, sort = group.number, comparison.sort
    css = "" if group.values(sort) else "none"
    css = "first" if group.is_best else css
    place = f'<span class="key g{number}" style="background:var(--c)"></span>{number}'
    cells = [f'<td class="rank" data-value="{number}">{place}</td>']
    for key in comparison.keys:
        text = escape(group.settings[key], quote=True)
        cells.append(f'<td data-value="{text}">{text}</td>')
    cells.append(f'<td class="num" data-value="{group.spread(sort).n}">{format_n(group, sort)}</td>')
    cells += [value_cell(comparison, group, metric, digits[metric]) for metric in shown]
    cells.insert(len(comparison.keys) + 3, f'<td class="verdict">{verdict(group, digits[sort])}</td>')
    return f'<tr class="{css}" data-g="{number}">{"".join(cells)}</tr>'


def value_cell(comparison: Comparison, group: Group, metric: str, digits: int) -> str:
    """Mean ± deviation; of a group without completed runs what its runs have come to so far."""
    found, going = group.spread(metric), group.unfinished(metric)
    if not found.n:
        text = f"({format_number(going.mean, digits)} so far)" if going.n else "–"
        return f'<td class="num" data-value="">{text}</td>'
    half = found.ci if comparison.spread == "ci" else found.sd
    deviation = "" if math.isnan(half) else f' <span class="pm">± {format_number(half, digits)}</span>'
    sticks = [g.yardstick(metric) for g in comparison.groups]
    apart = sticks.index(group.yardstick(metric)) if metric in comparison.apart else 0
    tip = f"{base(metric)}: n={found.n}, mean {found.mean:.6g}"
    if found.n > 1:
        tip += f"\nsd {found.sd:.3g}, 95 % interval of the mean ±{found.ci:.3g}"
    data = f'data-value="{found.mean!r}" data-apart="{apart}" data-tip="{escape(tip, quote=True)}"'
    return f'<td class="num" {data}>{format_number(found.mean, digits)}{deviation}</td>'


def verdict(group: Group, digits: int) -> str:
    """What the comparison with the best group says, and the difference itself."""
    found = group.difference
    css = "best" if group.is_best else "worse" if group.verdict.startswith("worse") else "same"
    text = f'<span class="{css}">{escape(group.verdict)}</span>'
    if found is None or math.isnan(found.ci):
        return text
    plus = "+" if found.mean > 0 else ""
    pairs = f"{found.n} shared seeds" if found.is_paired else "fewer than 3 shared seeds: means compared"
    tip = f"{pairs}\np = {found.p:.2g}, adjusted for the choice of the best"
    difference = f"{plus}{format_number(found.mean, digits)} ± {format_number(found.ci, digits)}"
    return f'<span data-tip="{escape(tip, quote=True)}">{text}<small>{difference}</small></span>'


def unfinished(comparison: Comparison) -> str:
    """The runs that are not completed, failed ones first, each with its reason and its last values."""
    entries = comparison.unfinished
    if not entries:
        return ""
    known = [m for m in comparison.metrics if any(m in entry.metrics for entry in entries)][:4]
    heads = "".join(f'<th class="num">{escape(base(metric))}</th>' for metric in known)
    rows = "".join(unfinished_row(entry, known, comparison) for entry in entries)
    table = f'<thead><tr><th>state</th><th>run</th><th class="num">epoch</th>{heads}<th>reason</th></tr></thead>'
    text = "<p>Their last values stand here and in no mean.</p>"
    return f'{text}<div class="scroll"><table>{table}<tbody>{rows}</tbody></table></div>'


def unfinished_row(entry: Entry, metrics: list[str], comparison: Comparison) -> str:
    """One run that is not completed."""
    cells = [
        f'<td><span class="state {escape(entry.state, quote=True)}">{escape(entry.state)}</span></td>',
        f'<td class="code why">{escape(entry.name)}</td><td class="num">{entry.epoch or "–"}</td>',
    ]
    for metric in metrics:
        value = entry.metrics.get(metric, math.nan)
        cells.append(f'<td class="num">{format_number(value, decimals(comparison.groups, metric))}</td>')
    return f'<tr>{"".join(cells)}<td class="why">{escape(entry.reason) or "–"}</td></tr>'
