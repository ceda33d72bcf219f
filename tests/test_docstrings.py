"""A docstring that names arguments names those that there are; of functions ruff says so (D417, DOC102)."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vae_lab"


def test_a_class_names_the_arguments_of_its_constructor():
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and "Args:\n" in (docstring := ast.get_docstring(node) or ""):
                section = docstring.partition("Args:\n")[2].partition("\n\n")[0]
                named = re.findall(r"^    \*{0,2}(\w+)(?: \(.*\))?:", section, re.MULTILINE)
                assert sorted(named) == sorted(parameters(node)), f"{path.name}: {node.name}"
                checked += 1
    assert checked


def parameters(node: ast.ClassDef) -> list[str]:
    """The arguments of a constructor; the fields of a class without one."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            args = member.args
            both = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
            return [argument.arg for argument in both if argument][1:]
    return [member.target.id for member in node.body if isinstance(member, ast.AnnAssign)]
