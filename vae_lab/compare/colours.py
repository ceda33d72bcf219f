"""What colours stand for in the report: the groups, or the values of a setting."""

from vae_lab.compare.comparison import Comparison
from vae_lab.compare.differences import ABSENT, is_number, order_of
from vae_lab.compare.panels import as_value, classes

NUM_COLOURS = 7  # that everybody can tell apart; further groups share a grey
NUM_SHADES = 7  # of the scale for numbers
Mode = list[tuple[str, list[int], str]]  # a name, the numbers of groups, a CSS colour


def colour_modes(comparison: Comparison, num_colours: int = NUM_COLOURS) -> dict[str, Mode]:
    """What colours can stand for: the groups or one setting; each a list of a name, the groups and a CSS colour."""
    groups = comparison.groups
    ranked = [(f"{g.number}  {g.label}", [g.number], f"var(--c{i})") for i, g in enumerate(groups[:num_colours])]
    rest = [group.number for group in groups[num_colours:]]
    modes = {"group": [*ranked, *([(f"{len(rest)} more", rest, "var(--other)")] if rest else [])]}
    for key in comparison.keys:
        texts = order_of([as_value(comparison, key, group) for group in groups])
        if not 1 < len(texts) <= 24:
            continue
        numeric = all(is_number(as_value(comparison, key, g)) or g.settings[key] == ABSENT for g in groups)
        legend = []
        for i, text in enumerate(texts):
            ramp = numeric and len(texts) > 2
            colour = f"var(--r{round(i / (len(texts) - 1) * (NUM_SHADES - 1))})" if ramp else f"var(--c{i})"
            members = [group.number for group in groups if group.settings[key] == text]
            legend.append((text, members, colour if ramp or i < num_colours else "var(--other)"))
        modes[key] = legend
    return modes


def default_mode(comparison: Comparison, modes: dict, num_colours: int = NUM_COLOURS) -> str:
    """The groups where there are few, else the setting that explains most of the deciding metric."""
    if len(comparison.groups) <= num_colours:
        return "group"
    means: dict[int, float] = {}
    for _, members in classes(comparison, comparison.sort):  # what cannot be compared must not count as an effect
        own = {g.number: g.spread(comparison.sort).mean for g in members if g.values(comparison.sort)}
        means |= {number: value - sum(own.values()) / len(own) for number, value in own.items()}

    def explained(key: str) -> float:
        parts = [[means[n] for n in members if n in means] for _, members, _ in modes[key]]
        return sum(sum(part) ** 2 / len(part) for part in parts if part)

    return max((key for key in modes if key != "group"), key=explained, default="group")
