"""The example of docs/objectives.md does what it says."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from linear_gaussian import SHAPE, LinearGaussian

from vae_lab.__main__ import CONF
from vae_lab.data.batches import Batch
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO

TEXT = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
PYTHON, YAML = (re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)[1] for language in ("python", "yaml"))


def test_the_example_is_an_objective():
    names: dict = {}
    exec(PYTHON, names)
    settings = yaml.safe_load(YAML)
    assert settings.pop("_target_").endswith(".Hinge")
    torch.manual_seed(0)
    vae, batch, context = LinearGaussian().vae(2.0), Batch(torch.rand(8, *SHAPE)), Context(0, 8, "train")
    found = {}
    for margin in (settings["margin"], 0.0, 100.0):
        torch.manual_seed(1)
        found[margin] = names["Hinge"](margin)(vae, batch, context)
    torch.manual_seed(1)
    expected = ELBO(1.0, 0, 0.0)(vae, batch, context)
    assert found[0.0] == expected
    assert found[100.0]["loss"] == expected["reconstruction"]
    assert found[3.0]["loss"].item() == pytest.approx(expected["loss"].item() - 3, abs=1e-5)


def test_every_option_has_a_row():
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE))))
    assert rows >= {path.stem for path in (CONF / "objective").glob("*.yaml")}
