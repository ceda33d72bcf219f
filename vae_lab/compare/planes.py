"""Groups as points in a plane: the KL against what is lost, and a metric against the time that it takes."""

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.groups import Group, axis_title
from vae_lab.compare.panels import classes
from vae_lab.compare.svg import RIGHT, Panel, Point, cut, extent, steps, tick_texts
from vae_lab.compare.table import decimals, format_cell, format_spread
from vae_lab.compare.yardsticks import base

MAX_BARS = 40


def plane(comparison: Comparison) -> list[str]:
    """The KL against what is lost: its Pareto front are the groups than which none is better in both."""
    panels = []
    stages = dict.fromkeys(metric.rpartition("/")[0] for metric in comparison.metrics)
    for stage in stages:
        rate = f"{stage}/kl"
        for metric in (f"{stage}/reconstruction", f"{stage}/mse"):
            if comparison.has(rate) and comparison.has(metric):
                for title, groups in classes(comparison, metric):
                    both = [group for group in groups if group.values(rate) and group.values(metric)]
                    if both:
                        panels.append(rate_distortion(comparison, rate, metric, title, both))
    return panels


def rate_distortion(comparison: Comparison, rate: str, metric: str, title: str, groups: list[Group]) -> str:
    """One plane: a mark for each group, small ones for its runs, crosses of the deviation, the front."""
    done = [run for group in groups for run in group.completed if metric in run.metrics and rate in run.metrics]
    xs, ys = ([run.metrics[key] for run in done] for key in (rate, metric))
    name = f"{base(metric)} against KL" + (f" · {title}" if title else "")
    margin = 62 if base(metric) == "reconstruction" else RIGHT
    panel = Panel(name, axis_title(rate), axis_title(metric), extent(xs, 0.1), extent(ys, 0.1), right=margin)
    if base(metric) == "reconstruction":
        draw_equal_elbo(panel)
    front = pareto([(group.spread(rate).mean, group.spread(metric).mean) for group in groups])
    corners = [front[0]] + [p for a, b in zip(front, front[1:], strict=False) for p in ((b[0], a[1]), b)]
    panel.line(
        [(front[0][0], panel.y_range[1]), *corners, (panel.x_range[1], front[-1][1])], "front", tip="Pareto front"
    )
    digits = [decimals(groups, key) for key in (rate, metric)]
    for group in groups:
        x, y = group.spread(rate), group.spread(metric)
        for run in group.completed:
            if rate in run.metrics and metric in run.metrics and len(group.completed) > 1:
                panel.dot(run.metrics[rate], run.metrics[metric], "seed", group.number, size=2.2)
        if x.n > 1:
            panel.line([(x.mean - x.sd, y.mean), (x.mean + x.sd, y.mean)], "error", group.number)
            panel.line([(x.mean, y.mean - y.sd), (x.mean, y.mean + y.sd)], "error", group.number)
        values = [
            f"{base(k)} {format_spread(s, d, 'sd')}" for k, s, d in zip((rate, metric), (x, y), digits, strict=True)
        ]
        panel.dot(x.mean, y.mean, "mean", group.number, "\n".join([f"{group.number}  {group.label}", *values]))
    return panel.svg()


def draw_equal_elbo(panel: Panel) -> None:
    """Lines along which the ELBO, minus the sum of both axes, is the same."""
    (x0, x1), (y0, y1) = panel.x_range, panel.y_range
    values = steps(x0 + y0, x1 + y1, 5)
    for value, text in zip(values, tick_texts(values), strict=True):
        panel.line([(x0, value - x0), (x1, value - x1)], "iso")
        if y0 < value - x1 < y1:  # it leaves on the right
            panel.note(value - x1, f"elbo {text.replace('−', '+') if value < 0 else f'−{text}'}")


def pareto(points: list[Point]) -> list[Point]:
    """The points than which no other is smaller in one coordinate and not larger in the other, from left to right."""
    front: list[Point] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def costs(comparison: Comparison) -> list[str]:
    """What the time buys: the deciding metric against seconds of training, and the speed of every group."""
    panels = []
    seconds, speed = "train_seconds", "images_per_second"
    if comparison.has(seconds):
        for title, groups in classes(comparison, comparison.sort):
            both = [group for group in groups if group.values(seconds) and group.values(comparison.sort)]
            if both:
                panels.append(against_time(comparison, seconds, title, both))
    fast = [group for group in comparison.groups if group.values(speed)][:MAX_BARS]
    if fast:
        panels.append(speeds(comparison, speed, fast))
    return panels


def against_time(comparison: Comparison, seconds: str, title: str, groups: list[Group]) -> str:
    """The deciding metric against the seconds of training."""
    metric = comparison.sort
    xs = [value for group in groups for value in group.values(seconds).values()]
    ys = [value for group in groups for value in group.values(metric).values()]
    x_range = (0, max(xs) * 1.08)
    name = f"{base(metric)} against time" + (f" · {title}" if title else "")
    panel = Panel(name, "training (seconds per run)", axis_title(metric), x_range, extent(ys, 0.1))
    digits = {key: decimals(groups, key) for key in (metric, seconds)}
    for group in groups:
        for unit, value in group.values(metric).items():
            if unit in group.values(seconds):
                panel.dot(group.values(seconds)[unit], value, "seed", group.number, size=2.2)
        cells = [f"{base(k)} {format_cell(comparison, group, k, digits[k])}" for k in digits]
        tip = "\n".join([f"{group.number}  {group.label}", *cells])
        panel.dot(group.spread(seconds).mean, group.spread(metric).mean, "mean", group.number, tip)
    return panel.svg()


def speeds(comparison: Comparison, metric: str, groups: list[Group]) -> str:
    """A bar for the images per second of every group, with the single runs."""
    count = len(groups)
    values = [value for group in groups for value in group.values(metric).values()]
    names = [cut(f"{group.number}  {group.label}", 44) for group in reversed(groups)]
    panel = Panel(
        "images per second", "training images per second", "", (0, max(values) * 1.05), (-0.6, count - 0.4),
        y_names=names, height=max(160, 68 + 20 * count), width=780, left=260, css="broad",
    )  # fmt: skip
    for row, group in enumerate(reversed(groups)):
        found = group.spread(metric)
        tip = f"{group.number}  {group.label}\n{format_spread(found, 0, 'sd')} images per second"
        panel.bar((0, found.mean), (row - 0.32, row + 0.32), "bar", group.number, tip)
        for value in group.values(metric).values():
            panel.dot(value, row, "seed over", group.number, size=2)
    return panel.svg()
