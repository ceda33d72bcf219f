"""What is printed at the end can be typed as it stands."""

import shlex

import pytest
from omegaconf import OmegaConf

from vae_lab.training import result


@pytest.mark.parametrize(
    ("trainer", "longer"),
    [
        ({"max_epochs": 3, "max_steps": -1}, ["trainer.max_epochs=6"]),
        ({"max_epochs": 30, "max_steps": 100}, ["trainer.max_steps=200"]),
        ({"max_epochs": -1, "max_steps": -1}, []),  # ended by time
    ],
)
def test_the_end_says_where_everything_lies_and_what_to_type_next(trainer, longer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs [/b]"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "training.gif").touch()
    values = {"val/elbo": -104.25, "steps": 1234, "best_value": 1.0, "lr": None}
    result.print_result(folder, values, result.next_commands(folder, OmegaConf.create(trainer)))

    table, lines = capsys.readouterr().out.partition("run  ")[::2]
    assert "-104.25 │ nats per image" in table
    assert "1,234 │ steps" in table
    assert "best_value" not in table
    run, picture, *following = lines.splitlines()
    assert run.strip() == "my runs [/b]"
    assert picture == "picture  my runs [/b]/pictures/training.gif"
    typed = [shlex.split(line.removeprefix("next").strip()) for line in following]
    assert [words[-2 - len(longer) * bool(i) :][-1 - (i * len(longer)) :] for i, words in enumerate(typed)] == [
        ["my runs [/b]"],
        ["resume=my runs [/b]", *longer],
    ]
    assert "eval" in typed[0]
