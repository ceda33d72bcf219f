"""What the charts of the report share: which groups fit into one panel, and what it is called."""

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.differences import as_text, is_number
from vae_lab.compare.groups import Group
from vae_lab.compare.svg import cut
from vae_lab.compare.yardsticks import base


def classes(comparison: Comparison, metric: str) -> list[tuple[str, list[Group]]]:
    """The groups that can be compared in a metric, together; each with a title, empty where that is all of them."""
    found: dict = {}
    for group in comparison.groups:
        if any(metric in run.history or metric in run.metrics for run in group.runs):
            found.setdefault(group.yardstick(metric), []).append(group)
    found.pop(None, None)
    if len(found) < 2:
        return [("", groups) for groups in found.values()]
    return [(what_is_common(comparison, groups), groups) for groups in found.values()]


def what_is_common(comparison: Comparison, groups: list[Group]) -> str:
    """The settings that decide what can be compared, as far as all of some groups share them and others do not."""
    words = []
    for key in comparison.by:
        own, all_of_them = ({group.settings[key] for group in of} for of in (groups, comparison.groups))
        if len(own) == 1 < len(all_of_them) and (key == "loss" or key.split(".")[0] == "dataset"):
            words.append(f"{key.rpartition('.')[2]}={min(own)}")
    return cut(", ".join(words), 44) or f"groups {', '.join(str(group.number) for group in groups[:6])}"


def titled(metric: str, title: str) -> str:
    """The title of a panel."""
    return f"{base(metric)} · {title}" if title else base(metric)


def as_value(comparison: Comparison, key: str, group: Group):
    """The setting of a group as it stands in the config, so that numbers sort as numbers."""
    values = comparison.table[key]
    return next((v for v in values if as_text(v) == group.settings[key] and is_number(v)), group.settings[key])
