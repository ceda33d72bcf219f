"""In which settings runs differ: the columns by which they are grouped.

A group of the config is one column, named by its option (`model` is mlp or conv), although its options differ in many
settings; a setting of the group is a column of its own only where it differs within one option. A callback is such a
column too, named by its class.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vae_lab.compare.found import LOADER, Entry
from vae_lab.config.explain import did_you_mean
from vae_lab.config.nested import leaves
from vae_lab.config.roles import is_aside

ABSENT = "–"
FOLDER = "folder"  # the column that says where a run was found; only on request
PARTS = ("dataset", "model", "posterior", "loss", "objective", "prior", "optimizer", "optimizer.schedule")
Columns = dict[str, list[Any]]


def columns(entries: list[Entry], conf: Path) -> Columns:
    """Every setting and every chosen option, a value for each run; options first.

    Args:
        entries: the runs.
        conf: the folder of the config groups, which says what an option is called.
    """
    options = read_options(conf)
    names = list(dict.fromkeys(key for entry in entries for key in entry.settings))
    callbacks = {of_callback(key): None for key in names if key.startswith("callbacks.")}
    parts = {part: [option(entry.settings, part, options) for entry in entries] for part in (*PARTS, *callbacks)}
    found = {part: values for part, values in parts.items() if set(values) != {ABSENT}}
    found |= {key: [entry.settings.get(key, ABSENT) for entry in entries] for key in names if key not in found}
    return found | {FOLDER: [entry.source for entry in entries]}


def differing(entries: list[Entry], table: Columns) -> list[str]:
    """The columns that say in what the runs differ, without the seed and what does not concern the model.

    Runs without a config, which ended before it was written, do not count.
    """
    known = [i for i, entry in enumerate(entries) if entry.settings]
    kept: list[str] = []
    seen: set[tuple] = set()
    for key, values in table.items():
        texts = tuple(map(as_text, (values[i] for i in known)))
        if (
            len(set(texts)) < 2
            or key == FOLDER
            or is_aside(key)
            or follows_from_option(key, texts, known, table)
            or texts in seen
        ):
            continue  # what has the same values as another column is a copy of it
        seen.add(texts)
        kept.append(key)
    return kept


def follows_from_option(key: str, texts: tuple[str, ...], known: list[int], table: Columns) -> bool:
    """Whether a setting of a group is the same in all runs that have the same option of it."""
    parts = [of_callback(key), *reversed(PARTS)]
    part = next((part for part in parts if key.startswith(f"{part}.") and part in table), None)
    if part is None or key in PARTS:
        return False
    labels = [table[part][i] for i in known]
    return len(set(zip(labels, texts, strict=True))) == len(set(labels)) > 1 or "_target_" in key


def of_callback(key: str) -> str:
    """The callback that a setting such as `callbacks.checkpoints.monitor` is of."""
    return ".".join(key.split(".")[:2])


def as_text(value: Any) -> str:
    """A value as a person would write it on the command line, the same text for the same value."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))  # 1 and 1.0 are the same setting
    return json.dumps(value, default=str, sort_keys=True)


def read_options(conf: Path) -> dict[str, dict[str, tuple]]:
    """The classes that every option of a group names: group -> option -> their settings."""
    found: dict[str, dict[str, tuple]] = {}
    for part in PARTS:
        for path in sorted((conf / part.replace(".", "/")).glob("*.yaml")):
            content = yaml.load(path.read_text(), LOADER)
            found.setdefault(part, {})[path.stem] = targets(leaves(content if isinstance(content, dict) else {}), part)
    return found


def targets(settings: dict[str, Any], part: str, prefix: str = "") -> tuple:
    """The classes that a group of a config names, by their settings."""
    inner = [other[len(part) + 1 :] + "." for other in PARTS if other.startswith(f"{part}.")]
    named = {k[len(prefix) :]: v for k, v in settings.items() if k.startswith(prefix) and k.endswith("_target_")}
    return tuple(sorted((k, str(v)) for k, v in named.items() if not any(k.startswith(i) for i in inner)))


def option(settings: dict[str, Any], part: str, options: dict[str, dict[str, tuple]]) -> str:
    """The option of a group that a config has: by the name of its file, else by those of its classes."""
    classes = targets(settings, part, f"{part}.")
    if not classes:
        return "none" if part == "optimizer.schedule" and settings else ABSENT
    names = [name for name, named in options.get(part, {}).items() if named == classes]
    return names[0] if names else "+".join(dict.fromkeys(value.rpartition(".")[2] for _, value in classes))


def find_columns(names: list[str], table: Columns) -> list[str]:
    """The full names of columns, of which the last part is enough where it is the only one.

    Raises:
        ValueError: if there is none, or several.
    """
    return [find_name(name, list(table), "setting") for name in names]


def find_name(name: str, known: list[str], kind: str, separator: str = ".") -> str:
    """The known name that is meant by itself or by its last part.

    Raises:
        ValueError: naming what is near.
    """
    if name in known:
        return name
    found = [other for other in known if other.rpartition(separator)[2] == name]
    if len(found) > 1:
        plain = [other for other in found if not other.startswith(("objective.", "test/"))]
        found = plain if len(plain) == 1 else found
    if len(found) != 1:
        several = f", which could be {' or '.join(found)}" if found else did_you_mean(name, known)
        raise ValueError(f"none of the runs has the {kind} {name}{several}" if not found else f"{kind} {name}{several}")
    return found[0]


def order_of(values: list[Any]) -> list[str]:
    """The distinct values as text, numbers in their order, others in the order in which they come."""
    distinct = {as_text(value): value for value in values}
    numeric = [text for text, value in distinct.items() if is_number(value)]
    others = [text for text in distinct if text not in numeric]
    return sorted(numeric, key=lambda text: float(distinct[text])) + others


def is_number(value: Any) -> bool:
    """Whether a setting is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shorten(keys: list[str]) -> Callable[[str], str]:
    """A function that gives the last part of a key, or all of it where several share that."""
    last = [key.rpartition(".")[2] for key in keys]
    return lambda key: key.rpartition(".")[2] if last.count(key.rpartition(".")[2]) == 1 else key
