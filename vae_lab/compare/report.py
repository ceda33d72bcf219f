"""`report.html`: one file that needs no network and runs nothing but plotly and its own script.

Every text may be a stranger's, and is escaped; a Content-Security-Policy allows the two scripts by their hashes and no
request. Plotly compiles what it draws with WebGL, parallel coordinates, from its own code alone: `unsafe-eval`.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from vae_lab.compare import figures, search
from vae_lab.compare.comparison import Comparison, conclusion
from vae_lab.compare.groups import as_text, classes
from vae_lab.compare.table import (
    IMAGES,
    MAX_SIDE_BY_SIDE,
    groups_table,
    images_table,
    runs_table,
    settings_table,
    to_html,
)

HERE = Path(__file__).parent
MAX_KEYS = 12  # settings with figures of their own
MAX_LISTED = 2000  # runs in the table of runs
CURVES = (
    "Thick: the mean over completed runs. Shaded: from the lowest to the highest run. Thin: single runs; dashed: "
    "unfinished. Dotted: the mean in training, of what is measured there. Of long runs every so many epochs are drawn."
)
PLANE = (
    "Left is a smaller KL, the rate; down is a smaller loss of the image, the distortion. Large marks are means over "
    "seeds with their standard deviation, small ones runs. No group is better in both than those on the dashed Pareto "
    "front. On a thin diagonal the ELBO is the same; it rises towards the lower left."
)
EFFECTS = "Large marks: groups. Thin lines join groups that differ in nothing else. Short bars: the mean over groups."
PARALLEL = (
    "Each line is a group. Axes of metrics have the better end up, and end where most values do; what lies "
    "beyond is drawn at the end. Those that not all groups share, and groups without one of the metrics, are left out. "
    "Drag along an axis to keep the lines that pass there, along several for those that pass all; click it to let go."
)
RUNS = "Those that are not completed come first; their last values stand here and in no mean."
SEARCH = (
    "Drawn by Optuna. In a search trials have its numbers, as in the tables. An importance is the share of the "
    "metric's variance that a setting accounts for, alone and together with others (fANOVA)."
)
SETTINGS = "What differs between the groups, without the seed, the machine and the loggers."
COSTS = "Measured while training, without validation and pictures. What else the machine did then is in it."
HINT = (
    "Point at a mark for its run and values, drag to zoom, double-click to zoom out. Click groups above or in the "
    "table to hide and show them in all figures, double-click for one alone."
)


def page(comparison: Comparison, gallery=None, home: Path = Path()) -> str:
    """The whole report as HTML, for a folder from which links lead; images are those of `vae_lab.compare.images`."""
    scripts = [get_plotlyjs(), (HERE / "report.js").read_text()]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-eval' {hashes}"
    drawn: list[go.Figure] = []
    parts = [part for part in sections(comparison, gallery, drawn, home) if part[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in parts)
    modes = figures.colour_modes(comparison)
    options = "".join(f'<option value="{escape(key, quote=True)}">{escape(key)}</option>' for key in modes)
    chooser = f'<label>Colour <select id="mode">{options}</select></label>' if len(modes) > 1 else ""
    chooser = f'<input id="filter" type="search" placeholder="Filter: words of a row" aria-label="Filter">{chooser}'
    data = f'{{"modes": {json.dumps(modes)}, "figures": [{", ".join(figure.to_json() for figure in drawn)}]}}'
    title, made = escape(comparison.title), datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · vae_lab</title><style>{(HERE / 'report.css').read_text()}</style></head><body>"
        f'<header><h1>{title}</h1><p class="sub">{escape(comparison.counts)}</p>'
        f'<p class="lead">{escape(conclusion(comparison))}</p></header>'
        f'<nav><div class="links">{links}</div><div class="legend" id="legend">{chooser}</div></nav>'
        f"<main>{body}</main><footer>vae_lab {escape(version('vae_lab'))}, {escape(made)}. {HINT}</footer>"
        f'<script type="application/json" id="data">{data.replace("<", chr(92) + "u003c")}</script>'
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )


def sections(comparison: Comparison, gallery, drawn: list[go.Figure], home: Path) -> Iterator[tuple[str, str, str]]:
    """The sections: an anchor, a title, the content, empty where there is none; figures are added to `drawn`."""
    groups, sort, keys = comparison.groups, comparison.sort, comparison.keys

    def panels(made: Iterable[go.Figure], text: str, css: str = "") -> str:
        divs = ""
        for figure in made:
            if figure.data:
                height = figure.layout.height
                divs += f'<div class="figure" data-figure="{len(drawn)}" style="height:{height}px"></div>'
                drawn.append(figure)
        return f'<p>{escape(text)}</p><div class="panels {css}">{divs}</div>' if divs else ""

    def first(of: int, most: int, what: str = "groups", how: str = "drawn") -> str:
        return f" Only the first {most} of {of} {what} are {how}." if of > most else ""

    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    listed = f'<ul class="notes">{notes}</ul>' if notes else ""
    below = f'{listed}<p class="sub">{escape(comparison.method)}</p>'
    yield "table", "Groups", to_html(groups_table(comparison), "sortable") + below

    paired = images_table(comparison)
    yield "paired", "Image by image", f"<p>{IMAGES}</p>{to_html(paired, 'sortable')}" if paired.rows else ""

    done = [entry for entry in comparison.entries if entry.is_done]
    runs = [*comparison.unfinished, *sorted(done, key=lambda run: -1 if run.trial is None else run.trial)]
    told = RUNS + first(len(runs), MAX_LISTED, "runs", "listed; all are in report.csv")
    listed = to_html(runs_table(comparison, runs[:MAX_LISTED]), "sortable", home)
    yield "runs", "Runs", f"<p>{told}</p>{listed}"

    found, left = search.figures(comparison) if sort else ([], "")
    yield "search", "Importance", panels(found, SEARCH + left) or (f"<p>{escape(left)}</p>" if left else "")

    metrics = [metric for metric in comparison.metrics if metric.startswith("val/")]
    lines = [figures.curves(comparison, metric, those) for metric in metrics for those in classes(groups, metric)]
    lines = [figure for figure in lines if any(len(trace.x) > 1 for trace in figure.data)]
    many = " Single runs are left out, because there are many." * (len(runs) > figures.MAX_RUNS)
    yield "curves", "Learning curves", panels(lines, CURVES + many + first(len(groups), figures.MAX_LINES))

    distortions = figures.distortions(comparison)
    planes = (figures.plane(comparison, metric, those) for metric in distortions for those in classes(groups, metric))
    yield "plane", "Rate and distortion", panels(planes, PLANE)

    stage = sort.rpartition("/")[0] or "val"
    wanted = [metric for metric in dict.fromkeys((sort, f"{stage}/elbo", f"{stage}/mse")) if comparison.has(metric)]
    parts = []
    for key in keys[:MAX_KEYS]:
        several = [
            figures.effect(comparison, key, metric, those)
            for metric in wanted[:2]
            for those in classes(groups, metric)
            if len({group.settings[key] for group in those if group.values(metric)}) > 1
        ]
        parts.append(f"<h3>{escape(key)}</h3>{panels(several, '')}" if several else "")
    text = EFFECTS + first(len(keys), MAX_KEYS, "settings")
    yield "effects", "Effect of each setting", f"<p>{text}</p>{''.join(parts)}" if any(parts) else ""

    yield "parallel", "Parallel coordinates", panels([figures.parallel(comparison)], PARALLEL, "wide")
    yield "images", "Images", gallery.html() if gallery else ""

    times = [figures.plane(comparison, sort, those, "train_seconds") for those in classes(groups, sort)] if sort else []
    text = COSTS + (f" Only the fastest {figures.MAX_BARS} are bars." if len(groups) > figures.MAX_BARS else "")
    yield "time", "Time", panels([*times, figures.speed(comparison)], text)

    table = settings_table(comparison)
    shared = [
        f"<li>{escape(key)}={escape(text)}</li>"
        for key, values in comparison.table.items()
        if "." in key and "_target_" not in key
        if len(texts := set(map(as_text, values))) == 1 and "${" not in (text := texts.pop())
    ]
    intro = f"{SETTINGS}{first(len(groups), MAX_SIDE_BY_SIDE, how='shown')}"
    differ = f"<p>{intro}</p>{to_html(table)}" if table.rows else "<p>The runs have the same settings.</p>"
    same = f"<summary>{len(shared)} settings are the same in all runs</summary>"
    yield "config", "Settings", f'{differ}<details>{same}<ul class="code columns">{"".join(shared)}</ul></details>'
