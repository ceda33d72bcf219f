"""docs/reliability.md names tests that exist."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| ([A-H]\d+)? \|.*\| (.*) \|$", PAGE, re.MULTILINE)


def test_every_row_of_the_page_is_there_once():
    names = [name for name, _ in ROWS if name]
    expected = {"A": 7, "B": 11, "C": 13, "D": 7, "E": 5, "F": 5, "G": 6, "H": 6}
    assert sorted(names) == sorted(f"{group}{n + 1}" for group, count in expected.items() for n in range(count))


@pytest.mark.parametrize(("row", "held_by"), ROWS, ids=[name or "cache" for name, _ in ROWS])
def test_the_tests_of_a_row_exist(row, held_by):
    file, patterns = None, 0
    for name in re.findall(r"`([^`]+)`", held_by):
        if name.endswith(".py"):
            file = (TESTS / "faults" / name).resolve()
            tests = re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
            continue
        patterns += 1
        assert any(fnmatch(test, name) for test in tests), f"no {name} in {file}"
    assert patterns
