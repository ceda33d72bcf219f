"""A room imports only what the house allows it."""

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent / "vae_lab"
ROOMS = {  # each with the rooms it may import; it may import what those may, too
    "models": (),
    "objectives": ("models",),
    "metrics": ("models",),
    "data": (),
    "config": ("models",),
    "runs": ("config", "models"),
    "loggers": ("config", "runs"),
    "training": ("models", "objectives", "metrics", "data", "runs", "loggers", "config"),
    "evaluation": ("training", "runs", "metrics"),
    "sweep": ("config", "runs", "training"),
    "compare": ("config", "runs", "metrics.catalogue"),
    "reproduce": ("training", "evaluation"),
    "play": ("runs", "evaluation"),
}
# A file that may import more: a strip of images is drawn by the model, so that torch comes with it.
MORE = {"compare/images.py": ("data", "training", "evaluation")}


def allowed(room: str) -> set[str]:
    """A room, what it may import, and what those may."""
    return {room, "errors"}.union(*map(allowed, ROOMS.get(room, ())))


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, also within functions: `metrics.catalogue` for `vae_lab.metrics`'s."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("vae_lab.") for name in names if name.startswith("vae_lab.")}


FILES = {path.relative_to(HOUSE).as_posix(): imported(path) for path in sorted(HOUSE.rglob("*.py"))}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_house_allows(room):
    files = {file: names for file, names in FILES.items() if file.startswith(f"{room}/")}
    assert files
    for file, names in files.items():
        may = tuple(f"{place}." for place in allowed(room).union(MORE.get(file, ())))
        wrong = {(file, name) for name in names if not name.startswith(may)}
        assert not wrong, f"{room} may import {', '.join(sorted(allowed(room)))} only"


def test_every_room_is_in_the_table():
    assert {file.split("/")[0] for file in FILES if "/" in file} == set(ROOMS)
    assert FILES["errors.py"] == set()
