"""What was probably meant. How whole command lines are answered is in `faults/test_config.py`."""

import pytest
from hydra.errors import HydraException

from vae_lab.config.explain import did_you_mean, explain, refuse_flags, setting_names

KEYS = ["seed", "latent_dim", "model", "model.hidden_dims", "dataset.channels", "model.channels", "trainer.max_epochs"]


@pytest.mark.parametrize(
    ("name", "keys", "meant"),
    [
        ("SEED", KEYS, "; did you mean seed?"),
        ("dataset.chanels", KEYS, "; did you mean dataset.channels?"),
        ("chanels", KEYS, "; did you mean dataset.channels or model.channels?"),
        ("", KEYS, ""),
        ("key", [f"{group}.key" for group in "abcdef"], "; did you mean a.key or b.key or c.key?"),
        ("key", [], ""),
    ],
)
def test_the_nearest_name_is_found_in_any_group_and_first_in_its_own(name, keys, meant):
    assert did_you_mean(name, keys) == meant


def test_settings_that_only_hand_on_another_are_not_suggested():
    raw = {"a": 1, "b": {"_target_": "x", "c": "${a}", "d": {"e": None}}, "f": "???"}
    assert list(setting_names(raw)) == ["a", "b", "b.d", "b.d.e", "f"]


@pytest.mark.parametrize("argument", ["--latent-dim=8", "--epochs", "hydra.run.dir="])
def test_what_hydra_would_not_understand_is_refused(argument):
    with pytest.raises(ValueError, match=r"latent_dim=8|epochs=VALUE|hydra\.run\.dir=VALUE"):
        refuse_flags(["seed=1", argument])
    refuse_flags(["--multirun", "-m", "--cfg", "job", "--config-dir=x", "--help", "a=--b", "~c", "hydra.run.dir=x"])


@pytest.mark.parametrize("drawn", ["optimizer.lr=interval(0.1,1)", "latent_dim=int(tag(log, interval(2,64)))"])
def test_what_is_drawn_from_without_a_search_is_named(drawn):
    error = HydraException("BasicSweeper does not support sweep type : INTERVAL_SWEEP")
    assert explain(error, ["-m", "seed=0,1", drawn]).startswith(f"{drawn} is drawn from in a search: add hydra/sweeper")
