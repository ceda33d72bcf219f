import json
import sys

import pytest

from vae_lab.runs.folder import RunFolder, folder_name

GOOD = ["beta4", "2026", "größe", "a b", "lr=1e-3,beta=4", "v1.2_final+x@y", "実験", "1e3", "true", "2026-01-01", 7]
BAD = [
    *("../../x", "/etc/x", "a/b", "..", ".hidden", "-rf", "a\0b", "a\nb", "", " a", "x" * 300, "ü" * 60, "a\\b"),
    *("$x", "~", "\u202eabc", "a\u2028b", "[/b]", "CON:", "*"),
]


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_are_kept(name):
    assert folder_name(name, "mnist_mlp") == str(name)


@pytest.mark.fault
@pytest.mark.parametrize("name", BAD)
def test_g5_names_that_could_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="run_name must begin with a letter or digit") as caught:
        folder_name(name, "mnist_mlp")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("options", "name"),
    [("mnist_mlp", "mnist_mlp"), ("mine/stripes_mlp", "mine-stripes_mlp"), ("../x_../../y", "x_..-..-y")],
)
def test_without_a_name_the_options_stand_there_in_one_piece(options, name):
    assert folder_name(None, options) == name
    assert "/" not in name


def test_the_status_says_how_each_start_was_made_and_of_which_images(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abc123def")
    run = RunFolder(tmp_path)
    for argv in (["vae-lab", "latent_dim=2", "note=a b", "key=abc123def"], ["/bin/__main__.py", "resume=x"]):
        monkeypatch.setattr(sys, "argv", argv)
        with run.recording():
            run.record_images("0123")
    status = json.loads((tmp_path / "status.json").read_text())
    commands = [start["command"] for start in status["times"]]
    assert commands == ["vae-lab latent_dim=2 'note=a b' key=***", "vae-lab resume=x"]
    assert (status["state"], status["images"]) == ("completed", "0123")
    assert all({"started", "ended", "commit"} <= start.keys() for start in status["times"])
