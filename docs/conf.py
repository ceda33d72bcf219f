"""The documentation site, by `make docs`. What is said in conf/, docstrings or examples/ is taken from there."""

import ast
import re
import tomllib
from itertools import dropwhile, takewhile
from pathlib import Path

import jupytext
import yaml

from vae_lab.config.help import CONF, groups
from vae_lab.config.instantiate import targets

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "vae_lab"
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
nitpicky = True
# Other libraries, whose sites are not looked at, and the only argument that no user gives.
nitpick_ignore_regex = [("py:.*", r"(?!vae_lab\b).*|vae_lab\.compare\.comparison\.Comparison")]
default_role = "code"  # of `words` in docstrings
add_module_names = False
autodoc_member_order = "bysource"
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"vae_lab {release}"
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["site.css"]
html_css_files = ["site.css"]

PLACES = {  # of what lies outside of docs/
    r"README\.md": "index.md",
    r"CONTRIBUTING\.md": "building.md",
    r"CHANGELOG\.md": "changelog.md",
    r"benchmarks/README\.md": "speed.md#benchmarks",
    r"benchmarks/results/h200\.md": "speed.md#on-a-gpu",
    r"vae_lab/(\w+)/\w+\.py": r"building.md#\1",
}


def docstring(path: Path) -> str:
    """The docstring of a module as Markdown: its tables of names become lists."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.sub(r"^(\w[\w, ]*\b/?) {2,}(?=\S)", r"- `\1`: ", text, flags=re.MULTILINE)


def option(name: str, path: Path, seen: set[str]) -> str:
    """An option of a group: its comment, its file, and the classes that the file names."""
    lines = path.read_text().splitlines()
    said = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    settings = "\n".join(dropwhile(lambda line: line.startswith("#"), lines))
    parts = [f"## `{name}`", said.removeprefix("@package _global_ ")]
    if content := yaml.safe_load(settings):
        parts.append(f"```yaml\n{settings}\n```")
    for target in dict.fromkeys(target for _, target in targets(content) if target.startswith("vae_lab.")):
        is_new = target not in seen
        parts.append(
            f"```{{eval-rst}}\n.. autoclass:: {target}\n```" if is_new else f"It names {{py:class}}`~{target}`."
        )
        seen.add(target)
    return "\n\n".join(filter(None, parts))


def pages() -> dict[str, str]:
    """The pages that are made: one for each group of the config, and one for each example."""
    table = (ROOT / "README.md").read_text().partition("| group |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", table, re.MULTILINE))
    made: dict[str, list[str]] = {}
    seen: set[str] = set()  # classes that a page before has
    for group, options in groups(CONF).items():
        top = group.partition("/")[0]
        head = rows.get(top, "what starts and searches, see [Sweeps](docs/sweeps.md)").replace("](docs/", "](../")
        page = made.setdefault(top, [f"# {top}", f"What it holds: {head}."])
        page += [option(f"{group}={name}", CONF / group / f"{name}.yaml", seen) for name in options]
    for path in sorted(CONF.glob("*/shared/*.yaml")):
        content = f"```yaml\n{path.read_text()}```"
        made[path.parent.parent.name].insert(2, f"## `{path.stem}`\n\nKeys of every option.\n\n{content}")
    found = {f"groups/{group}": "\n\n".join(page) for group, page in made.items()}
    for path in sorted(ROOT.glob("examples/*.py")):
        cells = jupytext.read(path).cells
        texts = [cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in cells]
        found[f"notebooks/{path.stem}"] = "\n\n".join(texts)
    return found


def write_pages(app):
    """Write those that are not there as they should be."""
    made = {DOCS / f"{name}.md": f"{text}\n" for name, text in pages().items()}
    for path in {*DOCS.glob("groups/*"), *DOCS.glob("notebooks/*")} - made.keys():
        path.unlink()
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def take_in(app, path, page, content):
    """An included module is its docstring; an included page has links as seen from here, also of its groups."""
    if path.suffix == ".py":
        content[0] = docstring(DOCS / path)
        return
    text = re.sub(r"\]\((?!https?:|#)", f"]({path.parent.as_posix()}/", content[0]).replace("](../docs/", "](")
    content[0] = re.sub(r"^\| `(\w+)` \|(?= `)", r"| [`\1`](groups/\1.md) |", text, flags=re.MULTILINE)
    lead(app, page, content)


def lead(app, page, content):
    """A link to what lies outside of docs/ leads to the page that has it in."""
    for path, target in PLACES.items():
        content[0] = re.sub(rf"\]\(\.\./{path}", rf"]({target}", content[0])


def as_text(app, what, name, found, options, lines):
    """The stars and bars of a docstring are those of equations; it has no markup but sections and `backticks`."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        parts[::2] = (re.sub(r"[*|]|(?<=\w)_(?!\w)|(?<=\b[A-Z])\.$", r"\\\g<0>", part) for part in parts[::2])
        lines[i] = "".join(parts)


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_text, priority=400)  # before napoleon, whose marks are marks
    app.connect("builder-inited", write_pages)
    app.connect("include-read", take_in)
    app.connect("source-read", lead)
