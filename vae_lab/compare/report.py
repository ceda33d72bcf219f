"""`report.html`: one file that needs no network and runs nothing but its own script.

Every text comes from configs and folders that may be a stranger's, and is escaped; a Content-Security-Policy allows the
script by its hash only, so that nothing else could run even so.
"""

import base64
import hashlib
import json
from datetime import datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

from vae_lab.compare.colours import colour_modes, default_mode
from vae_lab.compare.comparison import Comparison
from vae_lab.compare.curves import learning_curves
from vae_lab.compare.differences import as_text
from vae_lab.compare.effects import effects, parallel
from vae_lab.compare.planes import costs, plane
from vae_lab.compare.ranking import ranking, unfinished
from vae_lab.compare.table import conclusion, describe, method
from vae_lab.runs.files import durable_open

HERE = Path(__file__).parent
MAX_COLUMNS = 40  # groups side by side in the differences
CURVES = (
    "Thick: the mean over completed runs. Shaded: from the lowest to the highest run. Thin: single runs; dashed: "
    "unfinished."
)
PLANE = (
    "Left is a smaller KL, the rate; down is a smaller loss of the image, the distortion. Large marks are means over "
    "seeds with their standard deviation, small ones runs. No group is better in both than those on the dashed Pareto "
    "front. On a thin diagonal the ELBO is the same; it rises towards the lower left."
)
EFFECTS = "Large marks: groups. Thin lines join groups that differ in nothing else. Short bars: the mean over groups."
PARALLEL = "Each line is a group. Axes of metrics have the better end up; those that not all groups share are left out."
COSTS = "Measured while training, without validation and pictures. What else the machine did then is in it."


def write_report(comparison: Comparison, path: Path, gallery=None) -> Path:
    """Write the report and return its path.

    Args:
        comparison: what it shows.
        path: of the file.
        gallery: images of the models, see `vae_lab.compare.images`, or None.

    Raises:
        RunError: if it cannot be written.
    """
    with durable_open(path) as file:
        file.write(page(comparison, gallery).encode())
    return path


def page(comparison: Comparison, gallery=None) -> str:
    """The whole report as HTML."""
    script, style = ((HERE / name).read_text() for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = [part for part in sections(comparison, gallery) if part[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    body = "".join(f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in parts)
    title = escape(comparison.title)
    modes = colour_modes(comparison)
    mode = default_mode(comparison, modes)
    data = json.dumps({"modes": modes, "mode": mode}).replace("<", "\\u003c")
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title} · vae_lab</title><style>{style}{paints(comparison, modes[mode])}</style></head><body>"
        f'<header><div><h1>{title}</h1><p class="sub">{escape(describe(comparison))}</p>'
        f'<p class="lead">{escape(conclusion(comparison))}</p></div></header>'
        f'<nav><div class="links">{links}</div><div class="legend" id="legend">{chooser(modes, mode)}</div></nav>'
        f"<main>{body}</main>"
        f"<footer>vae_lab {escape(version('vae_lab'))}, {escape(made)}. Click groups to keep them highlighted, "
        'Escape to let go.</footer><div id="tip" role="status"></div>'
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )


def sections(comparison: Comparison, gallery) -> list[tuple[str, str, str]]:
    """The sections: an anchor, a title, the content; empty where there is nothing to show."""
    return [
        ("table", "Groups", ranking(comparison) + notes([*comparison.notes], method(comparison))),
        ("unfinished", "Not completed", unfinished(comparison)),
        ("curves", "Learning curves", panels(learning_curves(comparison), CURVES)),
        ("plane", "Rate and distortion", panels(plane(comparison), PLANE)),
        ("effects", "Effect of each setting", panels(effects(comparison), EFFECTS)),
        ("parallel", "Parallel coordinates", panels(parallel(comparison), PARALLEL, "panels wide")),
        ("images", "Images", gallery.html() if gallery else ""),
        ("time", "Time", panels(costs(comparison), COSTS)),
        ("config", "Settings", settings(comparison)),
    ]


def paints(comparison: Comparison, mode: list) -> str:
    """The rules that give each group its colour: a variable, which the script may change."""
    variables = "".join(f"--g{number}:{colour};" for _, members, colour in mode for number in members)
    rules = "".join(f".g{group.number}{{--c:var(--g{group.number})}}" for group in comparison.groups)
    return f":root{{{variables}}}{rules}"


def chooser(modes: dict, mode: str) -> str:
    """What the colours stand for."""
    if len(modes) < 2:
        return ""
    options = "".join(
        f'<option value="{escape(key, quote=True)}"{" selected" * (key == mode)}>{escape(key)}</option>'
        for key in modes
    )
    return f'<label>Colour <select id="mode">{options}</select></label>'


def notes(texts: list[str], small: str) -> str:
    """What a reader must know, and how the numbers came about."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    listed = f'<ul class="notes">{items}</ul>' if items else ""
    return f'<div style="height:14px"></div>{listed}<p class="sub">{escape(small)}</p>'


def panels(charts: list[str], text: str, css: str = "panels") -> str:
    """Charts side by side, below a line that says how to read them."""
    return f'<p>{escape(text)}</p><div class="{css}">{"".join(charts)}</div>' if charts else ""


def settings(comparison: Comparison) -> str:
    """In what the groups differ, and all that the runs share."""
    groups, keys = comparison.groups[:MAX_COLUMNS], list(dict.fromkeys([*comparison.by, *comparison.differing]))
    index = {id(entry): i for i, entry in enumerate(comparison.entries)}
    heads = "".join(
        f'<th><span class="key g{g.number}" style="background:var(--c)"></span> {g.number}</th>' for g in groups
    )
    rows = []
    for key in keys:
        cells = []
        for group in groups:
            texts = dict.fromkeys(as_text(comparison.table[key][index[id(run)]]) for run in group.runs)
            cells.append(f"<td>{escape(', '.join(texts))}</td>")
        rows.append(f'<tr><td class="code">{escape(key)}</td>{"".join(cells)}</tr>')
    differ = f'<div class="scroll"><table><thead><tr><th>setting</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
    shared = [
        (key, as_text(values[0]))
        for key, values in comparison.table.items()
        if "." in key
        and "_target_" not in key
        and len(set(map(as_text, values))) == 1
        and "${" not in as_text(values[0])
    ]
    items = "".join(f"<li>{escape(key)}={escape(text)}</li>" for key, text in shared)
    summary = f"<summary>{len(shared)} settings are the same in all runs</summary>"
    same = f'<details>{summary}<ul class="code columns">{items}</ul>'
    intro = "<p>What differs between the groups, without the seed, the machine and the loggers.</p>"
    return (
        f"{intro}{differ}</table></div>" if rows else "<p>The runs have the same settings.</p>"
    ) + f"{same}</details>"
