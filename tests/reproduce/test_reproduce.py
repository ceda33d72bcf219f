"""Targets: their closed forms are right, their recipes compose, and the command says PASS or FAIL."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from composed import composed
from scipy.stats import multivariate_normal

from vae_lab.__main__ import CONF
from vae_lab.config.check import check_settings
from vae_lab.reproduce import closed_forms, command
from vae_lab.reproduce.command import TARGETS, TIERS, page, read_record, reproduce_targets
from vae_lab.reproduce.target import COMMON, Check, Target
from vae_lab.training.build import READERS

DOCS = CONF.parent / "docs"


@pytest.fixture(scope="module")
def pixels():
    """Bytes (N, P) that fill a few directions more than others."""
    generator = np.random.default_rng(0)
    mixed = generator.standard_normal((500, 3)) @ generator.standard_normal((3, 6)) + generator.standard_normal(
        (500, 6)
    )
    return (128 + 100 * mixed).clip(0, 255).astype(np.uint8)


def test_the_best_elbo_is_the_density_of_principal_components(pixels):
    """With fewer latents than pixels, on images that the components are not of."""
    components, others = closed_forms.principal_components(pixels), pixels[:100]
    latent_dim, variance = 3, closed_forms.VARIANCE
    vectors, values = components.vectors[:, :latent_dim], components.values[:latent_dim]
    covariance = variance * np.eye(6) + (vectors * np.maximum(values - variance, 0)) @ vectors.T
    expected = multivariate_normal(components.mean, covariance).logpdf(others / 255).mean()
    assert closed_forms.best_elbo(others, components, latent_dim) == pytest.approx(expected, rel=1e-9)


def test_spread_is_the_error_of_a_projection(pixels):
    components, others = closed_forms.principal_components(pixels), pixels[100:]
    centred = others / 255 - components.mean
    codes = centred @ components.vectors[:, :2]
    error = np.square(centred - codes @ components.vectors[:, :2].T).sum(1).mean()
    assert closed_forms.spread(others, components)[2:].sum() == pytest.approx(error, rel=1e-9)
    np.testing.assert_allclose(closed_forms.spread(pixels, components), components.values, atol=1e-12)


def test_cross_entropies():
    grey = np.array([[0, 255, 51]], np.uint8)
    expected = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert closed_forms.entropy(grey) == pytest.approx(expected)
    # Clipping probabilities of 0 and 1 at 1e-6 costs that much.
    assert closed_forms.cross_entropy(grey, grey[0] / 255) == pytest.approx(expected, abs=3e-6)
    assert closed_forms.cross_entropy(np.array([[0], [255]], np.uint8), np.array([0.5])) == pytest.approx(math.log(2))


def test_a_target_says_what_it_is():
    for target in TARGETS.values():
        assert target.tier in TIERS
        assert target.minutes > 0
        assert all(len(text) > 5 and not text.endswith(".") for text in (target.claim, target.source, target.band))


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_recipe_composes(name, tmp_path):
    for overrides in TARGETS[name].runs.values():
        check_settings(composed(*COMMON, *overrides.split(), f"run_dir={tmp_path}"), READERS)


@pytest.mark.slow
def test_the_quick_tier_passes(tmp_path, capsys, monkeypatch):
    """Two of it; a second call trains nothing, and the page says what was measured."""
    monkeypatch.chdir(tmp_path)
    names = ["linear_vae_digits", "collapse_digits"]
    reproduce_targets(names)
    said = capsys.readouterr().out
    assert [line.split(":")[0] for line in said.splitlines() if line[0] != " "] == [f"PASS  {name}" for name in names]
    folder = tmp_path / "outputs/reproduce"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/metrics.jsonl")}
    assert len(before) == 2
    reproduce_targets(names[:1])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    record = read_record(folder)
    assert set(record) == set(names)
    assert record[names[0]]["passed"]
    assert (folder / "numbers.md").read_text() == page(record)
    capsys.readouterr()
    reproduce_targets([])
    assert re.search(f"{names[0]} +PASS", capsys.readouterr().out)


def test_a_target_that_fails_ends_with_1_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    def target(*checks: Check) -> Target:
        return Target("a claim", "a source", "a reason", "quick", 1, {}, lambda runs: list(checks))

    def broken(runs):
        raise ValueError("no such thing")

    monkeypatch.setattr(
        command,
        "TARGETS",
        {
            "low": target(Check("x", 1.0, 0.0, 2.0), Check("y", -0.1, 0.0)),
            "nan": target(Check("x", math.nan)),
            "broken": target()._replace(check=broken),
            "good": target(Check("x", 1.0, high=1.0)),
        },
    )
    with pytest.raises(SystemExit) as stop:
        reproduce_targets(["--tier", "quick", f"out={tmp_path}"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "FAIL y: -0.1, at least 0" in said
    assert "FAIL  broken: not measured: no such thing" in said
    assert "PASS  good" in said
    assert "FAIL  3 of 4: low, nan, broken" in said
    assert {name: result["passed"] for name, result in read_record(tmp_path).items()} == {
        "low": False,
        "nan": False,
        "good": True,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flox"], "there is no target flox; did you mean flax"),
        (["tier=slow"], "tier must be one of quick, cpu, gpu, got 'slow'"),
    ],
)
def test_a_wrong_name_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        reproduce_targets(arguments)


def test_the_page_is_made_of_the_record():
    record = json.loads((DOCS / "numbers.json").read_text())
    assert (DOCS / "numbers.md").read_text() == page(record)
    assert set(record) <= set(TARGETS)


def test_values_and_bands_of_the_record_agree_with_its_verdicts():
    for name, result in read_record(Path(DOCS)).items():
        inside = [
            (low is None or low <= value) and (high is None or value <= high)
            for _, value, low, high in result["checks"]
        ]
        assert result["passed"] == all(inside), name
