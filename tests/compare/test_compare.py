"""Comparisons: means by hand, differences that are more than chance, and nothing compared that cannot be."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html import escape as html_escape
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from compared import CONV, GAUSSIAN, write_run, write_sweep
from omegaconf import OmegaConf
from plotly.offline import get_plotlyjs
from rich.console import Console
from scipy import stats
from tracking import alone, go_online
from wandb_server import WandbServer

from vae_lab.compare import figures
from vae_lab.compare.command import DEFAULTS, USAGE, compare_runs, default_out, markdown
from vae_lab.compare.comparison import compare, conclusion
from vae_lab.compare.figures import pareto
from vae_lab.compare.images import draw_groups
from vae_lab.compare.report import page
from vae_lab.compare.runs import find_runs
from vae_lab.compare.search import figures as draw_search
from vae_lab.compare.statistics import adjust, difference, smallest_p_values, spread
from vae_lab.compare.table import (
    address_of,
    groups_table,
    harmless,
    images_table,
    runs_csv,
    runs_table,
    to_html,
    to_markdown,
    to_terminal,
)
from vae_lab.compare.wandb import online_runs, read_online, save_view
from vae_lab.errors import RunError
from vae_lab.training.train import train


def comparison(*folders: Path, **settings):
    entries, notes = find_runs(list(folders))
    return compare(entries, notes, title="title", **settings)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("compare") / "sweep")


# statistics


def test_mean_and_deviations_are_those_of_the_textbook():
    values = [1.0, 2.0, 6.0]
    found = spread(values)
    assert found.mean == pytest.approx(3)
    assert found.sd == pytest.approx(math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2))
    low, high = stats.t.interval(0.95, 2, 3, stats.sem(values))
    assert (found.mean - found.ci, found.mean + found.ci) == pytest.approx((low, high))
    assert math.isnan(spread([4.0]).sd)
    assert math.isnan(spread([]).mean)


def of_seeds(values: dict) -> dict:
    """The values of runs by their seed, of groups that pool nothing."""
    return {(seed,): value for seed, value in values.items()}


POOLED = {(0, "a"): 1.0, (0, "b"): 9.0, (1, "a"): 2.0, (1, "b"): 8.0, (2, "a"): 3.0, (3, "c"): 50.0}
TENS = {(seed, key): seed + value for seed in (0, 1, 2) for key, value in (("a", 0.0), ("b", 10.0))}
OTHERS = {(seed, key): seed + value for seed in (5, 6, 8) for key, value in (("a", 1.0), ("b", 11.0))}
DIFFERENCES = {
    "runs with the same seed are paired": (
        *(of_seeds({0: 1.0, 1: 5.0, 2: 9.0, 7: 100.0}), of_seeds({2: 8.1, 1: 4.0, 0: 0.2})),
        *(True, 3, 0.9, stats.ttest_rel([1, 5, 9], [0.2, 4, 8.1])),
    ),
    "runs without shared seeds are compared by their means": (
        *(of_seeds({0: 1.0, 1: 2.0, 2: 4.0}), of_seeds({3: 6.0, 4: 9.0, 5: 8.0, 0: 7.0})),
        *(False, 3, 7 / 3 - 7.5, stats.ttest_ind([1, 2, 4], [6, 9, 8, 7], equal_var=False)),
    ),
    "pooled runs are subtracted with the same settings and averaged within each seed": (
        POOLED,
        {(0, "a"): 0.0, (0, "b"): 6.0, (1, "a"): 1.5, (1, "b"): 6.5, (2, "a"): 1.0, (2, "b"): 90.0},
        *(True, 3, 5 / 3, stats.ttest_1samp([2, 1, 2], 0)),
    ),
    "seeds that are not shared are tested by their means where they pool the same settings": (
        *(TENS, OTHERS, False, 3, 6 - 37 / 3, stats.ttest_ind([5, 6, 7], [11, 12, 14], equal_var=False)),
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_are_those_of_scipy(name):
    first, second, is_paired, n, mean, expected = DIFFERENCES[name]
    found = difference(first, second)
    assert (found.is_paired, found.n) == (is_paired, n)
    assert (found.mean, found.p) == pytest.approx((mean, expected.pvalue))
    assert found.ci == pytest.approx(np.ptp(expected.confidence_interval(0.95)) / 2)


def test_exactly_equal_differences_are_certain_equal_runs_are_equal_and_what_cannot_be_tested_is_not():
    ones = of_seeds({0: 1.0, 1: 2.0, 2: 3.0})
    assert (difference(ones, of_seeds({0: 0.5, 1: 1.5, 2: 2.5})).p, difference(ones, ones).p) == (0, 1)
    for first, second in (
        ({(0, i): 1.0 for i in range(9)}, {(0, i): 2.0 for i in range(9)}),
        (TENS, {unit: value for unit, value in OTHERS.items() if unit != (5, "b")}),
        (TENS, {(seed, "c"): value for (seed, _), value in OTHERS.items()}),
    ):
        assert math.isnan(difference(first, second).p)


def test_two_runs_are_compared_image_by_image(tmp_path):
    """Two models whose values differ by 1 and 2 in turn, on images that differ much more, and one of other weights."""
    hard = np.random.default_rng(0).normal(100, 30, 50)
    for name, values, step in (("a", hard, 30), ("b", hard + np.tile([1, 2], 25), 30), ("c", hard, 20)):
        folder = write_run(tmp_path / name, changes={"latent_dim": ord(name)}, elbo=-100.0 - ord(name))
        np.savez(folder / "images_test.npz", nll_is5=values.astype(np.float32), step=step)
        result = json.loads((folder / "result.json").read_text()) | {"test/nll_is5": values.mean(), "test/step": 30}
        (folder / "result.json").write_text(json.dumps(result))
    comparison = compare(*find_runs([tmp_path]))
    (row,) = images_table(comparison).rows
    # A mean of 50 differences of 1 and 2, whose deviation is 0.505.
    assert [cell.text for cell in row.cells] == ["test/nll_is5", "2: b", "1: a", "+1.500", "50"]
    assert row.cells[3].below == "± 0.071"
    assert "Image by image" in page(comparison)
    assert "+1.500 ± 0.071" in markdown(comparison)
    assert "test/nll_is5" in comparison.metrics  # which is shown wherever it was measured


def test_adjusted_p_values_are_larger_than_holms_for_the_same_comparisons():
    """Because the best was chosen; and they keep the order, and step down after each that is different."""
    p_values = [0.0002, 0.004, 0.02, 0.4]
    adjusted = adjust(p_values, 5)
    assert adjusted == sorted(adjusted)
    assert all(new > min(1, (4 - i) * p) * 0.9 for i, (p, new) in enumerate(zip(p_values, adjusted, strict=True)))
    assert adjust(p_values[::-1], 5) == adjusted[::-1]
    assert adjust([0.03], 3) == [0.03]  # a single comparison
    assert adjust([0.0001, 0.02], 5)[1] == 0.02  # the other is known to be different: one comparison is left


@pytest.mark.slow
def test_equal_configurations_are_called_different_in_one_of_twenty_experiments():
    random = np.random.default_rng(1)
    for k, n, deviations in ((6, 3, np.ones(6)), (10, 5, np.ones(10)), (6, 3, np.geomspace(1, 10, 6))):
        runs = random.standard_normal((1500, k, n)) * deviations[:, None] + random.standard_normal((1500, 1, n))
        order = runs.mean(2).argsort(1)
        runs = np.take_along_axis(runs, order[:, :, None], 1)
        p_values = stats.ttest_1samp(runs[:, -1:] - runs[:, :-1], 0, axis=2).pvalue.min(1)
        wrong = sum(adjust([p] * (k - 1), n)[0] < 0.05 for p in p_values)
        assert wrong / 1500 < 0.067, (k, n)  # three deviations above 0.05
    assert np.quantile(smallest_p_values(12, 3), 0.05) == pytest.approx(0.0023, rel=0.2)  # Bonferroni's is 0.0045


# finding and grouping


def test_groups_are_what_differs_but_the_seed_with_means_by_hand(sweep):
    found = comparison(sweep)
    assert found.by == ["model", "loss"]
    assert found.sort == "val/mse"
    assert [group.label for group in found.groups[:2]] == ["conv, loss=bce", "conv, loss=mse"]
    best = found.groups[0].spread("val/mse")
    values = [0.025, 0.0251, 0.0254]
    assert (best.n, best.mean, best.sd) == pytest.approx((3, np.mean(values), np.std(values, ddof=1)))


def test_unfinished_runs_are_in_no_mean_and_are_listed(sweep, capsys):
    found = comparison(sweep)
    group = next(group for group in found.groups if group.label == "conv, loss=mse")
    assert group.values("val/mse") == {("0",): pytest.approx(0.027)}
    assert found.counts == "12 runs in 4 groups: 10 completed, 1 failed, 1 running"
    assert [(entry.state, entry.name) for entry in found.unfinished] == [
        ("failed", "conv,mse,2"), ("running", "conv,mse,1"),
    ]  # fmt: skip
    compare_runs([str(sweep), "images=false", f"out={sweep.parent / 'out'}"])
    printed = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert "ran out of <b>luck</b>" in printed
    assert "The sweep sweep is not at its end: jobs that have not started are not counted." in printed
    assert "1 of 3" in printed


def test_nothing_is_said_of_the_jobs_of_a_sweep_whose_runs_are_at_their_end(tmp_path):
    write_run(tmp_path / "tw" / "a", 0)
    write_run(tmp_path / "tw" / "b", 1, state="failed", reason="no")
    (tmp_path / "tw" / "multirun.yaml").write_text("")
    assert find_runs([tmp_path])[1] == []
    write_run(tmp_path / "tw" / "c", 2, state="preempted")
    assert len(find_runs([tmp_path, tmp_path / "tw"])[1]) == 1


def test_runs_that_a_pruner_may_have_ended_are_named(tmp_path):
    for trial, limit in enumerate((3, 5, 9, None, "x", -1)):
        changes = {"callbacks.pruning.trial": trial, "trainer.max_epochs": limit}
        write_run(tmp_path / f"r{trial}", trial, -100 - trial, changes=changes)
    write_run(tmp_path / "alone", 7, trainer__max_epochs=9)
    notes = comparison(tmp_path).notes
    assert any("in a search with a pruner: 2. Their" in note for note in notes)


def test_the_number_of_a_trial_is_no_setting(tmp_path):
    for trial in range(4):
        changes = {"callbacks.pruning._target_": "vae_lab.sweep.pruning.Pruning", "callbacks.pruning.trial": trial}
        write_run(tmp_path / f"r{trial}", trial % 2, -100 - trial, latent_dim=2 + trial // 2, changes=changes)
    found = comparison(tmp_path)
    assert found.differing == ["latent_dim"]
    assert [len(group.runs) for group in found.groups] == [2, 2]


def test_a_group_without_completed_runs_is_marked_and_comes_last(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed, -100, 0.02)
        write_run(tmp_path / f"b{seed}", seed, -50, 0.01, state="running", latent_dim=9)
    found = comparison(tmp_path)
    last = found.groups[-1]
    assert (last.settings, last.verdict) == ({"latent_dim": "9"}, "3 running")
    assert "(−50 so far)" in markdown(found)


def test_a_sweep_that_has_just_begun_has_a_report(tmp_path):
    write_run(tmp_path / "a", 0, -100.5, 0.0212, state="running", latent_dim=2)
    (write_run(tmp_path / "b", 0, state="running", latent_dim=4) / "metrics.jsonl").unlink()
    found = comparison(tmp_path)
    assert (found.sort, [group.verdict for group in found.groups]) == ("val/elbo", ["1 running", "1 running"])
    assert "(0.02120 so far)" in markdown(found)
    html = page(found)
    assert "No run has been completed yet." in html
    assert 'id="curves"' in html
    for path in tmp_path.glob("*/metrics.jsonl"):
        path.unlink()
    assert comparison(tmp_path).sort == ""
    page(comparison(tmp_path))


def test_settings_that_follow_from_an_option_or_copy_another_are_no_columns(tmp_path):
    def write(name: str, latent_dim: int, changes: dict) -> None:
        write_run(
            tmp_path / name, latent_dim=latent_dim, changes={"optimizer.copy": latent_dim, "run_name": name} | changes
        )

    write("a", 2, {})
    write("b", 2, CONV | {"model.hidden_dims": [32], "model.strides": [2]})
    write("c", 4, {"loss.KLD_weight": 1, "trainer.accelerator": "gpu"})
    assert comparison(tmp_path).by == ["model", "latent_dim"]
    write("d", 2, {"model.hidden_dims": [64]})
    assert comparison(tmp_path).by == ["model", "latent_dim", "model.hidden_dims"]
    for name, bits in (("e", {}), ("f", {"objective.free_bits": 0}), ("g", {"objective.free_bits": 2})):
        free = {"loss.free_bits": max(bits.values(), default=0)}
        write_run(tmp_path / "more" / name, changes=free | bits | ({} if bits else {"objective": "gan"}))
    found = comparison(tmp_path / "more")  # the objective's copy is where there is one
    assert found.by == ["objective", "loss.free_bits"]
    assert {group.label for group in found.groups} == {"gan, free_bits=0", "elbo, free_bits=0", "elbo, free_bits=2"}


def test_a_game_is_not_ranked_by_its_losses_but_by_its_samples(tmp_path):
    """Neither those of a GAN nor, beside it, those of another model; its samples decide where they were measured."""
    for latent_dim, loss in ((2, 0.7), (4, 1.9)):
        result = write_run(tmp_path / f"{latent_dim}", latent_dim=latent_dim) / "result.json"
        losses = {"val/loss": loss, "val/generator_loss": loss, "val/discriminator_loss": 2 - loss}
        result.write_text(json.dumps(losses))
        found = comparison(tmp_path)
        assert (found.sort, [group.verdict for group in found.groups]) == ("", [""] * len(found.groups))
        assert any("metrics=samples" in note for note in found.notes)
        page(found)
    assert conclusion(found) == "The groups are not ranked."
    assert any("is of a game of two" in note for note in comparison(tmp_path, sort="val/loss").notes)
    for latent_dim, fid in ((2, 30.0), (4, 10.0)):
        result = tmp_path / f"{latent_dim}" / "result.json"
        result.write_text(json.dumps(json.loads(result.read_text()) | {"test/fid_digits-cnn_n100": fid}))
    found = comparison(tmp_path)
    assert (found.sort, [group.settings["latent_dim"] for group in found.groups]) == (
        "test/fid_digits-cnn_n100",
        ["4", "2"],
    )


def test_an_option_of_callbacks_is_a_column_where_it_changes_more_than_what_is_shown(tmp_path):
    gallery = {"callbacks.gallery._target_": "vae_lab.evaluation.gallery.Gallery"}
    early = {"callbacks": "early_stopping", "callbacks.early_stopping.patience": 5}
    write_run(tmp_path / "default", changes=gallery)
    write_run(tmp_path / "none", changes={"callbacks": "none"})
    assert comparison(tmp_path).by == []
    write_run(tmp_path / "early", changes=early)
    assert comparison(tmp_path).by == ["callbacks"]
    write_run(tmp_path / "patient", changes=early | {"callbacks.early_stopping.patience": 9})
    assert comparison(tmp_path).by == ["callbacks", "callbacks.early_stopping.patience"]


def test_runs_that_do_not_say_what_they_chose_are_told_apart_by_their_settings(tmp_path):
    for name, changes in (("mlp", {}), ("conv", CONV)):
        (write_run(tmp_path / name, changes=changes) / ".hydra" / "choices.yaml").unlink()
    found = comparison(tmp_path)
    assert (found.by, len(found.keys)) == (["model.decoder._target_", "model.encoder._target_"], 1)
    (tmp_path / "mlp" / ".hydra" / "choices.yaml").write_text("a: &a [1]\nb: *a\n")
    assert "alias" in comparison(tmp_path).unfinished[0].reason


def test_settings_that_differ_only_together_are_said_to(tmp_path):
    write_run(tmp_path / "a", latent_dim=2, optimizer__lr=1.0)
    write_run(tmp_path / "b", latent_dim=4, optimizer__lr=2.0)
    write_run(tmp_path / "c", latent_dim=8, optimizer__lr=2.0)
    found = comparison(tmp_path)
    assert (found.by, found.keys) == (["latent_dim", "optimizer.lr"], ["latent_dim"])
    assert found.groups[0].label == "latent_dim=2"
    assert any(note.startswith("optimizer.lr differs only together with latent_dim") for note in found.notes)
    assert comparison(tmp_path, by=["latent_dim", "lr"]).keys == ["latent_dim", "optimizer.lr"]


def write_elbos(folder: Path, elbos: dict[tuple, float]) -> None:
    """Write a run for each seed, number of latents and weight."""
    for (seed, latent_dim, weight), elbo in elbos.items():
        run = folder / f"{seed},{latent_dim},{weight}"
        write_run(run, seed, elbo, latent_dim=latent_dim, loss__KLD_weight=weight)


def pool(num_seeds: int) -> dict[tuple, float]:
    """Two weights, the second a little worse, each with some numbers of latents that do much more."""
    return {(s, d, w): -99 + 5 * d - w + 0.01 * (s + d) * w for s in range(num_seeds) for d in (2, 4, 8, 16)
            for w in (1, 2)}  # fmt: skip


NOISE = (0.0, 9.0, -5.0)
BY_WEIGHT, BY_DIM = ["KLD_weight"], ["latent_dim"]
VERDICTS = {  # the ELBO by seed, number of latents and weight; what the groups are told by, and what is said of them
    "pooled settings are no seeds, of one": (pool(1), BY_WEIGHT, ["best, of a single seed", "not tested (1 seed)"]),
    "pooled settings are no seeds, of two": (pool(2), BY_WEIGHT, ["best", "not tested (2 seeds)"]),
    "groups that pool different settings": (
        {(s, d, 1 + (d > 4)): -100 - d - 0.1 * s for s in range(3) for d in (2, 4, 8, 16)},
        *(BY_WEIGHT, ["best", "not tested: they pool different settings"]),
    ),
    "shared runs contradict the order, as all are bad where the other is better": (
        {(s, d, w): elbo + w + 0.01 * s * w for s in range(3) for d, elbo in ((2, -300), (4, -100)) for w in (1, 2)
         if (w, d) != (1, 2)},
        *(BY_WEIGHT, ["best", "better in the runs they share"]),
    ),
    "two seeds are too few": (
        {(s, d, 1): -100 - d + s % 2 for s in range(3) for d in (2, 4, 8) if (s, d) != (2, 8)},
        *(BY_DIM, ["best", "worse", "not tested (2 seeds)"]),
    ),
    "noise is not distinguishable and a paired shift, always by less than the noise, is": (
        {(s, 2, 1): -100 + noise for s, noise in enumerate(NOISE)}
        | {(s, 4, 1): -101 + noise + 0.01 * s for s, noise in enumerate(NOISE)}
        | {(s, 8, 1): -101 - noise for s, noise in enumerate(NOISE)},
        *(BY_DIM, ["best", "worse", "not distinguishable (n=3)"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name, tmp_path):
    elbos, by, verdicts = VERDICTS[name]
    write_elbos(tmp_path, elbos)
    found = comparison(tmp_path, by=by)
    assert [group.verdict for group in found.groups] == verdicts
    if "pooled" in name:
        assert any("single seed" in note or "tested from 3 seeds on" in note for note in found.notes)
    if "too few" in name:
        assert "it was not tested against 1 of 2 others (3)" in conclusion(found)
        assert "distinguishable" not in conclusion(found)


def test_pooled_settings_pair_the_runs_and_are_named(tmp_path):
    write_elbos(tmp_path, pool(3))
    found = comparison(tmp_path, by=["KLD_weight"])
    assert found.by == ["loss.KLD_weight"]
    first, second = found.groups
    assert (second.difference.n, second.difference.is_paired, second.verdict) == (3, True, "worse")
    assert (first.spread("val/elbo").n, len(first.values("val/elbo"))) == (3, 12)
    table = groups_table(found)
    assert table.rows[0].cells[[column.title for column in table.columns].index("n")].text == "3"
    means = [np.mean([-100 + 5 * k + 0.01 * (seed + k) for k in (2, 4, 8, 16)]) for seed in range(3)]
    assert first.spread("val/elbo").sd == pytest.approx(np.std(means, ddof=1))
    assert any("pool runs that differ in latent_dim. n counts seeds" in note for note in found.notes)


def test_the_same_run_twice_counts_once_and_repeats_of_a_seed_are_one(tmp_path):
    write_run(tmp_path / "a" / "run", 0, -100)
    write_run(tmp_path / "b" / "run", 0, -102)
    assert len(find_runs([tmp_path, tmp_path / "a"])[0]) == 2
    found = comparison(tmp_path / "a", tmp_path / "b")
    assert found.groups[0].spread("val/elbo").n == 1
    assert found.groups[0].spread("val/elbo").mean == -101
    assert any("count as one" in note for note in found.notes)
    assert len(comparison(tmp_path / "a", tmp_path / "b", by=["folder"]).groups) == 2


@pytest.mark.parametrize("content", ["{", "a: &a [1]\nb: *a\n", None])
def test_a_damaged_run_and_one_that_ended_before_its_config_was_written_are_failed_ones(content, tmp_path):
    folder = (
        write_run(tmp_path / "run", state="completed" if content else "failed", reason="killed by SIGSEGV") / ".hydra"
    )
    (folder / "config.yaml").write_text(content) if content else shutil.rmtree(folder)
    write_run(tmp_path / "other")
    found = comparison(tmp_path)
    assert [(entry.name, entry.state) for entry in found.unfinished] == [("run", "failed")]
    assert ("SIGSEGV" in found.unfinished[0].reason) is (content is None)
    assert len(found.groups) == 1
    (tmp_path / "other" / ".hydra" / "config.yaml").write_text("a: ${")
    page(comparison(tmp_path))


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        find_runs([tmp_path])
    with pytest.raises(RunError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])


# what can be compared


def test_likelihoods_are_compared_by_mse_and_not_by_nats(sweep):
    found = comparison(sweep)
    assert set(found.apart) == {"val/elbo", "val/reconstruction"}
    assert any("elbo, reconstruction, because they differ in the likelihood" in note for note in found.notes)
    by_elbo = comparison(sweep, sort="elbo")
    losses = [group.settings["loss"] for group in by_elbo.groups]
    assert losses in (["bce", "bce", "mse", "mse"], ["mse", "mse", "bce", "bce"])
    for first, second in (by_elbo.groups[:2], by_elbo.groups[2:]):
        single = "" if first.spread("val/elbo").n > 1 else ", of a single seed"
        assert first.verdict == f"best of its kind{single}"
        assert second.difference.n == min(first.spread("val/elbo").n, second.spread("val/elbo").n)
    assert "best" not in {group.verdict for group in by_elbo.groups}
    assert "of those that can be compared with it" in page(by_elbo)


def test_a_verdict_says_with_which_group_of_its_kind_it_was_compared(tmp_path, capsys):
    for seed, noise in enumerate((0.0, 9.0, -5.0)):
        for name, loss, offset in (("bce", {}, 0), ("mse", GAUSSIAN, -400)):
            for latent_dim, elbo in ((2, noise), (4, noise - 1 + 0.01 * seed), (8, -1 - noise)):
                changes = loss | {"latent_dim": latent_dim}
                write_run(tmp_path / f"{name}{latent_dim}{seed}", seed, offset + elbo - 100, changes=changes)
    found = comparison(tmp_path, sort="elbo")
    for n, part in ((1, found.groups[:3]), (4, found.groups[3:])):
        verdicts = {group.settings["latent_dim"]: group.verdict for group in part}
        expected = {"2": "best of its kind", "4": f"worse than {n}", "8": f"not distinguishable from {n} (n=3)"}
        assert verdicts == expected
    for text in (page(found), markdown(found)):
        assert "not distinguishable from 4 (n=3)" in text
    compare_runs([str(tmp_path), "sort=elbo", "images=false", f"out={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    assert "against the best" in printed
    assert "against 1" not in printed


def test_a_mean_over_likelihoods_is_not_taken(sweep):
    found = comparison(sweep, by=["model"], sort="elbo")
    assert all(not group.values("val/elbo") and group.values("val/mse") for group in found.groups)
    assert {group.verdict for group in found.groups} == {"pools runs that cannot be compared"}


@pytest.mark.parametrize(
    ("changes", "elbo", "mse", "loss"),
    [
        ({"loss.KLD_weight": 4}, True, True, False),
        ({"dataset.binarize": "dynamic"}, False, False, False),
        ({"dataset.image_size": 16}, False, False, False),
        ({"dataset.source._target_": "vae_lab.data.standard.MNIST"}, False, False, False),
        ({"dataset.batch_size": 7, "latent_dim": 5}, True, True, True),
        ({"loss.likelihood._target_": "mine.Laplace", "loss.measure": None}, False, True, False),
        ({"loss.likelihood._target_": "mine.Discrete"}, True, True, True),
        (GAUSSIAN, False, True, False),
    ],
)
def test_what_has_the_same_yardstick(changes, elbo, mse, loss, tmp_path):
    write_run(tmp_path / "a", changes={"dataset.batch_size": 128})
    write_run(tmp_path / "b", changes={"dataset.batch_size": 128} | changes)
    first, second = comparison(tmp_path).groups
    for metric, expected in (("val/elbo", elbo), ("val/mse", mse), ("val/loss", loss), ("images_per_second", True)):
        assert (first.yardstick(metric) == second.yardstick(metric)) is expected, metric


def write_pictures(folder: Path, name: str, images: str, seed: int = 0, **settings) -> None:
    """Write a run on a folder of pictures."""
    changes = {"dataset": "image_folder", "dataset.root": "${data_root}", "dataset.on_bad": "stop"}
    changes |= {"dataset.source.root": "${dataset.root}", "dataset.source.on_bad": "${dataset.on_bad}"}
    changes["dataset.source._target_"] = "vae_lab.data.image_folder.ImageFolder"
    write_run(folder / name, seed, images=images, changes=changes | settings)


def test_the_images_decide_what_can_be_compared_and_not_their_place(tmp_path):
    """Nor what was to happen with a bad one, if there was none; and the same place may hold other images."""
    write_pictures(tmp_path, "a", "1" * 32)
    write_pictures(tmp_path, "b", "1" * 32, 1, **{"dataset.on_bad": "skip"})
    write_pictures(tmp_path, "c", "1" * 32, 2, **{"dataset.root": "elsewhere", "dataset.source.cache_dir": "/c"})
    write_pictures(tmp_path, "d", "", 3)  # it ended before it had read them
    found = comparison(tmp_path)
    assert (found.differing, len(found.groups), found.apart) == ([], 1, {})
    write_pictures(tmp_path, "e", "2" * 32, 0, data_root="${oc.env:VAE_LAB_DATA,data}")
    found = comparison(tmp_path, sort="elbo")
    assert (found.by, [group.label for group in found.groups]) == (["images"], ["images=11111111", "images=22222222"])
    assert any("because they differ in their images" in note for note in found.notes)


def test_another_dataset_is_no_difference_of_images_as_well(tmp_path):
    for seed in range(2):
        for size in (8, 16):
            write_run(tmp_path / f"{size}{seed}", seed, dataset__image_size=size)
    assert comparison(tmp_path).by == ["dataset.image_size"]


def test_weights_of_the_loss_are_ranked_by_the_elbo_within_a_likelihood(tmp_path):
    for weight, elbo, mse in ((1, -100, 0.03), (0.1, -120, 0.01)):
        for name, loss, offset in (("bce", {}, 0), ("mse", GAUSSIAN, 300)):
            write_run(tmp_path / f"{name}{weight}", 0, elbo - offset, mse, changes=loss | {"loss.KLD_weight": weight})
    found = comparison(tmp_path)
    assert found.sort == "val/elbo"
    assert [group.settings["loss.KLD_weight"] for group in found.groups] == ["1", "0.1", "1", "0.1"]
    assert comparison(tmp_path / "bce1", tmp_path / "mse1").sort == "val/mse"


def test_numbers_have_as_few_digits_as_tell_them_apart(tmp_path):
    values = (0.00123456789012345, 0.0012349, 0.7654321098765432, 16, 1e-05)
    for seed, value in enumerate(values):
        write_run(tmp_path / str(seed), 0, -100 - seed, optimizer__lr=value)
    found = comparison(tmp_path)
    assert [group.label[3:] for group in found.groups] == ["0.0012346", "0.0012349", "0.76543", "16", "1e-05"]
    assert repr(values[0]) in runs_csv(found)


@pytest.mark.fault
def test_nan_and_failed_runs_never_win(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed, -100 + seed, latent_dim=2)
        write_run(tmp_path / f"b{seed}", seed, -10, latent_dim=4, state="failed", reason="no")
        run = write_run(tmp_path / f"c{seed}", seed, -10, latent_dim=8)
        (run / "result.json").write_text('{"val/elbo": NaN, "val/mse": Infinity}')
    found = comparison(tmp_path)
    assert [group.settings["latent_dim"] for group in found.groups] == ["2", "8", "4"]
    assert [group.verdict for group in found.groups[1:]] == ["elbo is not finite", "3 failed"]
    assert any("not finite in 3 completed runs" in note for note in found.notes)


def test_unknown_names_are_refused_with_what_is_near(sweep):
    with pytest.raises(ValueError, match="mse"):
        comparison(sweep, sort="msee")
    with pytest.raises(ValueError, match="setting latnt_dim"):
        comparison(sweep, by=["latnt_dim"])


# tables


def test_the_csv_has_a_row_for_every_run(sweep):
    found = comparison(sweep)
    rows = list(csv.DictReader(runs_csv(found).splitlines()))
    assert len(rows) == 12
    row = next(row for row in rows if row["run"] == "conv,bce,1")
    assert [row[k] for k in ("group", "model", "loss", "seed", "state")] == ["1", "conv", "bce", "1", "completed"]
    assert float(row["val/mse"]) == pytest.approx(0.0251)
    for text in ("=1+1", "-1+cmd|'x'!A0", "-a", "-", "+1", "@x"):
        assert harmless(text) == f"'{text}"
    for text in ("-1", "-0.5", "-1e-05", "a-1", "–"):
        assert harmless(text) == text


def write_studies(folder: Path) -> None:
    """Write two studies that differ in many settings with long names and values."""
    for i in range(6):
        changes = {f"model.width_of_the_hidden_layer_{k}": 16 * (i + k) ** 2 % 97 for k in range(3)}
        for seed in range(3):
            run = folder / f"study{i % 2}" / f"{i},{seed}"
            write_run(run, seed, -100 - i + 0.1 * seed, latent_dim=2**i, note="x" * 40 * (i % 2), changes=changes)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_deciding_metric_and_the_verdict_stay_in_view_in_a_terminal(width, tmp_path):
    write_studies(tmp_path)
    found = comparison(tmp_path, by=["latent_dim", "width_of_the_hidden_layer_1", "note", "folder"])
    console = Console(width=width, file=io.StringIO())
    table, left = to_terminal(groups_table(found), console, 40)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "…" not in text
    for words in ("elbo", "against the", "−99.90 ± 0.10", "best"):
        assert words in text, words
    assert "latent_dim=4" in text.replace("\n", "") or width == 120
    assert "kl" in left


def test_a_table_is_the_same_in_all_its_forms(sweep):
    found = comparison(sweep, sort="mse")
    table = groups_table(found)
    html = to_html(table)
    for row in table.rows:
        for cell in row.cells:
            assert f"<span>{html_escape(cell.text)}</span>" in html
    assert html.count("<tr") == len(table.rows) + 1
    lines = [line for line in markdown(found).split("## ")[0].splitlines() if line[:1] == "|"]
    assert len(lines) == 2 + 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "0.02517 ± 0.00021" in lines[2]
    assert [column.title for column in table.columns] == [
        "#", "mse", "against the best", "model", "loss", "n", "elbo\xa0†", "reconstruction\xa0†", "kl", "active units",
        "images per second", "train seconds",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> Path:
    """A search of twelve trials, of which the fourth was lost, written as the launcher and Optuna leave it."""
    folder, lines, random = tmp_path_factory.mktemp("search") / "tpe", [], np.random.default_rng(0)
    for trial in (number for number in range(13) if number != 3):
        rate, width = 10 ** random.uniform(-5, -1), int(random.integers(2, 64))
        run = write_run(folder / f"r{100 - trial}", 0, -100 - abs(math.log10(rate) + 3), latent_dim=width,
                        changes={"optimizer.lr": rate, "model.activation": "relu" if trial % 2 else "elu"})  # fmt: skip
        lines.append(json.dumps({"event": "start", "job": trial, "folder": run.name}))
    status = {"started": "2026-11-01T10:00:00+00:00", "ended": "2026-11-01T11:01:05+00:00"}
    status |= {"command": "vae-lab 'a=<b>'", "commit": "0123456789abcdef-dirty", "host": "<h>"}
    status["hardware"] = {"cpu": "EPYC", "cores": 8, "memory_gb": 64, "gpus": ["NVIDIA H100", "NVIDIA H100"]}
    times = {"times": [status, status | {"command": "vae-lab resume=x"}]}
    (run / "status.json").write_text(json.dumps(json.loads((run / "status.json").read_text()) | times))
    (run / "train.log").write_text("")
    (run / "pictures").mkdir()
    (folder / "sweep.jsonl").write_text("\n".join([*lines, "[1]", '{"job": 1e400, "folder": "r99"}', "{torn"]))
    (folder / "multirun.yaml").write_text("hydra:\n  sweeper:\n    _target_: x.OptunaSweeper\n")
    return folder


def test_a_trial_has_the_number_of_the_search_everywhere(search):
    found = comparison(search)
    assert {run.name: run.trial for run in found.entries} == {f"r{100 - n}": n for n in range(13) if n != 3}
    table = groups_table(found)
    column = [column.title for column in table.columns].index("trial")
    for row, group in zip(table.rows, found.groups, strict=True):
        assert row.cells[column].text == str(group.runs[0].trial)
    assert found.keys == ["latent_dim", "model.activation", "optimizer.lr"]  # none of which follows from another
    (history, importance), _ = draw_search(found)
    assert list(history.data[0].x) == [n for n in range(13) if n != 3]
    drawn = dict(zip(history.data[0].x, history.data[0].y, strict=True))
    assert drawn == {run.trial: run.value("val/elbo") for run in found.entries}
    assert importance.data[0].y[-1] == "optimizer.lr"
    (search / "multirun.yaml").write_text("hydra: {}\n")
    assert {run.trial for run in find_runs([search])[0]} == {None}  # the jobs of another sweep are no trials
    (search / "multirun.yaml").write_text("hydra:\n  sweeper:\n    _target_: x.OptunaSweeper\n")


def test_the_setting_that_accounts_for_most_is_the_most_important(tmp_path):
    """Of all runs, not of the best tenth, in which every setting has one value."""
    for i, (model, latent_dim, seed) in enumerate(product(({}, CONV), (2, 4), range(3))):
        write_run(tmp_path / f"{i}", seed, -100 - 10 * bool(model) - latent_dim + 0.1 * seed, latent_dim=latent_dim,
                  changes=model)  # fmt: skip
    (importance,), _ = draw_search(comparison(tmp_path))
    assert list(importance.data[0].y) == ["latent_dim", "model"]
    assert importance.data[0].x[-1] == pytest.approx(0.96, abs=0.03)  # 25 of 26 of the variance between groups


def test_single_runs_have_links_to_their_files_and_say_how_they_were_started(search, tmp_path):
    found = comparison(search)
    table = runs_table(found, found.entries)
    row = next(row for row in table.rows if row.cells[1].text == "r88")
    told = {column.title: cell for column, cell in zip(table.columns, row.cells, strict=True)}
    assert (told["time"].text, told["trial"].text, told["command"].text) == ("2:02:10", "12", "vae-lab 'a=<b>'")
    assert (told["commit"].text, told["commit"].tip) == ("012345678-dirty", "0123456789abcdef-dirty")
    assert (told["machine"].text, told["machine"].tip) == ("<h>", "<h>: 8 x EPYC, 64 GB, NVIDIA H100, NVIDIA H100")
    html = to_html(table, home=search.parent / "report")
    assert re.findall(r'href="([^"]*r88[^"]*)"', html) == [
        f"../tpe/r88{rest}" for rest in ("", "/pictures", "/train.log")
    ]
    assert address_of("javascript:alert(1)", tmp_path) == ""
    assert "command" not in "".join(to_markdown(table))
    written = set(runs_csv(found).splitlines()[0].split(","))
    assert {"trial", "seconds", "commit", "command", "machine", "images"} <= written


# report


def test_a_strangers_text_is_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", seed, note=evil, changes={"model.x<y": evil})
        write_run(tmp_path / f"b{seed}", seed, note="b", changes={"model.x<y": "c"})
    write_run(tmp_path / "c", 0, state="failed", reason=evil)
    html = page(comparison(tmp_path, by=["note"]))
    assert "<img src=x" not in html
    assert html.count("<script") == 3  # the data, plotly and our own
    assert html.count("</script>") == 3
    assert "alert(1)&gt;" in html
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1]
    assert evil in [name for mode in json.loads(data)["modes"].values() for name, *_ in mode]
    assert not re.findall(r"<(?!/?b>|br>|/?extra>)", json.dumps(json.loads(data)["figures"]))


def own_part(html: str) -> str:
    """A report without the library that draws its figures."""
    return html.replace(get_plotlyjs(), "")


def is_plain(text: str) -> bool:
    """Whether it holds no character that a terminal obeys; a line break is one of the table's own."""
    return text.replace("\n", "").isprintable()


def test_a_strangers_control_characters_are_shown_and_not_obeyed(tmp_path, capsys):
    evil = "a\x1b]0;gone\x07\x1b[2J\x9b31m\r\x00\x7f\u202eb\u2028"
    for number, note in enumerate((evil, evil + "c", [evil], {"x": evil})):
        write_run(tmp_path / f"r{number}\x1b[2J", note=note, changes={"model.x\x1b[1m": number})
    failed = write_run(tmp_path / "sweep\x1b[2J" / "f", state="interrupted", reason=evil)
    (failed.parent / "multirun.yaml").write_text("")
    result = tmp_path / "r0\x1b[2J" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {f"val/{evil}": 1.0}))
    out = tmp_path / "out"
    compare_runs([str(tmp_path), "by=note", "images=false", f"out={out}"])
    html = own_part(page(comparison(tmp_path)))
    for text in (capsys.readouterr().out, html, *(own_part(path.read_text()) for path in out.iterdir())):
        assert is_plain(text), re.search(r"[^\n]{0,40}[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e].{0,40}", text)
    assert len(comparison(tmp_path, by=["note"]).groups) == 4  # escaped values stay different
    run = online(tmp_path / "r1\x1b[2J")
    run.name, run.url, run.config = evil, f"https://wandb.ai/{evil}", json.dumps({"seed": evil})
    entry = read_online(run, "me/project")
    assert is_plain(f"{entry.name}{entry.location}{entry.settings['seed']}")


def test_the_report_needs_no_network(sweep):
    html = own_part(page(comparison(sweep)))
    assert not re.findall(r"""src\s*=\s*["'](?!data:)|href\s*=\s*["'](?!#|[\w.]+/)""", html)  # links lead to files only
    assert not re.findall(r"https?://|url\((?!#|'#)|@import", html)
    for section in ("table", "runs", "search", "curves", "plane", "effects", "parallel", "time", "config"):
        assert f'<section id="{section}">' in html, section


@pytest.mark.slow
def test_the_report_of_fifty_runs_is_no_larger_than_ten_megabytes(tmp_path):
    for number in range(10):
        run = write_run(tmp_path / f"r{number}", number % 3, -100 - number, latent_dim=number // 3)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows = [row | {"step": 10 * i} for i in range(200) for row in lines[-2:]]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(own_part(page(comparison(tmp_path)))) < (10_000_000 - len(get_plotlyjs())) / 5


@pytest.mark.slow
def test_the_browser_has_no_complaints(sweep, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if not browser:
        pytest.skip("there is no Chromium")
    path = tmp_path / "report.html"
    path.write_text(page(comparison(sweep)))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom",
               "--disable-background-networking", "--virtual-time-budget=60000",
               f"--user-data-dir={tmp_path / 'profile'}"]  # fmt: skip
    done = subprocess.run([browser, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in told if "WebGL" not in line], told  # a machine without a GPU is slow, and says so
    assert 'data-members="[' in done.stdout  # the buttons of the legend
    assert 'data-drawn="true"' in done.stdout
    assert done.stdout.count('class="plot-container') > 10


def test_a_single_run_has_a_report(tmp_path):
    html = page(comparison(write_run(tmp_path / "run")))
    assert 'id="curves"' in html
    assert 'id="effects"' not in html


def test_many_groups_are_drawn_with_few_traces_and_what_is_left_out_is_said(tmp_path):
    for latent_dim in range(1, 46):
        write_run(tmp_path / f"{latent_dim}", 0, -200 + latent_dim, latent_dim=latent_dim)
    found = comparison(tmp_path)
    for figure in (
        figures.effect(found, "latent_dim", "val/elbo"),
        figures.plane(found, "val/mse"),
        figures.plane(found, "val/elbo", x="train_seconds"),
    ):
        assert len(figure.data) <= 2 + 2 * 11  # colours
        assert {n for trace in figure.data for n in (trace.meta or {}).get("groups", ())} == set(range(1, 46))
    assert len({trace.meta["group"] for trace in figures.curves(found, "val/elbo").data}) == 24
    html = page(found)
    assert "Only the first 24 of 45 groups are drawn." in html
    assert "Only the fastest 40 are bars." in html


def test_an_autoencoder_beside_a_vae_is_compared_by_mse(tmp_path):
    for seed in range(3):
        point = {"posterior": "deterministic", "posterior._target_": "vae_lab.models.posteriors.Deterministic"}
        write_run(tmp_path / f"a{seed}", seed, None, 0.01 + 0.001 * seed, changes=point)
        normal = {"posterior._target_": "vae_lab.models.posteriors.Gaussian"}
        write_run(tmp_path / f"b{seed}", seed, -90, 0.02 - 0.001 * seed, changes=normal)
    found = comparison(tmp_path)
    assert (found.by, found.sort) == (["posterior"], "val/mse")
    assert found.groups[0].label == "deterministic"
    page(found)


# figures


def colours_in(figure) -> dict[int, set[str]]:
    """The colours of the lines and marks of each group."""
    found: dict[int, set[str]] = {}
    for trace in figure.data:
        meta = trace.meta or {}
        of_marks = zip(meta.get("groups", ()), trace.marker.color if meta.get("groups") else (), strict=False)
        of_line = [(meta["group"], trace.line.color)] if "group" in meta else []
        for number, colour in (*of_marks, *of_line) if not isinstance(trace.marker.color, str) else ():
            found.setdefault(number, set()).add(colour)
    return found


def test_a_group_has_the_same_colour_in_all_figures(sweep):
    found = comparison(sweep, sort="mse")
    colours = {number: {colour} for _, members, colour in figures.colours_of(found) for number in members}
    drawn = [
        figures.curves(found, "val/mse"), figures.plane(found, "val/mse"), figures.effect(found, "model", "val/mse"),
        figures.plane(found, "val/mse", x="train_seconds"), figures.speed(found),
    ]  # fmt: skip
    for figure in drawn:
        assert colours_in(figure) == colours
    (lines,) = figures.parallel(found).data
    numbers = lines.meta["groups"]
    (axis,) = (axis for axis in lines.dimensions if axis.label.startswith("mse"))
    assert sorted(axis.range) == [min(axis["values"]), max(axis["values"])]
    assert [{colour} for _, colour in lines.line.colorscale] == [colours[number] for number in numbers]


def test_curves_hold_training_and_validation_and_can_be_switched(tmp_path):
    for seed in range(2):
        write_run(tmp_path / str(seed), seed, -100 - seed)
    figure = figures.curves(comparison(tmp_path), "val/elbo")
    dotted, single, other, band, mean = sorted(figure.data, key=lambda t: (t.line.dash != "dot", t.line.width == 2.4))
    assert (list(dotted.y), list(mean.y)) == ([-119.5, -109.5, -99.5], [-120.5, -110.5, -100.5])
    assert (list(single.y), list(other.y)) == ([-120, -110, -100], [-121, -111, -101])
    assert list(band.y) == [-120, -110, -100, -101, -111, -121]
    assert "nats per image" in mean.hovertemplate
    assert "seed 1" in other.hovertemplate
    units, scale, stages = figure.layout.updatemenus
    assert [button.label for button in units.buttons] == ["step", "epoch", "time"]
    at = figure.data.index(mean)
    assert [tuple(button.args[0]["x"][at]) for button in units.buttons] == [(10, 20, 30), (1, 2, 3), (5, 15, 25)]
    assert [button.label for button in scale.buttons] == ["linear", "log x"]  # the ELBO is negative
    assert [button.label for button in stages.buttons] == ["val + train", "val", "train"]
    labels = [button.label for button in figures.curves(comparison(tmp_path), "val/mse").layout.updatemenus[1].buttons]
    assert labels == ["linear", "log x", "log y", "log x, y"]


@pytest.mark.parametrize(
    ("values", "kind", "places"),
    [((2, 3, 4), "linear", [2, 3, 4]), ((1e-4, 1e-2, 1), "log", [1e-4, 1e-2, 1]),
     ((-1, 0, 8), "linear", [-1, 0, 8]), (("b", "<a>", 3), "linear", [0, 1, 2])],
)  # fmt: skip
def test_a_setting_that_is_a_number_has_an_axis_of_numbers(values, kind, places, tmp_path):
    for i, value in enumerate(values):
        write_run(tmp_path / f"r{i}", 0, -100 - i, latent_dim=value, changes={"loss.KLD_weight": i})
    found = comparison(tmp_path, by=["latent_dim"])
    figure = figures.effect(found, "latent_dim", "val/elbo")
    assert figure.layout.xaxis.type == kind
    if "<a>" in values:
        assert list(figure.layout.xaxis.ticktext) == ["3", "b", "&lt;a&gt;"]
    assert sorted(x for trace in figure.data if "groups" in (trace.meta or {}) for x in trace.x) == places


@pytest.mark.parametrize(("num", "is_outside"), [(2, False), (9, True)])
def test_a_run_that_diverged_hides_no_difference_of_the_others(num, is_outside, tmp_path):
    for i in range(num):
        write_run(tmp_path / f"r{i}", 0, -100.5 - i if i else -1e9, latent_dim=i)
    found = comparison(tmp_path, by=["latent_dim"])
    drawn = [figures.curves(found, "val/elbo"), figures.effect(found, "latent_dim", "val/elbo")]
    for figure in [*drawn, figures.plane(found, "val/elbo")]:
        assert any("outside" in note.text for note in figure.layout.annotations) is is_outside
        if is_outside:
            assert all(-200 < end < 0 for end in figure.layout.yaxis.range)
    best = groups_table(found).rows[0].cells[1].text  # with four digits of what most have
    assert best == ("−101.5" if is_outside else "−102")


def test_no_point_is_better_in_both_than_one_of_the_pareto_front():
    points = [(float(x), float(y)) for x, y in np.random.default_rng(0).random((50, 2))]
    front = pareto(points)
    for x, y in points:
        is_beaten = any((a <= x and b < y) or (a < x and b <= y) for a, b in points)
        assert is_beaten is ((x, y) not in front)


# models and W&B


def test_models_are_drawn_on_the_same_inputs_and_latents(config, tmp_path):
    for latent_dim in (2, 3):
        train(config(f"latent_dim={latent_dim}", "trainer.max_epochs=1", run_dir=f"runs/{latent_dim}"))
    (tmp_path / "runs" / "3" / "checkpoints" / "best.ckpt").unlink()
    shutil.copytree(tmp_path / "runs" / "2", tmp_path / "runs" / "4")
    path = tmp_path / "runs" / "4" / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("latent_dim: 2", "latent_dim: 5"))  # does not fit its checkpoint
    found = comparison(tmp_path / "runs")
    gallery = draw_groups(found.groups, 12, None)
    drawn = next(group.number for group in found.groups if group.settings["latent_dim"] == "2")
    numbers = {kind: [number for number, *_ in strips] for kind, strips in gallery.strips.items()}
    assert numbers.items() >= {"reconstructions": [None, drawn], "samples": [drawn], "traversals": [drawn]}.items()
    (note,) = gallery.notes
    assert "does not fit its config" in note
    assert draw_groups(found.groups, 12, None).strips == gallery.strips
    assert gallery.html() in page(found, gallery)


def test_missing_images_are_said_and_nothing_is_downloaded(config, tmp_path, monkeypatch):
    train(config("trainer.max_epochs=1"))
    path = tmp_path / "run" / ".hydra" / "config.yaml"
    text = path.read_text().replace("standard.Digits", "standard.MNIST")
    path.write_text(text.replace("  fit: ${dataset.fit}", "  fit: ${dataset.fit}\n    root: nowhere"))
    monkeypatch.chdir(tmp_path)
    gallery = draw_groups(comparison(tmp_path / "run").groups, 12, None)
    assert "cannot be read" in gallery.notes[0]
    assert "downloads nothing" in gallery.notes[0]
    assert gallery.strips["samples"]
    assert not gallery.strips["reconstructions"]


def online(folder: Path) -> SimpleNamespace:
    """The run of a folder as W&B gives it: its config resolved, in another order, and more of W&B's own everywhere."""
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    config = OmegaConf.to_container(cfg.copy(), resolve=False) | {"data_root": "/elsewhere", "run_dir": "/tmp/run"}
    config = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    config["choices"] = dict(reversed(yaml.safe_load((folder / ".hydra" / "choices.yaml").read_text()).items()))
    config |= {"_wandb": {"x": 1}}
    config["images"] = json.loads((folder / "status.json").read_text())["images"]
    rows = [json.loads(line) | {"_step": 1} for line in (folder / "metrics.jsonl").read_text().splitlines()][::-1]
    state = {"completed": "finished"}.get(json.loads((folder / "status.json").read_text())["state"], "failed")
    result = folder / "result.json"
    summary = json.loads(result.read_text()) if result.is_file() else {}
    return SimpleNamespace(
        name=folder.name, url=f"https://wandb.ai/{folder.name}", state=state, scan_history=lambda: rows,
        config=json.dumps(config, sort_keys=True), summary=summary | {"_step": 3, "picture": {"_type": "image-file"}},
    )  # fmt: skip


def test_runs_make_the_same_groups_online_and_on_disk(sweep, tmp_path):
    for i, latent_dim in enumerate((2, 4, 4)):
        changes = CONV if i == 2 else {"optimizer.schedule": {}, "model.hidden_dims": [32, i]}
        write_run(tmp_path / "a" / str(i), i, latent_dim=latent_dim, changes=changes, loss__KLD_weight=1 + i)
    for folder in (sweep, tmp_path / "a"):
        runs = {("me/project", "my/group"): [online(run) for run in sorted(folder.glob("*/"))]}
        api = SimpleNamespace(runs=lambda path, filters, runs=runs: runs[path, filters["group"]])
        here, there = comparison(folder), compare(online_runs("me/project/my/group", api))
        assert (there.by, there.keys, there.sort, there.apart) == (here.by, here.keys, here.sort, here.apart)
        assert [(g.label, g.verdict, sorted(run.name for run in g.runs)) for g in there.groups] == [
            (g.label, g.verdict, sorted(run.name for run in g.runs)) for g in here.groups
        ]


@pytest.mark.slow
def test_the_comparison_becomes_a_view_in_wandb(sweep, tmp_path, monkeypatch):
    alone(monkeypatch, tmp_path / "home")
    command = "from vae_lab.__main__ import compare; compare()"
    arguments = [sweep, "out=report", "images=false", "wandb_view=me/project/my/group"]
    with WandbServer() as server:
        go_online(monkeypatch, server.url)
        done = subprocess.run(
            [sys.executable, "-c", command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    assert f"view      {server.url}/me/project?nw=" in done.stdout
    (view,) = server.views
    assert (view["entityName"], view["projectName"]) == ("me", "project")
    spec = json.loads(view["spec"])["section"]
    (runs,) = spec["runSets"]
    (shown,) = runs["filters"]["filters"]
    assert (shown["key"]["name"], shown["op"], shown["value"]) == ("group", "=", "my/group")
    assert {"config:loss.value.likelihood._target_", "summary:val/mse"} <= runs["runFeed"]["columnPinned"].keys()
    panels = [panel for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]]
    (parallel,) = (p["config"] for p in panels if p["viewType"] == "Parallel Coordinates Plot")
    axes = [axis["accessor"] for axis in parallel["columns"]]
    assert axes[:2] == ["config:model.value.decoder._target_", "config:loss.value.likelihood._target_"]
    planes = [(p["config"]["xAxis"], p["config"]["yAxis"]) for p in panels if p["viewType"] == "Scatter Plot"]
    assert planes[0] == ("summary:val/kl", "summary:val/reconstruction")


def test_a_view_that_wandb_refuses_is_one_line(sweep, monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **how: False)
    with pytest.raises(RunError, match="cannot save a view in me/project: no API key"):
        save_view(comparison(sweep), "me/project")
    with pytest.raises(ValueError, match="wandb_view must be ENTITY/PROJECT"):
        save_view(comparison(sweep), "project")
    monkeypatch.setattr("vae_lab.compare.wandb.find_spec", lambda name: None)
    with pytest.raises(RunError, match="needs the package wandb-workspaces: pip install"):
        save_view(comparison(sweep), "me/project")


def test_online_failures_are_one_line_and_nothing_is_asked(monkeypatch):
    def fail(path, filters):
        raise OSError("no\nnetwork")

    empty = SimpleNamespace(runs=lambda path, filters: [])
    monkeypatch.setattr("wandb.login", lambda **how: False)
    for path, api, message in (("me/project", SimpleNamespace(runs=fail), "read me/project from W&B: no network"),
                               ("me/project", empty, "has no runs"), ("project", empty, "ENTITY/PROJECT"),
                               ("me/project", None, "read me/project from W&B: no API key")):  # fmt: skip
        with pytest.raises((RunError, ValueError), match=message):
            online_runs(path, *([api] if api else []))


def test_wrong_settings_are_refused(tmp_path):
    for key in DEFAULTS:
        assert f"  {key}=" in USAGE or f" {key}=" in USAGE, key
    with pytest.raises(ValueError, match="sort must be METRIC or -METRIC"):
        compare_runs([str(tmp_path), "sort=-"])
    for wrong in (["--what"], ["x=1"], [], ["max_images=0", "a"], ["spread=x", "a"], ["sort=", "a"]):
        with pytest.raises(ValueError, match=r"\w"):
            compare_runs(wrong)
    assert default_out([tmp_path], None) != default_out([tmp_path / "b"], None)
    assert default_out([tmp_path], None).parent == Path("outputs/compare")
