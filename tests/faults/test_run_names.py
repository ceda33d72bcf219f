"""A run's name becomes a part of its folder's name, and leads nowhere else."""

import pytest
from command import TINY

pytestmark = pytest.mark.fault


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "/etc/x", "a/b", "..", ".", ".hidden", "-x", "a\nb", "a\x00b", "x" * 300, "ä" * 60, "", " "),
        *("a\\b", "~", "$HOME", "a\tb", "\u202eabc", "a\u2028b", "[/b]", "${oc.env:HOME}", "CON:", "*"),
    ],
)
def test_g5_a_bad_name_is_refused_and_nothing_is_written(name, tmp_path, command, monkeypatch):
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    quoted = name.replace("\\", "\\\\").replace("'", "\\'")
    code, message = command("vae-lab", *TINY, f"run_name='{quoted}'")
    assert code == 2, message
    assert "run_name" in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["x", "beta=0.5", "größe", "実験 1", "a.b-c_d", "1e3", "true", "2026-01-01"])
def test_g5_a_good_name_is_in_the_folders_name(name, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = command("vae-lab", *TINY, f"run_name='{name}'")
    assert code == 0, message
    (folder,) = (path.parent for path in tmp_path.glob("outputs/*/*/result.json"))
    assert f"_{name}_" in folder.name
    assert folder.parents[2] == tmp_path


def test_g5_a_groups_option_does_not_steer_the_folder(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("../model/mlp", "./mlp", "/mlp", "../../conf/model/mlp"):
        command("vae-lab", *TINY, f"model={option}")  # refused, or taken for what it leads to
        assert all(path.parts[-4] == "outputs" for path in tmp_path.rglob("status.json"))
        assert {path.name for path in tmp_path.iterdir()} <= {"outputs"}


def test_g5_a_folder_whose_name_looks_like_markup_is_printed_as_it_is(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = command("vae-lab", *TINY, "hydra.run.dir='runs/a[/b]'")
    assert code == 0
    assert "runs/a[/b]/result.json" in command.printed
