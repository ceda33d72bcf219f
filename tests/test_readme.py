"""What the README shows works as it stands there."""

import re
import sys
from pathlib import Path

import pytest
from composed import composed

from vae_lab.__main__ import CONF, main
from vae_lab.config.help import groups

TEXT = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].split()[1:]
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if re.match(r"vae-lab (?!eval |compare |export |ls|play |reproduce |resume=)", line) and "--" not in line
]
TINY = ["logger=none", "callbacks.gallery=null", "trainer=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]


def test_there_are_commands():
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_composes(words):
    """Of a sweep, its first job."""
    overrides = [re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in words if word != "-m"]
    composed(*overrides)


def test_the_table_of_groups_is_that_of_conf():
    """A row for each group names its options and those of the groups below it; Hydra's own are in docs/sweeps.md."""
    table = TEXT[TEXT.index("| group |") :].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` (\|.*)$", table, re.MULTILINE))
    for group, options in groups(CONF).items():
        if not group.startswith("hydra/"):
            named = re.findall(r"`(?:[\w/]+=)?(\w+)`", rows[group.partition("/")[0]])
            assert set(options) <= set(named), group


def test_nothing_is_left_to_fill_in():
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"VAE_LAB_\w+|WANDB_\w+|RUN_DIR|PYTHONPATH", "", TEXT))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The files of the section on adding parts, written where it says."""
    folder = tmp_path_factory.mktemp("parts")
    section = TEXT[TEXT.index("## Add a part") : TEXT.index("## Speed")]
    pattern = r"`(my_package/\w+\.py)` and\s+`(my_conf/\w+/\w+\.yaml)`:\n\n```python\n(.*?)```\n\n```yaml\n(.*?)```"
    found = re.findall(pattern, section, re.DOTALL)
    assert len(found) == 4
    for python, yaml, *contents in found:
        for name, content in zip((python, yaml), contents, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
    return folder


# What is trained together, and how the README shows it.
SHOWN = {
    "loss=logistic objective=absolute": ["loss=logistic", "objective=absolute"],
    "model=shallow dataset=stripes": ["model=shallow dataset=stripes"],
}


@pytest.mark.slow
def test_added_parts_train(parts, monkeypatch, capsys):
    monkeypatch.chdir(parts)
    monkeypatch.syspath_prepend(parts)
    for options, shown in SHOWN.items():
        assert all(f"vae-lab --config-dir my_conf {command}\n" in TEXT for command in shown)
        monkeypatch.setattr(sys, "argv", ["vae-lab", "--config-dir", "my_conf", *options.split(), *TINY])
        monkeypatch.setenv("VAE_LAB_TRUST", "my_package")
        main()
        monkeypatch.delenv("VAE_LAB_TRUST")
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "is not trusted" in capsys.readouterr().err
    assert len(list(parts.glob("outputs/2*/*/result.json"))) == len(SHOWN)
