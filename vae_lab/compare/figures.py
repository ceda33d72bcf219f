"""The figures of a comparison: each is a function that gives a plotly figure, for the report and for notebooks.

    found = comparison.compare(*runs.find_runs([Path("outputs/sweeps/first")]))
    figures.curves(found, "val/elbo").show()

A group has the same colour in all of them. `meta` of a trace names its group, or that of each of its points.
"""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from html import escape
from statistics import median
from typing import Any

import plotly.graph_objects as go

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.groups import Group, as_text, classes, shorten
from vae_lab.compare.runs import Entry
from vae_lab.metrics.catalogue import find, key_of

# They can be told apart, and seen on white and on black (after Okabe and Ito 2008); further groups share a grey.
COLOURS = ("#2b83c6", "#dd8500", "#0e9f74", "#d0568f", "#8b6fc9", "#d9542b", "#28a3b8", "#9a8a1f", "#7f8c3a", "#b0653f")
RAMP = ("#6a55b0", "#4273b8", "#2b90a5", "#25a37b", "#62ad4b", "#9cab2c", "#cc9a06")  # of the values of a number
GREY = "#98a1aa"
INK = "#79828b"  # for text on white and on black; the report has an ink for each
FAINT = "rgba(128, 136, 144, 0.22)"
CLEAR = "rgba(0, 0, 0, 0)"
AXIS = {"gridcolor": FAINT, "zeroline": False, "linecolor": FAINT, "automargin": True}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "xaxis": AXIS, "yaxis": AXIS,
        "hovermode": "closest", "hoverlabel": {"align": "left", "namelength": 0},
        "legend": {"groupclick": "togglegroup", "tracegroupgap": 0},
        "margin": {"l": 56, "r": 14, "t": 76, "b": 46},
        "modebar": {"bgcolor": CLEAR, "color": GREY, "activecolor": COLOURS[0]},
        "title": {"x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "yref": "container", "font": {"size": 14},
                  "pad": {"t": 12, "l": 4}},
    }
)  # fmt: skip
MAX_LINES = 24  # groups with learning curves
MAX_RUNS = 100  # that have curves of their own
MAX_POINTS = 120  # of a curve
MAX_BARS = 40
MAX_VALUES = 24  # of a setting that colours can stand for
BEGIN = 0.12  # of the training, which may lie outside of the axes until a reader zooms out
WIDE = 8  # the ratio of the largest to the smallest value of a setting from which its axis is logarithmic
MAX_TICKS = 12  # of an axis of a setting
MANY = 8  # values from which on far ones may lie outside of the axes
FAR = 50  # times the median distance from the median, from which on a value is far
SHIFT = 0.16  # of an axis, over which groups with the same option are spread so that all lines show
Mode = list[tuple[str, list[int], str]]  # a name, the numbers of groups, a colour
Button = tuple[str, dict, dict]  # its label, what it changes of the traces, and what of the layout


@lru_cache(maxsize=1)
def colour_modes(comparison: Comparison) -> dict[str, Mode]:
    """What colours can stand for: the groups, or the values of a setting, which comes first where groups are many."""
    groups = comparison.groups
    ranked = [(f"{g.number}  {g.label}", [g.number], c) for g, c in zip(groups, COLOURS, strict=False)]
    rest = [group.number for group in groups[len(COLOURS) :]]
    modes: dict[str, Mode] = {"group": ranked + ([(f"{len(rest)} more", rest, GREY)] if rest else [])}
    for key in comparison.keys:
        members = by_value(key, groups)
        is_scale = are_numbers(members) and len(members) > 2
        if is_scale and len(members) > MAX_VALUES:  # continuous: as many ranges as there are colours
            members = ranges(members)
        if 1 < len(members) <= MAX_VALUES:
            shades = [RAMP[round(i / (len(members) - 1) * (len(RAMP) - 1))] for i in range(len(members))]
            colours = shades if is_scale else [*COLOURS, *[GREY] * len(members)]
            names = [own[0].settings[key] if are_numbers([value]) else value for value, own in members.items()]
            numbers = [[group.number for group in own] for own in members.values()]
            modes[key] = list(zip(names, numbers, colours, strict=False))
    first = list(modes)[1 if rest and len(modes) > 1 else 0]
    return {first: modes[first], **modes}


def colours_of(comparison: Comparison) -> Mode:
    """The groups of every colour."""
    return next(iter(colour_modes(comparison).values()))


# figures: where no groups are named, those that can be compared with the first one are drawn


def curves(comparison: Comparison, metric: str, groups: list[Group] | None = None) -> go.Figure:
    """Learning curves of `val/elbo` or the like: the mean over a group's runs, their range, every run.

    The mean in training is dotted.
    """
    groups = (groups or comparable(comparison, metric))[:MAX_LINES]
    colours = {number: colour for _, members, colour in colours_of(comparison) for number in members}
    has_runs = sum(len(group.runs) for group in groups) <= MAX_RUNS
    figure, axes, stages = go.Figure(), [], []
    seen: list[tuple[int, float]] = []

    def draw(group: Group, x: dict[str, list], y: list[float], line: dict, text: str, **look) -> None:
        hover = {"hovertemplate": f"{text}<br>%{{x}}<extra></extra>"} if text else {"hoverinfo": "skip"}
        values = [float(f"{value:.6g}") for value in y]  # of which the file has many
        own = {"mode": "lines", "showlegend": False, "name": named(group), "meta": {"group": group.number}} | look
        line = {"color": colours[group.number]} | line
        figure.add_scatter(x=x["step"], y=values, line=line, legendgroup=str(group.number), **hover, **own)
        axes.append(x)
        stages.append(stage)

    for stage, name in (("train", metric.replace("val/", "train/")), ("val", metric)):
        is_val = stage == "val"
        for group in groups:
            lines = [(run, points) for run in group.runs if (points := curve(run, name))]
            done = [(run, points) for run, points in lines if run.is_done]
            for run, points in lines if is_val else ():
                seen += points.items()
                if len(lines) > 1 and (has_runs or not run.is_done):
                    style: dict[str, Any] = {"width": 1, "dash": "solid" if run.is_done else "dash"}
                    x, y = clock([run], list(points)), list(points.values())
                    draw(group, x, y, style, about(group, [name], run), opacity=0.4)
            among = done or lines[:1]
            steps = [step for step in among[0][1] if all(step in points for _, points in among)] if among else []
            if not steps:
                continue
            runs, rows = [run for run, _ in among], [[points[step] for _, points in among] for step in steps]
            x = clock(runs, steps)
            if len(among) > 1 and len(steps) > 1 and is_val:
                there = {unit: [*values, *values[::-1]] for unit, values in x.items()}
                band = [*map(max, rows), *map(min, rows[::-1])]
                draw(group, there, band, {"width": 0}, "", fill="toself", fillcolor=f"{colours[group.number]}26")
            style = {"width": 2.4 if is_val else 1.4, "dash": "dot" if not is_val else "solid" if done else "dash"}
            count = f"mean of {len(among)} runs" if len(among) > 1 else runs[0].name
            text = f"{about(group, [])}<br>{safe(count)}<br>{safe(name)} %{{y:.5g}} {find(name).unit}"
            mean, mode = [sum(row) / len(row) for row in rows], "lines" if len(steps) > 1 else "markers"
            draw(group, x, mean, style, text, mode=mode, showlegend=is_val)
    titles = {"step": "step", "epoch": "epoch", "time": "seconds since the start"}
    units = [(unit, {"x": [x[unit] for x in axes]}, {"xaxis.title.text": title, "xaxis.autorange": True})
             for unit, title in titles.items()]  # fmt: skip
    menus = [menu(units), scales(True, all(y > 0 for trace in figure.data for y in trace.y))]
    if len(set(stages)) > 1:
        is_crowded = len(groups) > len(COLOURS)
        choices = ("val + train", "val", "train")
        menus.append(menu(((own, {"visible": [s in own for s in stages]}, {}) for own in choices), int(is_crowded)))
        for trace, stage in zip(figure.data, stages, strict=True):
            trace.visible = stage == "val" or not is_crowded
    begin = BEGIN * max((step for x in axes for step in x["step"]), default=0)
    focus(figure, "y", [y for x, y in seen if x > begin] or [y for _, y in seen])
    return finish(figure, titled(comparison, metric, groups), "step", axis_title(metric), menus)


def plane(comparison: Comparison, y: str, groups: list[Group] | None = None, x: str = "") -> go.Figure:
    """One metric, such as a distortion, against another, by default the rate, the KL of the same stage.

    No group is better in both than one of the front.
    """
    rate, distortion = x or f"{y.rpartition('/')[0]}/kl", y
    groups = [g for g in groups or comparable(comparison, distortion) if g.values(rate) and g.values(distortion)]
    if not groups:
        return go.Figure()
    done = [run for group in groups for run in group.completed if {rate, distortion} <= run.metrics.keys()]
    figure = go.Figure()
    (x0, x1), (y0, y1) = (
        focus(figure, axis, [run.value(key) for run in done]) for axis, key in (("x", rate), ("y", distortion))
    )
    if not x and key_of(y) == "reconstruction":  # lines of equal ELBO, minus the sum of both axes
        span = x1 + y1 - x0 - y0
        unit = 10 ** (math.floor(math.log10(span)) - 1)
        step = next(unit * times for times in (1, 2, 5, 10) if span <= 10 * unit * times)
        sums = [i * step for i in range(math.ceil((x0 + y0) / step), math.floor((x1 + y1) / step) + 1)]
        ends = [end for value in sums for end in (value - x0, value - x1, None)]
        figure.add_scatter(x=[x0, x1, None] * len(sums), y=ends, mode="lines", line={"color": FAINT, "width": 1},
                           showlegend=False, text=[f"elbo {-value:.6g}" for value in sums for _ in range(3)],
                           hovertemplate="%{text}<extra></extra>")  # fmt: skip
        for value in (value for value in sums if y0 < value - x1 < y1):
            figure.add_annotation(x=x1, y=value - x1, text=f"elbo {-value:.6g}", showarrow=False, xanchor="left",
                                  font={"size": 10}, opacity=0.7)  # fmt: skip
        figure.update_layout(margin={"r": 76})
    sign = -1 if find(distortion).better == "higher" else 1
    if front := pareto([(group.spread(rate).mean, sign * group.spread(distortion).mean) for group in groups]):
        worst, front = y0 if sign < 0 else y1, [(left, sign * up) for left, up in front]
        rates, losses = zip((front[0][0], worst), *front, (x1, front[-1][1]), strict=True)
        figure.add_scatter(x=rates, y=losses, mode="lines", name="Pareto front", hoverinfo="skip",
                           line={"shape": "hv", "dash": "dash", "width": 1.2, "color": INK})  # fmt: skip
    add_marks(figure, comparison, groups, distortion, rate)
    name = {"train_seconds": "time", "kl": "KL"}.get(key_of(rate), key_of(rate))
    title, menus = titled(comparison, distortion, groups, f" against {name}"), [scales(x0 > 0, y0 > 0)]
    return finish(figure, title, axis_title(rate), axis_title(distortion), menus)


def effect(comparison: Comparison, key: str, metric: str, groups: list[Group] | None = None) -> go.Figure:
    """What a setting changes; thin lines join groups that differ in nothing else. Numbers have an axis of numbers."""
    groups = [group for group in groups or comparable(comparison, metric) if group.values(metric)]
    members = by_value(key, groups)
    is_number = are_numbers(members)
    place = {value: value if is_number else i for i, value in enumerate(members)}
    chains: dict[tuple, list[Group]] = {}
    for group in (group for own in members.values() for group in own):
        others = tuple(value for name, value in group.settings.items() if name != key)
        chains.setdefault(others, []).append(group)
    joined = [group for chain in chains.values() if len(chain) > 1 for group in (*chain, None)]
    figure = go.Figure()
    figure.add_scatter(
        x=[group and place[group.setting(key)] for group in joined],
        y=[group and group.spread(metric).mean for group in joined],
        mode="lines", line={"color": GREY, "width": 1}, opacity=0.5, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    several = {value: own for value, own in members.items() if len(own) > 1}
    figure.add_scatter(
        x=[place[value] for value in several],
        y=[sum(group.spread(metric).mean for group in own) / len(own) for own in several.values()],
        mode="markers", marker={"symbol": "line-ew", "size": 30, "line": {"color": INK, "width": 2.5}},
        text=[f"{safe(f'{key}={own[0].settings[key]}')}<br>mean over groups" for own in several.values()],
        hovertemplate="%{text}<br>%{y:.5g}<extra></extra>", name="mean over groups",
    )  # fmt: skip
    add_marks(figure, comparison, groups, metric, lambda group: place[group.setting(key)])
    is_log = is_number and is_wide(members)
    figure.update_xaxes(type="log" if is_log else "linear")
    if not is_number or len(members) <= MAX_TICKS:
        shown = ticks(members, math.log10 if is_log else place.__getitem__)
        texts = [safe(members[value][0].settings[key], 24) for value in shown]
        figure.update_xaxes(tickvals=[place[value] for value in shown], ticktext=texts)
    if not is_number:
        figure.update_xaxes(range=(-0.5, len(members) - 0.5))
    found = [value for group in groups for value in group.values(metric).values()]
    if len(near(found)) < len(found):  # plotly's own range has room for the deviations, but is as long as the farthest
        focus(figure, "y", found)
    menus = [scales(is_number and min(members) > 0, all(value > 0 for value in found), is_log)]
    return finish(figure, titled(comparison, metric, groups), safe(key), axis_title(metric), menus)


def parallel(comparison: Comparison) -> go.Figure:
    """Parallel coordinates: each line is a group, each axis a setting or a metric that all groups can be compared in.

    An axis of a metric has the better end up. Dragging along an axis keeps the lines that pass there.
    """
    metrics = [metric for metric in comparison.metrics if metric not in comparison.apart and comparison.has(metric)]
    groups = [group for group in comparison.groups if all(group.values(metric) for metric in metrics)]
    numbers, n = [group.number for group in groups], len(groups)
    if n < 2:
        return go.Figure()
    axes: list[dict] = [{"label": "#", "values": numbers, "range": [max(numbers), min(numbers)]}]
    name = shorten(comparison.keys)
    for key in comparison.keys:
        members = by_value(key, groups)
        if len(members) < 2:
            continue
        place: Callable[[Any], float]
        if is_number := are_numbers(members):
            place = math.log10 if is_wide(members) else float
        else:
            place = list(members).index
        shift = 0 if is_number else SHIFT / (n - 1)  # apart, so that all lines show
        at = [place(group.setting(key)) + (i - (n - 1) / 2) * shift for i, group in enumerate(groups)]
        shown = ticks(members, place)
        texts = [safe(members[value][0].settings[key], 16) for value in shown]
        axes.append({"label": safe(name(key), 20), "values": at, "tickvals": [*map(place, shown)], "ticktext": texts})
    for metric in metrics:
        means, better = [group.spread(metric).mean for group in groups], find(metric).better
        if len(set(means)) > 1:
            low, high = min(near(means)), max(near(means))
            means = [min(max(mean, low), high) for mean in means]
            ends = [high, low] if better == "lower" else [low, high]
            label = safe(key_of(metric), 20) + {"higher": " ↑", "lower": " ↓", None: ""}[better]
            axes.append({"label": label, "values": means, "range": ends})
    if len(axes) < 4:
        return go.Figure()
    colours = {number: colour for _, members, colour in colours_of(comparison) for number in members}
    scale = [(i / (n - 1), colours[number]) for i, number in enumerate(numbers)]
    line = {"color": list(range(n)), "colorscale": scale, "cmin": 0, "cmax": n - 1}
    unselected = {"line": {"color": GREY, "opacity": 0.12}}
    figure = go.Figure()
    figure.add_parcoords(dimensions=axes, line=line, unselected=unselected, rangefont={"color": CLEAR},
                         meta={"groups": numbers})  # fmt: skip
    figure.update_layout(margin={"l": 40, "r": 60, "t": 60, "b": 24}, height=420)
    return finish(figure, "", "", "", [])


def speed(comparison: Comparison) -> go.Figure:
    """The training speed of the fastest groups, with the single runs."""
    metric, figure = "images_per_second", go.Figure()
    colours = {number: colour for _, members, colour in colours_of(comparison) for number in members}
    groups = [group for group in comparison.groups if group.values(metric)]
    groups = sorted(groups, key=lambda group: group.spread(metric).mean)[-MAX_BARS:]
    if not groups:
        return figure
    figure.add_bar(
        x=[group.spread(metric).mean for group in groups], y=[named(group, 24) for group in groups], orientation="h",
        marker={"color": [colours[group.number] for group in groups]}, opacity=0.85, showlegend=False,
        text=[about(group, [metric]) for group in groups], textposition="none",
        hovertemplate="%{text}<extra></extra>", meta={"groups": [group.number for group in groups]},
    )  # fmt: skip
    points = [(group, value) for group in groups for value in group.values(metric).values()]
    figure.add_scatter(
        x=[value for _, value in points], y=[named(group, 24) for group, _ in points], mode="markers",
        marker={"size": 5, "color": INK}, hovertemplate="%{x:,.0f} images per second<extra></extra>",
        showlegend=False, meta={"groups": [group.number for group, _ in points]},
    )  # fmt: skip
    figure.update_layout(height=120 + 24 * len(groups))
    figure.update_xaxes(nticks=5)
    figure.update_yaxes(type="category")
    return finish(figure, "<b>images per second</b> in training", "", "", [scales(True, False)])


# what they share


def comparable(comparison: Comparison, metric: str) -> list[Group]:
    """The groups that can be compared in a metric with the first one that measured it."""
    return next(iter(classes(comparison.groups, metric)), [])


def distortions(comparison: Comparison) -> list[str]:
    """The metrics of the image that there are planes of: those whose stage has a KL too."""
    stages = dict.fromkeys(metric.rpartition("/")[0] for metric in comparison.metrics)
    found = [(f"{stage}/{name}", f"{stage}/kl") for stage in stages for name in ("reconstruction", "mse")]
    return [metric for metric, rate in found if comparison.has(metric) and comparison.has(rate)]


def by_value(key: str, groups: list[Group]) -> dict[Any, list[Group]]:
    """The groups of each value of a setting: numbers in their order, then others in the order in which they come."""
    values = dict.fromkeys(group.setting(key) for group in groups)
    ordered = sorted(values, key=lambda value: (0, value) if are_numbers([value]) else (1, 0))
    return {value: [group for group in groups if group.setting(key) == value] for value in ordered}


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether all values are numbers, and none says yes or no."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def is_wide(values: Iterable[float]) -> bool:
    """Whether an axis of these numbers is logarithmic."""
    return min(values) > 0 and max(values) >= WIDE * min(values)


def ticks(values: Iterable[Any], place: Callable[[Any], float]) -> list[Any]:
    """Those of some values, in their order on an axis, whose names have room beside each other there."""
    first, *others = values
    shown, room = [first], (place([first, *others][-1]) - place(first)) / MAX_TICKS
    for value in others:
        if place(value) - place(shown[-1]) >= room:
            shown.append(value)
    return shown


def ranges(members: dict[Any, list[Group]]) -> dict[Any, list[Group]]:
    """The groups of many numbers by the part of their axis in which these lie, a part for each colour of the ramp."""
    place = math.log10 if is_wide(members) else float
    low, high = place(min(members)), place(max(members))
    found: dict[int, dict[Any, list[Group]]] = {}
    for value, own in members.items():
        found.setdefault(min(int((place(value) - low) / (high - low) * len(RAMP)), len(RAMP) - 1), {})[value] = own
    names = {i: list(dict.fromkeys(f"{end(part):.3g}" for end in (min, max))) for i, part in found.items()}
    return {" to ".join(names[i]): [group for own in found[i].values() for group in own] for i in sorted(found)}


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which no other is smaller in one coordinate and not larger in the other, from left to right."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def curve(run: Entry, metric: str) -> dict[int, float]:
    """The finite values of a metric by their step, evenly spaced where there are too many; the last stays."""
    points = sorted(run.history.values.get(metric, {}).items())
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    first = (len(points) - 1) % stride if points else 0
    return {x: y for x, y in points[first::stride] if math.isfinite(y)}


def clock(runs: list[Entry], steps: list[int]) -> dict[str, list]:
    """Steps, and the epochs and seconds at them, of several runs their mean."""
    found: dict[str, list] = {"step": steps}
    for unit, kind in (("epoch", "epochs"), ("time", "seconds")):
        sums = [sum(getattr(run.history, kind).get(step, math.nan) for run in runs) for step in steps]
        found[unit] = [round(value / len(runs), 2) if math.isfinite(value) else None for value in sums]
    return found


def add_marks(
    figure: go.Figure, comparison: Comparison, groups: list[Group], metric: str, x: str | Callable[[Group], Any]
) -> None:
    """A large mark for each group with its standard deviation, a small one for each of its runs; a trace for a colour.

    To the right is a metric, or what a function gives as the place of a group.
    """
    shown = [metric, x] if isinstance(x, str) else [metric]

    def place(group: Group, run: Entry | None = None) -> Any:
        if not isinstance(x, str):
            return x(group)
        return run.value(x) if run else group.spread(x).mean

    for name, members, colour in colours_of(comparison):
        numbers = set(members)
        own = [group for group in groups if group.number in numbers]
        runs = [(group, run) for group in own for run in group.completed if len(group.completed) > 1]
        look = {"mode": "markers", "legendgroup": safe(name), "hovertemplate": "%{text}<extra></extra>"}
        if runs:
            figure.add_scatter(
                x=[place(group, run) for group, run in runs], y=[run.value(metric) for _, run in runs], opacity=0.5,
                marker={"color": [colour] * len(runs), "size": 5}, showlegend=False,
                text=[about(group, shown, run) for group, run in runs],
                meta={"groups": [group.number for group, _ in runs]}, **look,
            )  # fmt: skip
        errors = {f"error_{axis}": {"array": [0 if math.isnan(sd := group.spread(key).sd) else sd for group in own],
                                    "color": colour, "thickness": 1.3, "width": 0}
                  for axis, key in zip("yx", shown, strict=False)}  # fmt: skip
        if own:
            edge = {"width": 1, "color": "rgba(255,255,255,0.7)"}
            figure.add_scatter(
                x=[place(group) for group in own], y=[group.spread(metric).mean for group in own],
                name=safe(name), marker={"color": [colour] * len(own), "size": 11, "line": edge},
                text=[about(group, shown) for group in own], meta={"groups": [group.number for group in own]},
                **errors, **look,
            )  # fmt: skip


def about(group: Group, metrics: list[str], run: Entry | None = None) -> str:
    """What a reader sees who points at a group or at a run: its name, its settings, values with their unit."""
    lines = [f"<b>{group.number}  {safe(run.name if run else group.label, 100)}</b>"]
    if run:
        lines += [safe(group.label, 100), f"seed {safe(as_text(run.seed), 20)}, {run.state}"]
    for metric in metrics:
        found = group.spread(metric)
        value = f"{found.mean:,.5g}" + (f" ± {found.sd:.2g} (n={found.n})" if found.n > 1 else "")
        value = f"{run.value(metric):,.5g}" if run else value
        lines.append(f"{safe(metric)} {value} {find(metric).unit}".rstrip())
    return "<br>".join(lines)


def named(group: Group, most: int = 60) -> str:
    """A group in a legend."""
    return safe(f"{group.number}  {group.label}", most)


def safe(text: str, most: int = 60) -> str:
    """Text that plotly takes neither for a tag nor for a variable, with an ellipsis where it is too long."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return escape(text, quote=False).replace("%{", "% {")


def axis_title(metric: str) -> str:
    """A metric with its unit."""
    return safe(f"{metric} ({unit})" if (unit := find(metric).unit) else metric)


def titled(comparison: Comparison, metric: str, groups: list[Group], more: str = "") -> str:
    """The title of a figure: the metric, and what its groups share that others do not, where that decides."""
    title = f"<b>{safe(key_of(metric))}</b>{more}"
    if len(classes(comparison.groups, metric)) < 2:
        return title
    words = []
    for key in (key for key in comparison.by if key == "loss" or key.split(".")[0] == "dataset"):
        own, others = ({group.settings[key] for group in of} for of in (groups, comparison.groups))
        words += [f"{key.rpartition('.')[2]}={min(own)}"] if len(own) == 1 < len(others) else []
    among = ", ".join(words) or f"groups {', '.join(str(group.number) for group in groups[:6])}"
    return f"{title} · {safe(among, 40)}"


def extent(values: list[float]) -> tuple[float, float]:
    """A range that holds all values but very far ones, and some more on both sides."""
    low, high = min(near(values), default=0.0), max(near(values), default=0.0)
    pad = (high - low) * 0.07 or abs(high) * 0.07 or 1
    return low - pad, high + pad


def near(values: list[float]) -> list[float]:
    """The finite values without those, as of a run that diverged, beside which no difference of others would show."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < MANY:
        return finite
    middle = median(finite)
    reach = FAR * median([abs(value - middle) for value in finite])
    return [value for value in finite if not reach or abs(value - middle) <= reach]


def focus(figure: go.Figure, axis: str, values: list[float]) -> tuple[float, float]:
    """The range of an axis, which the figure gets; it says so where values lie outside."""
    low, high = extent(values)
    figure.update_layout({f"{axis}axis": {"range": (low, high)}})
    if len(near(values)) < sum(map(math.isfinite, values)):
        figure.add_annotation(x=1, y=0, xref="paper", yref="paper", xanchor="right", yanchor="bottom", showarrow=False,
                              text="some lie far outside: double-click", font={"size": 10}, opacity=0.7)  # fmt: skip
    return low, high


def menu(buttons: Iterable[Button], active: int = 0) -> dict:
    """A menu of buttons."""
    made = [{"label": label, "method": "update", "args": [traces, layout]} for label, traces, layout in buttons]
    return {"buttons": made, "active": active}


def scales(has_x: bool, has_y: bool, is_log: bool = False) -> dict:
    """The menu of the axes' scales, of those that can be logarithmic; `is_log` is the one of x at first."""
    buttons: list[Button] = []
    for label, x, y in (("linear", 0, 0), ("log x", 1, 0), ("log y", 0, 1), ("log x, y", 1, 1)):
        changes: dict[str, Any] = {"xaxis.autorange": True, "yaxis.autorange": True}
        changes |= {"xaxis.type": ("linear", "log")[x]} if has_x else {}
        changes |= {"yaxis.type": ("linear", "log")[y]} if has_y else {}
        if x <= has_x and y <= has_y:
            buttons.append((label, {}, changes))
    return menu(buttons, active=int(is_log))


def finish(figure: go.Figure, title: str, x_title: str, y_title: str, menus: list[dict]) -> go.Figure:
    """Titles, and the menus in a row above the axes."""
    look = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "font": {"size": 11}, "bgcolor": CLEAR,
            "bordercolor": FAINT, "showactive": True}  # fmt: skip
    menus = [own for own in menus if len(own["buttons"]) > 1]
    menus = [{**own, **look, "pad": {"l": 86 * i, "b": 4}} for i, own in enumerate(menus)]
    height = figure.layout.height or 400
    figure.update_layout(template=TEMPLATE, title_text=title, updatemenus=menus, height=height)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure
