"""Learning curves: each validation metric against the step, for every group and each of its runs."""

import math

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.found import Entry
from vae_lab.compare.groups import Group, axis_title
from vae_lab.compare.panels import classes, titled
from vae_lab.compare.svg import Panel, Point, extent

MAX_POINTS = 120  # of a curve
MAX_LINES = 60  # groups whose single runs are drawn too
BEGIN = 0.12  # of the training, which may lie outside of the axes


def learning_curves(comparison: Comparison) -> list[str]:
    """Each validation metric against the step: the mean over a group's runs, their range, and every run."""
    metrics = [metric for metric in comparison.metrics if metric.startswith("val/")]
    panels = []
    for metric in metrics:
        for title, groups in classes(comparison, metric):
            histories = [(g, run, run.history[metric]) for g in groups for run in g.runs if metric in run.history]
            histories = [(group, run, thin(points)) for group, run, points in histories]
            if any(len(points) > 1 for *_, points in histories):
                panels.append(learning_curve(metric, title, histories))
    return panels


def thin(points: list[Point]) -> list[Point]:
    """Finite points, evenly spaced where there are too many; the last one stays."""
    stride = math.ceil(len(points) / MAX_POINTS)
    kept = [p for i, p in enumerate(points) if (len(points) - 1 - i) % stride == 0]
    return [point for point in kept if math.isfinite(point[1])]


def learning_curve(metric: str, title: str, histories: list[tuple[Group, Entry, list[Point]]]) -> str:
    """One panel; the first steps may lie outside, so that what follows can be seen."""
    last = max(x for *_, points in histories for x, _ in points[-1:])
    seen = [y for *_, points in histories for x, y in points if x > BEGIN * last] or [0.0]
    panel = Panel(titled(metric, title), "step", axis_title(metric), (0, last * 1.02), extent(seen))
    by_group: dict[int, list[tuple[Entry, list[Point]]]] = {}
    for group, run, points in histories:
        by_group.setdefault(group.number, []).append((run, points))
    names = {group.number: group.label for group, *_ in histories}
    for number, runs in by_group.items():
        for run, points in runs:
            css = "run" if run.state == "completed" else "run unfinished"
            if points and (len(by_group) <= MAX_LINES or run.state != "completed") and len(runs) > 1:
                panel.line(points, css, number, f"{run.name} ({run.state})")
        draw_mean(panel, number, names[number], runs)
    return panel.svg()


def draw_mean(panel: Panel, number: int, name: str, runs: list[tuple[Entry, list[Point]]]) -> None:
    """The mean and the range of the completed runs of a group, where all of them have a value."""
    done = [dict(points) for run, points in runs if run.state == "completed" and points]
    alone = "" if done else " unfinished"
    done = done or [dict(points) for _, points in runs if points][:1]
    common = [x for x in done[0] if all(x in points for points in done)] if done else []
    if not common:
        return
    if len(done) > 1 and len(common) > 1:
        low, high = ([(x, pick(points[x] for points in done)) for x in common] for pick in (min, max))
        panel.band(low, high, number)
    mean = [(x, sum(points[x] for points in done) / len(done)) for x in common]
    tip = f"{number}  {name}\n{len(done)} run{'s' * (len(done) > 1)}{', unfinished' if alone else ''}"
    panel.line(mean, f"mean{alone}", number, tip)
