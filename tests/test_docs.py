"""What the README and docs/ show works as it stands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from composed import composed

from vae_lab.__main__ import CONF, main
from vae_lab.compare.command import compare_runs
from vae_lab.config.help import groups
from vae_lab.errors import RunError
from vae_lab.evaluation.evaluate import evaluate_runs
from vae_lab.runs.export import export_run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PARTS = (ROOT / "docs/parts.md").read_text()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
LINES = [
    line
    for path in PAGES
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)
    for line in block.splitlines()
    if "--" not in line
]
TRAINING = {
    tuple(shlex.split(line, comments=True)[1:])
    for line in LINES
    if re.match(r"vae-lab (?!eval |compare |export |play |ls|reproduce|resume)", line)
}
CALLS = {"eval": evaluate_runs, "compare": compare_runs, "export": export_run}
TINY = ["logger=none", "callbacks.gallery=null", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]


@pytest.mark.parametrize("words", sorted(TRAINING), ids=" ".join)
def test_every_run_composes(words):
    """Of a sweep, its first job; what a search draws is left out."""
    assert len(TRAINING) >= 20
    overrides = [re.sub(r"=([^\[,(]+),.*", r"=\1", word) for word in words if word != "-m" and "interval(" not in word]
    composed(*overrides)


@pytest.mark.parametrize("word", CALLS)
def test_every_command_lacks_only_its_folder(word):
    lines = [line for line in LINES if re.match(rf"vae-lab[ -]{word} ", line)]
    assert lines
    for line in lines:
        settings = [text for text in shlex.split(line, comments=True) if "=" in text]
        with pytest.raises(RunError, match="nowhere"):
            CALLS[word](["nowhere", *settings])


def test_the_table_of_groups_is_that_of_conf():
    """A row for each group names its options and those of the groups below it; Hydra's own are in docs/sweeps.md."""
    table = README[README.index("| group |") :].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*)$", table, re.MULTILINE))
    for group, options in groups(CONF).items():
        if not group.startswith("hydra/"):
            named = re.findall(r"`(?:[\w/]+=)?(\w+)`", rows[group.partition("/")[0]])
            assert set(options) <= set(named), group


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"VAE_LAB_\w+|WANDB_\w+|RUN_DIR|PYTHONPATH", "", README))


@pytest.mark.slow
def test_every_block_of_the_python_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL):
        exec(block, names)
    assert len(list(tmp_path.glob("outputs/2*/*/result.json"))) == 3
    assert names["better"].shape == (16, 1, 8, 8)
    assert names["bound"].shape == (32,)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The files of docs/parts.md, written where it says."""
    folder = tmp_path_factory.mktemp("parts")
    pattern = r"`(my_package/\w+\.py)` and\s+`(my_conf/\w+/\w+\.yaml)`:\n\n```python\n(.*?)```\n\n```yaml\n(.*?)```"
    found = re.findall(pattern, PARTS, re.DOTALL)
    assert len(found) == 7
    for python, yaml, *contents in found:
        for name, content in zip((python, yaml), contents, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
    return folder


# What is trained together, and how the page shows it.
SHOWN = {
    "loss=logistic objective=absolute": ["loss=logistic", "objective=absolute"],
    "model=shallow dataset=stripes posterior=laplace prior=wide metrics=mae": [
        "model=shallow dataset=stripes",
        "posterior=laplace prior=wide metrics=mae",
    ],
}


@pytest.mark.slow
def test_added_parts_train(parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    monkeypatch.syspath_prepend(parts)
    for options, shown in SHOWN.items():
        assert all(f"vae-lab --config-dir my_conf {command}\n" in PARTS for command in shown)
        monkeypatch.setattr(sys, "argv", ["vae-lab", "--config-dir", "my_conf", *options.split(), *TINY])
        monkeypatch.setenv("VAE_LAB_TRUST", "my_package")
        main()
        monkeypatch.delenv("VAE_LAB_TRUST")
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "is not trusted" in capsys.readouterr().err
    results = [path.read_text() for path in parts.glob("outputs/2*/*/result.json")]
    assert len(results) == len(SHOWN)
    assert any("val/mae" in result and "val/mean_scale" in result for result in results)
