"""The command line of the small commands."""

from pathlib import Path

import pytest

from vae_lab.config.arguments import expand_home, flags_last, read_arguments

DEFAULTS = {"sort": None, "by": None, "open": False, "images": True, "most": 12, "kind": "sd"}
ALLOWED = {"most": range(1, 100), "kind": ("sd", "ci")}


@pytest.mark.parametrize(
    ("arguments", "folders", "settings"),
    [
        ([], [], {}),
        (["a", "sort=x", "b"], ["a", "b"], {"sort": "x"}),
        (["a", "--sort", "val/mse", "--by=x,y"], ["a"], {"sort": "val/mse", "by": "x,y"}),
        (["--open", "a", "--images", "false"], ["a"], {"open": True, "images": False}),
        (["--sort", "-val/mse", "--by", "a=b"], [], {"sort": "-val/mse", "by": "a=b"}),
        (["most=3", "--open"], [], {"most": 3, "open": True}),
    ],
)
def test_folders_and_settings(arguments, folders, settings):
    assert read_arguments(arguments, DEFAULTS, allowed=ALLOWED) == (list(map(Path, folders)), DEFAULTS | settings)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--sort"], "--sort needs a value"),
        (["--sort", "by=x"], "--sort needs a value"),
        (["--by", "--open"], "--by needs a value"),
        (["sort="], "sort is empty; write sort=VALUE"),
        (["x=1"], "there is no setting x=1; see vae-lab-it --help"),
        (["--what"], "there is no setting --what; see vae-lab-it --help"),
        (["open=1"], "open must be true or false, got '1'"),
        (["most=many"], "most must be a whole number, got 'many'"),
        (["most=[1"], "most must be a whole number, got '[1'"),
        (["most=100"], "most must be a whole number in [1, 99], got 100"),
        (["kind=x"], "kind must be one of sd, ci, got 'x'"),
    ],
)
def test_what_is_wrong_is_named(arguments, problem):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_arguments(arguments, DEFAULTS, "vae-lab-it: does it.", ALLOWED)
    assert str(caught.value) == problem


def test_a_folder_may_have_any_name_and_help_ends_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("lr=1").mkdir()
    assert read_arguments(["lr=1"], DEFAULTS)[0] == [Path("lr=1")]
    with pytest.raises(SystemExit) as stop:
        read_arguments(["a", "--help"], DEFAULTS, "vae-lab-it: does it.")
    assert not stop.value.code
    assert capsys.readouterr().out == "vae-lab-it: does it.\n"


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    expanded = {"data_root=~/pics": "/pics", "data_root=~": "", "+dataset.root=~/a,~/b": "/a,/home/me/b"}
    for argument, end in expanded.items():
        assert expand_home(argument) == argument.partition("~")[0] + "/home/me" + end
    for argument in ("~trainer.max_time", "data_root=/a~/b", "data_root=a~", "data_root=~other/pics"):
        assert expand_home(argument) == argument


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ("seed=1 -m lr=1,2", "seed=1 lr=1,2 -m"),
        ("-m --config-dir own model=mlp ~trainer.max_time", "model=mlp ~trainer.max_time -m --config-dir own"),
        ("seed=1 --config-dir=own model=mlp", "seed=1 model=mlp --config-dir=own"),
        ("--cfg job seed=1", "seed=1 --cfg job"),
        ("-m word seed=1", "word seed=1 -m"),
    ],
)
def test_flags_may_stand_between_settings(typed, given):
    assert " ".join(flags_last(typed.split())) == given
