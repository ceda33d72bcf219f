"""A run's name becomes a part of its folder's name, and leads nowhere else."""

import pytest
from command import TINY

pytestmark = pytest.mark.fault


BAD = ["../../x", "a\nb", "${oc.env:HOME}"]  # ../runs/test_folder.py has more


@pytest.mark.parametrize("name", BAD)
def test_g5_a_bad_name_is_refused_and_nothing_is_written(name, tmp_path, command, monkeypatch):
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    code, message = command("vae-lab", *TINY, f"run_name='{name}'")
    assert code == 2, message
    assert "run_name" in message
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not list(folder.iterdir())


def test_g5_a_good_name_is_in_the_folders_name(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = command("vae-lab", *TINY, "run_name='実験 beta=0.5'")
    assert code == 0, message
    assert len(list(tmp_path.glob("outputs/*/*_実験 beta=0.5_*/result.json"))) == 1


@pytest.mark.slow
def test_g5_a_groups_option_does_not_steer_the_folder(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("../model/mlp", "/mlp"):
        command("vae-lab", *TINY, f"model={option}")  # refused, or taken for what it leads to
        assert all(path.parts[-4] == "outputs" for path in tmp_path.rglob("status.json"))
        assert {path.name for path in tmp_path.iterdir()} <= {"outputs"}
