"""The figures of a comparison: each is a function that gives a plotly figure, for the report and for notebooks.

    from vae_lab.compare import comparison, figures, runs

    found = comparison.compare(*runs.find_runs([Path("outputs/sweeps/first")]))
    figures.curves(found, "val/elbo").show()

A group has the same colour in all of them. Where `groups` is None, those are drawn that can be compared with the first
one. `meta` of a trace holds the number of its group, by which the report hides and colours it.
"""

import math
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import plotly.graph_objects as go

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.groups import Group, as_text, classes, is_higher_better, shorten
from vae_lab.compare.runs import Entry
from vae_lab.metrics.catalogue import find, key_of

# They can be told apart, and seen on white and on black (after Okabe and Ito 2008); further groups share a grey.
COLOURS = ("#2b83c6", "#dd8500", "#0e9f74", "#d0568f", "#8b6fc9", "#d9542b", "#28a3b8", "#9a8a1f", "#7f8c3a", "#b0653f")
RAMP = ("#6a55b0", "#4273b8", "#2b90a5", "#25a37b", "#62ad4b", "#9cab2c", "#cc9a06")  # of the values of a number
GREY = "#98a1aa"
INK = "#79828b"  # for text on white and on black; the report has an ink for each
FAINT = "rgba(128, 136, 144, 0.22)"
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0, 0, 0, 0)",
        "plot_bgcolor": "rgba(0, 0, 0, 0)",
        "xaxis": {"gridcolor": FAINT, "zeroline": False, "linecolor": FAINT, "automargin": True},
        "yaxis": {"gridcolor": FAINT, "zeroline": False, "linecolor": FAINT, "automargin": True},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "namelength": 0},
        "legend": {"groupclick": "togglegroup", "tracegroupgap": 0},
        "margin": {"l": 56, "r": 14, "t": 76, "b": 46},
        "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": GREY, "activecolor": COLOURS[0]},
        "title": {"x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container", "font": {"size": 14},
                  "pad": {"t": 12, "l": 4}},
    }
)  # fmt: skip
MAX_GROUPS = 50  # with marks and lines of their own
MAX_RUNS = 200  # that have curves of their own
MAX_POINTS = 120  # of a curve
MAX_BARS = 40
BEGIN = 0.12  # of the training, which may lie outside of the axes until a reader zooms out
WIDE = 8  # the ratio of the largest to the smallest value of a setting from which its axis is logarithmic
SHIFT = 0.16  # of an axis, over which groups with the same option are spread so that all lines show
Mode = list[tuple[str, list[int], str]]  # a name, the numbers of groups, a colour


# colours


def colour_modes(comparison: Comparison) -> dict[str, Mode]:
    """What colours can stand for, the most telling first: the groups, or the values of one setting."""
    groups = comparison.groups
    ranked = [(f"{g.number}  {g.label}", [g.number], c) for g, c in zip(groups, COLOURS, strict=False)]
    rest = [group.number for group in groups[len(COLOURS) :]]
    modes: dict[str, Mode] = {"group": ranked + ([(f"{len(rest)} more", rest, GREY)] if rest else [])}
    for key in comparison.keys:
        values = distinct(comparison, key, groups)
        if not 1 < len(values) <= 24:
            continue
        is_scale = are_numbers(values) and len(values) > 2
        shades = [RAMP[round(i / (len(values) - 1) * (len(RAMP) - 1))] for i in range(len(values))]
        colours = shades if is_scale else [*COLOURS, *[GREY] * len(values)]
        members = [[group.number for group in groups if group.settings[key] == as_text(value)] for value in values]
        modes[key] = list(zip(map(as_text, values), members, colours, strict=False))
    if not rest:
        return modes
    means: dict[int, float] = {}
    for those in classes(groups, comparison.sort):  # what cannot be compared must not count as an effect
        own = {g.number: g.spread(comparison.sort).mean for g in those if g.values(comparison.sort)}
        means |= {number: value - sum(own.values()) / len(own) for number, value in own.items()}

    def explained(key: str) -> float:
        parts = [[means[n] for n in members if n in means] for _, members, _ in modes[key]]
        return sum(sum(part) ** 2 / len(part) for part in parts if part) * (key != "group")

    first = max(modes, key=explained)
    return {first: modes[first], **modes}


def colours_of(comparison: Comparison) -> dict[int, str]:
    """The colour of every group."""
    mode = next(iter(colour_modes(comparison).values()))
    return {number: colour for _, members, colour in mode for number in members}


# figures


def curves(comparison: Comparison, metric: str, groups: list[Group] | None = None) -> go.Figure:
    """Learning curves: the mean over a group's runs, their range and every run; the mean in training is dotted.

    Args:
        comparison: of the runs.
        metric: of the validation, such as `val/elbo`; the one of the training is drawn beside it.
        groups: to draw.
    """
    groups = (groups or comparable(comparison, metric))[:MAX_GROUPS]
    colours, axes, stages = colours_of(comparison), [], []
    traces: list[dict] = []
    has_runs = sum(len(group.runs) for group in groups) <= MAX_RUNS
    seen, last = [], 0
    for stage, name in (("train", metric.replace("val/", "train/")), ("val", metric)):
        for group in groups:
            lines = [line for run in group.runs if (line := curve(run, name))]
            done = [line for line in lines if line[0].state == "completed"]
            found = []
            for run, points in lines if stage == "val" else ():
                if len(lines) > 1 and (has_runs or run.state != "completed"):
                    style = {"width": 1, "dash": "solid" if run.state == "completed" else "dash"}
                    found.append((clock([(run, points)], list(points)), list(points.values()), style,
                                   {"opacity": 0.4}, about(group, [name], run)))  # fmt: skip
                seen += points.items()
            among = done or lines[:1]
            steps = [step for step in among[0][1] if all(step in points for _, points in among)] if among else []
            if steps:
                rows = [[points[step] for _, points in among] for step in steps]
                x = clock(among, steps)
                if len(among) > 1 and len(steps) > 1 and stage == "val":
                    there = {unit: [*values, *values[::-1]] for unit, values in x.items()}
                    band = [*map(max, rows), *[min(row) for row in rows[::-1]]]
                    found.append((there, band, {"width": 0}, {"fill": "toself"}, ""))
                dash = "dot" if stage == "train" else "solid" if done else "dash"
                style = {"width": 1.4 if stage == "train" else 2.4, "dash": dash}
                count = f"mean of {len(among)} runs" if len(among) > 1 else among[0][0].name
                text = f"{about(group, [], None)}<br>{escape(count)}<br>{name} %{{y:.5g}} {find(name).unit}"
                own = {"showlegend": stage == "val", "mode": "lines" if len(steps) > 1 else "markers"}
                found.append((x, [sum(row) / len(row) for row in rows], style, own, text))
            for x, y, style, own, text in found:
                colour, is_band = colours[group.number], "fill" in own
                label = {"name": named(group), "legendgroup": str(group.number)}
                hover = {"hoverinfo": "skip"} if is_band else {"hovertemplate": f"{text}<br>%{{x}}<extra></extra>"}
                fill = {"fillcolor": f"{colour}26"} if is_band else {}
                values = [float(f"{value:.6g}") for value in y]  # of which the file has many
                look = {"mode": "lines", "showlegend": False, "line": {"color": colour, **style}} | own
                draw(traces, x=x["step"], y=values, meta={"group": group.number}, **look, **label, **hover, **fill)
                axes.append(x)
                stages.append(stage)
                last = max([last, *x["step"]])
    titles = {"step": "step", "epoch": "epoch", "time": "seconds since the start"}
    menus = [menu((unit, {"x": [x[unit] for x in axes]}, {"xaxis.title.text": title, "xaxis.autorange": True})
                  for unit, title in titles.items())]  # fmt: skip
    is_positive = all(y > 0 for trace in traces for y in trace["y"])
    menus.append(scales(True, is_positive))
    if len(set(stages)) > 1:
        is_crowded = len(groups) > len(COLOURS)
        buttons = [
            (" + ".join(those), {"visible": [stage in those for stage in stages]}, {})
            for those in (("val", "train"), ("val",), ("train",))
        ]
        menus.append(menu(buttons, active=int(is_crowded)))
        for trace, stage in zip(traces, stages, strict=True):
            trace["visible"] = stage == "val" or not is_crowded
    later = [y for x, y in seen if x > BEGIN * last] or [y for _, y in seen]
    x, y = {"title": "step"}, {"title": axis_title(metric), "range": extent(later)}
    return finish(traces, titled(comparison, metric, groups), x, y, menus)


def plane(comparison: Comparison, distortion: str, groups: list[Group] | None = None) -> go.Figure:
    """The KL, the rate, against a loss of the image, the distortion: no group is better in both than one of the front.

    Args:
        comparison: of the runs.
        distortion: such as `val/reconstruction` or `val/mse`; the rate is the KL of the same stage.
        groups: to draw.
    """
    rate = f"{distortion.rpartition('/')[0]}/kl"
    groups = [g for g in groups or comparable(comparison, distortion) if g.values(rate) and g.values(distortion)]
    done = [run for group in groups for run in group.completed if {rate, distortion} <= run.metrics.keys()]
    (x0, x1), (y0, y1) = (extent([run.metrics[key] for run in done]) for key in (rate, distortion))
    traces: list[dict] = []
    notes, room = [], {}
    if key_of(distortion) == "reconstruction":  # lines of equal ELBO, minus the sum of both axes
        step = 10 ** math.floor(math.log10((x1 + y1 - x0 - y0) / 3))
        for i in range(math.ceil((x0 + y0) / step), math.floor((x1 + y1) / step) + 1):
            value = i * step
            draw(traces, x=[x0, x1], y=[value - x0, value - x1], mode="lines", line={"color": FAINT, "width": 1},
                               showlegend=False, hovertemplate=f"elbo {-value:.6g}<extra></extra>")  # fmt: skip
            if y0 < value - x1 < y1:
                notes.append({"x": x1, "y": value - x1, "text": f"elbo {-value:.6g}", "xanchor": "left",
                              "showarrow": False, "font": {"size": 10}, "opacity": 0.7})  # fmt: skip
        room = {"r": 76}
    front = pareto([(group.spread(rate).mean, group.spread(distortion).mean) for group in groups])
    if front:
        x, y = zip((front[0][0], y1), *front, (x1, front[-1][1]), strict=True)
        draw(traces, x=x, y=y, mode="lines", name="Pareto front", hoverinfo="skip",
                           line={"shape": "hv", "dash": "dash", "width": 1.2, "color": INK})  # fmt: skip
    add_marks(traces, comparison, groups, distortion, rate)
    x, y = ({"title": axis_title(m), "range": ends} for m, ends in ((rate, (x0, x1)), (distortion, (y0, y1))))
    name = titled(comparison, distortion, groups, " against KL")
    return finish(traces, name, x, y, [scales(x0 > 0, y0 > 0)], annotations=notes, margin=room)


def effect(comparison: Comparison, key: str, metric: str, groups: list[Group] | None = None) -> go.Figure:
    """What a setting changes; thin lines join groups that differ in nothing else.

    Args:
        comparison: of the runs.
        key: the setting; one that is always a number has an axis of numbers.
        metric: that is read.
        groups: to draw.
    """
    groups = [group for group in groups or comparable(comparison, metric) if group.values(metric)]
    values = distinct(comparison, key, groups)
    is_number = are_numbers(values)

    def place(group: Group) -> Any:
        value = comparison.setting(key, group)
        return value if is_number else safe(as_text(value))

    chains: dict[tuple, list[Group]] = {}
    for group in sorted(groups, key=lambda group: values.index(comparison.setting(key, group))):
        others = tuple(value for name, value in group.settings.items() if name != key)
        chains.setdefault(others, []).append(group)
    joined = [group for chain in chains.values() if len(chain) > 1 for group in (*chain, None)]
    traces: list[dict] = []
    draw(
        traces,
        x=[group and place(group) for group in joined],
        y=[group and group.spread(metric).mean for group in joined],
        mode="lines", line={"color": GREY, "width": 1}, opacity=0.5, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    parts = [[g.spread(metric).mean for g in groups if comparison.setting(key, g) == value] for value in values]
    places = values if is_number else [safe(as_text(value)) for value in values]
    draw(
        traces, x=places, y=[sum(part) / len(part) for part in parts], mode="markers", name="mean over groups",
        marker={"symbol": "line-ew", "size": 30, "line": {"color": INK, "width": 2.5}},
        text=[f"{safe(short(f'{key}={as_text(value)}'))}<br>mean over groups" for value in values],
        hovertemplate="%{text}<br>%{y:.5g}<extra></extra>",
    )  # fmt: skip
    add_marks(traces, comparison, groups, metric, place)
    is_positive = is_number and min(values) > 0
    is_log = is_positive and max(values) >= WIDE * min(values)
    x = {"title": safe(key), "type": "log" if is_log else "linear" if is_number else "category"}
    if not is_number:
        texts = [safe(short(as_text(value), 24)) for value in values]
        x |= {"categoryorder": "array", "categoryarray": places, "range": (-0.5, len(values) - 0.5),
              "tickvals": list(range(len(values))), "ticktext": texts}  # fmt: skip
    elif len(values) <= 12:
        x |= {"tickvals": values, "ticktext": list(map(as_text, values))}
    is_low = min((v for group in groups for v in group.values(metric).values()), default=0) > 0
    menus = [scales(is_positive, is_low, is_log=is_log)]
    return finish(traces, titled(comparison, metric, groups), x, {"title": axis_title(metric)}, menus)


def parallel(comparison: Comparison) -> go.Figure:
    """Parallel coordinates: each line is a group, each axis a setting or a metric that all groups can be compared in.

    An axis of a metric has the better end up. Dragging along an axis keeps the lines that pass there.
    """
    metrics = [metric for metric in comparison.metrics if metric not in comparison.apart and comparison.has(metric)]
    groups = [group for group in comparison.groups if all(group.values(metric) for metric in metrics)]
    numbers = [group.number for group in groups]
    axes: list[dict] = [{"label": "#", "values": numbers, "range": [max(numbers, default=1), min(numbers, default=0)]}]
    name = shorten(comparison.keys)
    for key in comparison.keys:
        values = distinct(comparison, key, groups)
        if len(values) < 2:
            continue
        place: Callable[[Any], float] = float
        if not are_numbers(values):
            place = values.index
        elif min(values) > 0 and max(values) >= WIDE * min(values):
            place = math.log10
        at = [place(comparison.setting(key, group)) for group in groups]
        if not are_numbers(values):  # apart, so that all lines show
            at = [x + (i / max(len(groups) - 1, 1) - 0.5) * SHIFT for i, x in enumerate(at)]
        shown = values[:: math.ceil(len(values) / 12)]
        texts = [safe(short(as_text(value), 16)) for value in shown]
        ticks = {"tickvals": list(map(place, shown)), "ticktext": texts}
        axes.append({"label": safe(short(name(key), 20)), "values": at, **ticks})
    for metric in metrics:
        means = [group.spread(metric).mean for group in groups]
        if len(set(means)) > 1:
            ends = (min(means), max(means)) if find(metric).better != "lower" else (max(means), min(means))
            arrow = " ↑" if is_higher_better(metric) else " ↓" if find(metric).better else ""
            axes.append({"label": f"{safe(short(key_of(metric), 20))}{arrow}", "values": means, "range": ends})
    if len(axes) < 4 or len(groups) < 2:
        return go.Figure()
    colours, n = colours_of(comparison), len(groups)
    scale = [(i / (n - 1), colours[number]) for i, number in enumerate(numbers)]
    line = {"color": list(range(n)), "colorscale": scale, "cmin": 0, "cmax": n - 1}
    unselected = {"line": {"color": GREY, "opacity": 0.12}}
    traces = [{"type": "parcoords", "dimensions": axes, "line": line, "unselected": unselected,
               "rangefont": {"color": "rgba(0, 0, 0, 0)"}, "meta": {"groups": numbers}}]  # fmt: skip
    return finish(traces, "", {}, {}, [], margin={"l": 40, "r": 60, "t": 60, "b": 24}, height=420)


def cost(comparison: Comparison, groups: list[Group] | None = None) -> go.Figure:
    """What the time buys: the deciding metric against seconds of training."""
    metric, seconds = comparison.sort, "train_seconds"
    groups = [g for g in groups or comparable(comparison, metric) if g.values(metric) and g.values(seconds)]
    traces: list[dict] = []
    add_marks(traces, comparison, groups, metric, seconds)
    is_positive = all(value > 0 for group in groups for value in group.values(metric).values())
    name = titled(comparison, metric, groups, " against time")
    x, y = {"title": "training (seconds per run)"}, {"title": axis_title(metric)}
    return finish(traces, name, x, y, [scales(True, is_positive)])


def speed(comparison: Comparison) -> go.Figure:
    """The training speed of every group, the fastest first, with the single runs."""
    metric, colours = "images_per_second", colours_of(comparison)
    traces: list[dict] = []
    groups = sorted((g for g in comparison.groups if g.values(metric)), key=lambda group: group.spread(metric).mean)
    for group in groups[-MAX_BARS:]:
        name = named(group, 40)
        draw(
            traces, kind="bar", x=[group.spread(metric).mean], y=[name], orientation="h",
            marker={"color": colours[group.number]}, opacity=0.85, name=name, showlegend=False,
            hovertemplate=f"{about(group, [metric])}<extra></extra>", meta={"group": group.number},
        )  # fmt: skip
        draw(
            traces, x=list(group.values(metric).values()), y=[name] * len(group.values(metric)), mode="markers",
            marker={"size": 5, "color": INK}, showlegend=False, legendgroup=str(group.number),
            hovertemplate="%{x:,.0f} images per second<extra></extra>", meta={"group": group.number, "keeps": True},
        )  # fmt: skip
    x, height = {"title": "training images per second"}, 120 + 24 * len(groups[-MAX_BARS:])
    title, menus = "<b>images per second</b>", [scales(True, False)]
    return finish(traces, title, x, {"type": "category"}, menus, barmode="overlay", height=height)


# what they share


def comparable(comparison: Comparison, metric: str) -> list[Group]:
    """The groups that can be compared in a metric with the first one that measured it."""
    return next(iter(classes(comparison.groups, metric)), [])


def distortions(comparison: Comparison) -> list[str]:
    """The metrics of the image that there are planes of: those whose stage has a KL too."""
    stages = dict.fromkeys(metric.rpartition("/")[0] for metric in comparison.metrics)
    found = [f"{stage}/{name}" for stage in stages for name in ("reconstruction", "mse")]
    return [metric for metric in found if comparison.has(metric) and comparison.has(f"{metric.rpartition('/')[0]}/kl")]


def distinct(comparison: Comparison, key: str, groups: list[Group]) -> list[Any]:
    """The values of a setting: numbers in their order, then others in the order in which they come."""
    values = list(dict.fromkeys(comparison.setting(key, group) for group in groups))
    return sorted((v for v in values if are_numbers([v])), key=float) + [v for v in values if not are_numbers([v])]


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether all values are numbers."""
    return all(isinstance(value, int | float) for value in values)


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which no other is smaller in one coordinate and not larger in the other, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def curve(run: Entry, metric: str) -> tuple[Entry, dict[int, float]] | None:
    """A run and the finite values of a metric by their step, evenly spaced where there are too many; the last stays."""
    points = sorted(run.history.values.get(metric, {}).items())
    stride = math.ceil(len(points) / MAX_POINTS)
    kept = {x: y for i, (x, y) in enumerate(points) if (len(points) - 1 - i) % stride == 0 and math.isfinite(y)}
    return (run, kept) if kept else None


def clock(lines: list[tuple[Entry, dict]], steps: list[int]) -> dict[str, list]:
    """Steps, and the epochs and seconds at them, of several runs their mean."""

    def mean(kind: str, step: int) -> float | None:
        values = [getattr(run.history, kind).get(step, math.nan) for run, _ in lines]
        value = sum(values) / len(values)
        return round(value, 2) if math.isfinite(value) else None

    return {"step": steps, "epoch": [mean("epochs", s) for s in steps], "time": [mean("seconds", s) for s in steps]}


def add_marks(
    traces: list[dict], comparison: Comparison, groups: list[Group], metric: str, x: str | Callable[[Group], Any]
) -> None:
    """A large mark for each group with its standard deviation, a small one for each of its runs.

    Args:
        traces: of a figure, to which they are added.
        comparison: of the groups.
        groups: those that measured it.
        metric: upwards.
        x: to the right: a metric, or what gives the place of a group.
    """
    colours, shown = colours_of(comparison), [metric, *([x] if isinstance(x, str) else [])]

    def place(group: Group, run: Entry | None = None) -> Any:
        if not isinstance(x, str):
            return x(group)
        return run.metrics.get(x) if run else group.spread(x).mean

    for group in groups[:MAX_GROUPS]:
        own = {"mode": "markers", "legendgroup": str(group.number), "meta": {"group": group.number}}
        runs = group.completed
        if len(runs) > 1:
            draw(
                traces, x=[place(group, run) for run in runs], y=[run.metrics.get(metric) for run in runs], opacity=0.5,
                marker={"color": colours[group.number], "size": 5}, showlegend=False,
                text=[about(group, shown, run) for run in runs], hovertemplate="%{text}<extra></extra>", **own,
            )  # fmt: skip
        errors = {"error_y": error_bar(group.spread(metric).sd)}
        if isinstance(x, str):
            errors["error_x"] = error_bar(group.spread(x).sd)
        draw(
            traces, x=[place(group)], y=[group.spread(metric).mean], name=named(group),
            marker={"color": colours[group.number], "size": 11, "line": {"width": 1, "color": "rgba(255,255,255,0.7)"}},
            hovertemplate=f"{about(group, shown)}<extra></extra>", **errors, **own,
        )  # fmt: skip
    if rest := groups[MAX_GROUPS:]:
        draw(
            traces, x=[place(group) for group in rest], y=[group.spread(metric).mean for group in rest], mode="markers",
            name=f"{len(rest)} more", marker={"color": GREY, "size": 7}, opacity=0.7,
            text=[about(group, shown) for group in rest], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip


def error_bar(deviation: float) -> dict:
    """A standard deviation to both sides."""
    return {"array": [0 if math.isnan(deviation) else deviation], "thickness": 1.3, "width": 0}


def about(group: Group, metrics: list[str], run: Entry | None = None) -> str:
    """What a reader sees who points at a group or at a run: its name, its settings, values with their unit."""
    lines = [f"<b>{group.number}  {safe(short(run.name, 80))}</b>", safe(short(group.label, 100))] if run else []
    lines = lines or [f"<b>{group.number}  {safe(short(group.label, 100))}</b>"]
    if run:
        lines.append(f"seed {safe(short(as_text(run.seed), 20))}, {run.state}")
    for metric in metrics:
        found = group.spread(metric)
        if run:
            value = f"{run.metrics.get(metric, math.nan):,.5g}"
        else:
            value = f"{found.mean:,.5g}" + (f" ± {found.sd:.2g} (n={found.n})" if found.n > 1 else "")
        lines.append(f"{safe(metric)} {value} {find(metric).unit}".rstrip())
    return "<br>".join(lines)


def named(group: Group, most: int = 60) -> str:
    """A group in a legend."""
    return safe(short(f"{group.number}  {group.label}", most))


def safe(text: str) -> str:
    """Text that plotly takes neither for a tag nor for a variable."""
    return escape(text, quote=False).replace("%{", "% {")


def short(text: str, most: int = 60) -> str:
    """Text with an ellipsis where it is too long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def axis_title(metric: str) -> str:
    """A metric with its unit."""
    unit = find(metric).unit
    return safe(f"{metric} ({unit})" if unit else metric)


def titled(comparison: Comparison, metric: str, groups: list[Group], more: str = "") -> str:
    """The title of a figure: the metric, and what its groups share that others do not, where that decides."""
    words = []
    for key in comparison.by:
        own, all_of_them = ({group.settings[key] for group in of} for of in (groups, comparison.groups))
        if len(own) == 1 < len(all_of_them) and (key == "loss" or key.split(".")[0] == "dataset"):
            words.append(f"{key.rpartition('.')[2]}={min(own)}")
    if len(classes(comparison.groups, metric)) < 2:
        return f"<b>{safe(key_of(metric))}</b>{more}"
    among = ", ".join(words) or f"groups {', '.join(str(group.number) for group in groups[:6])}"
    return f"<b>{safe(key_of(metric))}</b>{more} · {safe(short(among, 40))}"


def extent(values: list[float], margin: float = 0.07) -> tuple[float, float]:
    """A range that holds all values, and some more on both sides."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    pad = (high - low) * margin or abs(high) * margin or 1
    return low - pad, high + pad


def menu(buttons: Iterable[tuple[str, dict, dict]], active: int = 0) -> dict:
    """A menu of buttons, each a label, what it changes of the traces, and what of the layout."""
    made = [{"label": label, "method": "update", "args": [traces, layout]} for label, traces, layout in buttons]
    return {"buttons": made, "active": active}


def scales(has_x: bool, has_y: bool, is_log: bool = False) -> dict:
    """The menu of the axes' scales, of those that can be logarithmic."""
    named = {"linear": (0, 0), "log x": (1, 0), "log y": (0, 1), "log x, y": (1, 1)}
    fit = {label: kinds for label, kinds in named.items() if kinds[0] <= has_x and kinds[1] <= has_y}

    def change(label: str) -> dict:
        changes = {f"{axis}.autorange": True for axis in ("xaxis", "yaxis")}
        for axis, has, is_on in zip(("xaxis", "yaxis"), (has_x, has_y), fit[label], strict=True):
            changes |= {f"{axis}.type": "log" if is_on else "linear"} if has else {}
        return changes

    return menu(((label, {}, change(label)) for label in fit), active=list(fit).index("log x") if is_log else 0)


def draw(traces: list[dict], kind: str = "scatter", **own) -> None:
    """Add a trace; plotly checks all of them once, when the figure is finished."""
    traces.append({"type": kind, **own})


def finish(traces: list[dict], title: str, x: dict, y: dict, menus: list[dict], **layout) -> go.Figure:
    """A figure of its traces, its title, its axes, and its menus in a row above them."""
    look = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "font": {"size": 11}, "bgcolor": "rgba(0,0,0,0)",
            "bordercolor": FAINT, "showactive": True}  # fmt: skip
    menus = [own for own in menus if len(own["buttons"]) > 1]
    menus = [{**own, **look, "pad": {"l": 84 * i, "b": 4}} for i, own in enumerate(menus)]
    own = {"template": TEMPLATE, "title": {"text": title}, "xaxis": x, "yaxis": y, "updatemenus": menus, "height": 400}
    return go.Figure(traces, own | layout)
