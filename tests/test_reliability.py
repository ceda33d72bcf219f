"""docs/reliability.md names tests that exist."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"^\| (?:([A-H]\d+) )?\|.*\| (`.*) \|$", PAGE, re.MULTILINE)


def test_every_row_of_the_page_is_there_once():
    names = [name for name, _ in ROWS if name]
    expected = {"A": 8, "B": 11, "C": 12, "D": 7, "E": 5, "F": 5, "G": 6, "H": 6}
    assert sorted(names) == sorted(f"{group}{n + 1}" for group, count in expected.items() for n in range(count))


@pytest.mark.parametrize(("row", "held_by"), ROWS, ids=[name or held_by for name, held_by in ROWS])
def test_the_tests_of_a_row_exist(row, held_by):
    file, patterns = None, 0
    for name in re.findall(r"`([^`]+)`", held_by):
        if name.endswith(".py"):
            file = (TESTS / "faults" / name).resolve()
            tests = marked(file)
            continue
        patterns += 1
        found = [is_fault for test, is_fault in tests.items() if fnmatch(test, name)]
        assert found, f"no {name} in {file}"
        assert all(found), f"not all of {name} in {file} are part of make test-faults"
    assert patterns


def marked(file: Path) -> dict[str, bool]:
    """The tests of a file, and whether they have the marker `fault`."""
    tree = ast.parse(file.read_text())
    marks = [ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)
             and ast.unparse(node.targets[0]) == "pytestmark"]  # fmt: skip
    of_all = "mark.fault" in " ".join(marks)
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {test.name: of_all or "mark.fault" in " ".join(map(ast.unparse, test.decorator_list)) for test in tests}
