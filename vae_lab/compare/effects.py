"""What the settings do: a panel for each of them, and all of them together as parallel coordinates."""

import math
from collections.abc import Callable
from html import escape

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.differences import order_of, shorten
from vae_lab.compare.groups import Group, axis_title
from vae_lab.compare.panels import as_value, classes, titled
from vae_lab.compare.svg import Panel, cut, extent, steps, tick_texts
from vae_lab.compare.table import decimals, format_spread
from vae_lab.compare.yardsticks import base, has_better, sign

MAX_KEYS = 12  # settings with a panel of their own
SHIFT = 0.16  # of an axis, over which groups with the same setting are spread so that all lines show


def effects(comparison: Comparison) -> list[str]:
    """What each setting changes: a panel per setting and metric; thin lines join groups that differ in nothing else."""
    panels = []
    stage = comparison.sort.rpartition("/")[0] or "val"
    wanted = dict.fromkeys([comparison.sort, f"{stage}/elbo", f"{stage}/mse"])
    metrics = [metric for metric in wanted if comparison.has(metric)][:2]
    for key in comparison.keys[:MAX_KEYS]:
        panels.append(f"<h3>{escape(key)}</h3>")
        for metric in metrics:
            for title, groups in classes(comparison, metric):
                measured = [group for group in groups if group.values(metric)]
                if len({group.settings[key] for group in measured}) > 1:
                    panels.append(effect(comparison, key, metric, title, measured))
        if panels[-1].startswith("<h3>"):
            panels.pop()
    return panels


def effect(comparison: Comparison, key: str, metric: str, title: str, groups: list[Group]) -> str:
    """One panel: the values of one setting side by side."""
    texts = [group.settings[key] for group in groups]
    places = {text: i for i, text in enumerate(text for text in order_of(comparison.table[key]) if text in texts)}
    means = [group.spread(metric).mean for group in groups]
    values = [value for group in groups for value in group.values(metric).values()]
    name = titled(metric, title)
    names = [cut(text, max(6, 48 // len(places))) for text in places]
    panel = Panel(cut(name, 52), key, axis_title(metric), (-0.5, len(places) - 0.5), extent(values), x_names=names)
    for chain in chains(groups, key, places):
        if len(chain) > 1:
            panel.line([(places[g.settings[key]], g.spread(metric).mean) for g in chain], "context")
    digits = decimals(groups, metric)
    for text, place in places.items():
        members = [mean for other, mean in zip(texts, means, strict=True) if other == text]
        average = sum(members) / len(members)
        tip = f"{key}={text}\nmean of {len(members)} groups"
        panel.line([(place - 0.22, average), (place + 0.22, average)], "average", tip=tip)
    for group in groups:
        place = places[group.settings[key]]
        for value in group.values(metric).values():
            panel.dot(place, value, "seed", group.number, size=2.2)
        tip = f"{group.number}  {group.label}\n{base(metric)} {format_spread(group.spread(metric), digits, 'sd')}"
        panel.dot(place, group.spread(metric).mean, "mean", group.number, tip)
    return panel.svg()


def chains(groups: list[Group], key: str, places: dict[str, int]) -> list[list[Group]]:
    """Groups that differ in one setting only, in its order."""
    found: dict[tuple, list[Group]] = {}
    for group in groups:
        others = tuple(value for name, value in group.settings.items() if name != key)
        found.setdefault(others, []).append(group)
    return [sorted(chain, key=lambda group: places[group.settings[key]]) for chain in found.values()]


def parallel(comparison: Comparison) -> list[str]:
    """Parallel coordinates: an axis for every setting and every metric that all groups can be compared in."""
    metrics = [metric for metric in comparison.metrics if metric not in comparison.apart and comparison.has(metric)]
    groups = [group for group in comparison.groups if all(group.values(metric) for metric in metrics)]
    axes: list[tuple[str, Callable[[Group], float], list[tuple[float, str]], str]] = []
    name = shorten(comparison.keys)
    for key in comparison.keys:
        order = order_of([as_value(comparison, key, group) for group in groups])
        if len(order) > 1:
            places = {text: i / (len(order) - 1) for i, text in enumerate(order)}
            shift = {g.number: (i / max(len(groups) - 1, 1) - 0.5) * SHIFT / len(order) for i, g in enumerate(groups)}
            every = math.ceil(len(order) / 9)
            ticks = [(places[text], cut(text, 14)) for text in order[::every]]

            def at(group: Group, key=key, places=places, shift=shift) -> float:
                return places[group.settings[key]] + shift[group.number]

            axes.append((name(key), at, ticks, ""))
    for metric in metrics:
        if len({group.spread(metric).mean for group in groups}) > 1:
            axes.append(metric_axis(groups, metric))
    if len(axes) < 3 or len(groups) < 2:
        return []
    return [draw_parallel(axes, groups)]


def metric_axis(groups: list[Group], metric: str) -> tuple:
    """An axis of a metric, the better end up."""
    means = [group.spread(metric).mean for group in groups]
    low, high = extent(means, 0)
    down = sign(metric) > 0 and has_better(metric)

    def place(value: float) -> float:
        share = (value - low) / (high - low)
        return 1 - share if down else share

    values = steps(low, high, 5)
    ticks = [(place(v), t) for v, t in zip(values, tick_texts(values), strict=True)]
    arrow = " ↑ better" if has_better(metric) else ""
    return base(metric), lambda group: place(group.spread(metric).mean), ticks, arrow


def draw_parallel(axes: list[tuple], groups: list[Group]) -> str:
    """The lines of all groups across the axes."""
    panel = Panel("", "", "", (-0.35, len(axes) - 0.55), (-0.1, 1.22), [" "], [" "], 1130, 330, left=20)
    for i, (name, *_, arrow) in enumerate(axes):
        panel.line([(i, -0.06), (i, 1.06)], "pole")
        panel.text(i, 1.22, cut(name, 20), "pole-name", (0, 12))
        panel.text(i, 1.22, arrow.strip(), "pole-hint", (0, 25))
    for group in reversed(groups):
        points = [(i, at(group)) for i, (_, at, _, _) in enumerate(axes)]
        panel.line(points, "mean", group.number, f"{group.number}  {group.label}")
    for i, (_, _, ticks, _) in enumerate(axes):
        for place, text in ticks:
            panel.text(i, place, text, "pole-tick", (7, 4))
    return panel.svg()
