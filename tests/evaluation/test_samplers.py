"""Samplers: each draws the law of the codes that it was fitted to, and is kept in the run folder."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from vae_lab.errors import RunError
from vae_lab.evaluation import samplers
from vae_lab.evaluation.evaluate import evaluate_runs
from vae_lab.evaluation.samplers import TRAINED, Autoregressive, Flow, Mixture, TwoStage
from vae_lab.models.priors import StandardNormal
from vae_lab.training.train import train


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


class Same(nn.Module):
    def forward(self, x):
        return x


def test_an_identity_second_stage_changes_no_sample():
    shape = (3, 2, 2)
    sampler = TwoStage(shape)
    sampler.decoder = Same()
    with torch.no_grad():
        sampler.log_gamma.fill_(-math.inf)  # no noise
        assert torch.equal(sampler.sample(5, generator()), StandardNormal(shape).sample(5, generator()))


@pytest.mark.parametrize("sampler", [Flow((4,)), Mixture((4,), 1)], ids=["flow", "mixture"])
def test_before_its_fit_a_sampler_is_the_standard_normal(sampler):
    with torch.no_grad():
        z = sampler.sample(20_000, generator())
    # 4 standard errors of a mean, and of a covariance
    assert z.mean(0).abs().max() < 4 / math.sqrt(20_000)
    assert (z.T.cov() - torch.eye(4)).abs().max() < 4 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize(
    ("make", "steps", "tolerance"),
    [(lambda: Mixture((2, 1, 1), 1), 1, 0.1), (lambda: Mixture((2, 1, 1), 10), 1, 0.1),
     (lambda: Flow((2, 1, 1)), 150, 0.5), (lambda: TwoStage((2, 1, 1)), 150, 0.5)],
    ids=["gaussian", "mixture", "flow", "two_stage"],
)  # fmt: skip
@pytest.mark.slow
def test_the_samples_follow_the_codes(make, steps, tolerance):
    """Of a correlated Gaussian far from the origin; a fit by gradient is short here, so that it is only near."""
    mean, factor = torch.tensor([5.0, -3.0]), torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    codes = (mean + torch.randn(4000, 2) @ factor.T)[:, :, None, None]
    sampler = make()
    sampler.fit(codes, steps)
    with torch.no_grad():
        z = sampler.sample(4000, generator())
    assert z.shape == codes.shape
    assert (z.flatten(1).mean(0) - mean).abs().max() < tolerance
    torch.testing.assert_close(z.flatten(1).T.cov(), factor @ factor.T, rtol=tolerance, atol=2 * tolerance)


def test_without_a_terminal_a_long_fit_says_how_far_it_is(monkeypatch, capsys):
    for quiet, lines in ((0, 9), (60, 0)):
        monkeypatch.setattr(samplers, "QUIET_SECONDS", quiet)
        assert list(samplers.shown(25)) == list(range(25))
        assert len(told := capsys.readouterr().err.splitlines()) == lines
        assert not told or told[-1].startswith("fitting: 23 of 25 steps, 0:00:0")


def test_a_mixture_finds_separate_clusters():
    codes = torch.cat([torch.randn(500, 2) + 20, torch.randn(500, 2) - 20])
    sampler = Mixture((2,), 2)
    sampler.fit(codes, 1)
    z = sampler.sample(1000, generator())
    assert (z.abs() - 20).abs().max() < 6
    assert 400 < (z[:, 0] > 0).sum() < 600  # more than 6 standard errors


def test_a_place_depends_on_those_before_it_only():
    sampler = Autoregressive((2, 3, 2), num_codes=5, width=16, depth=2).eval()
    with torch.no_grad():
        indices = torch.randint(5, (1, 12))
        whole = sampler(indices)
        assert whole.shape == (1, 12, 5)
        for place in range(12):
            changed = indices.clone()
            changed[:, place:] = (changed[:, place:] + 1) % 5
            # Float32 sums over another number of places.
            torch.testing.assert_close(sampler(changed)[:, : place + 1], whole[:, : place + 1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(sampler(indices[:, :place])[:, -1], whole[:, place], rtol=1e-4, atol=1e-5)
            if place < 11:
                assert not torch.allclose(sampler(changed)[:, place + 1], whole[:, place + 1], atol=1e-4)


@pytest.mark.slow
def test_codes_that_follow_from_the_first_are_drawn_so():
    first = torch.randint(4, (512, 1))
    codes = ((first + torch.arange(4)) % 4).view(512, 1, 2, 2)
    sampler = Autoregressive((1, 2, 2), num_codes=4, width=32, depth=1)
    sampler.fit(codes, 150)
    with torch.no_grad():
        drawn = sampler.eval().sample(200, generator()).flatten(1)
    follows = (drawn == (drawn[:, :1] + torch.arange(4)) % 4).all(1)
    assert follows.float().mean() > 0.9  # one in 64 by chance
    assert drawn[:, 0].bincount(minlength=4).min() > 20


FITTED = {
    "mixture": ["posterior=deterministic"],
    "two_stage": [],
    "autoregressive": ["posterior=fsq", "posterior.levels=[3,3,2]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_an_evaluation_fits_a_sampler_once_and_draws_from_it(name, config, monkeypatch, caplog):
    cfg = config(*FITTED[name], "trainer.max_steps=2")
    train(cfg)
    folder = Path(cfg.run_dir)
    arguments = [str(folder), "samples=3", f"sampler={name}"] + ["sampler_steps=2"] * (name in TRAINED)
    evaluate_runs(arguments)
    pictures = {path.name: path.read_bytes() for path in (folder / f"samples_{name}").iterdir()}
    assert len(pictures) == 3
    monkeypatch.setattr("vae_lab.evaluation.samplers.encode", None)  # is not needed again
    evaluate_runs(arguments)
    assert {path.name: path.read_bytes() for path in (folder / f"samples_{name}").iterdir()} == pictures
    (folder / "samplers" / f"{name}.safetensors").write_bytes(b"gar")
    with pytest.raises(RunError, match=r"safetensors is damaged: .*; delete it to fit the sampler again"):
        evaluate_runs(arguments)


def test_steps_of_what_is_not_trained_are_refused():
    with pytest.raises(ValueError, match="sampler_steps=9 has no effect with sampler=mixture, only with flow, two_st"):
        evaluate_runs(["folder", "samples=3", "sampler=mixture", "sampler_steps=9"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [([], ""), (["loss.KLD_weight=1e-6"], "the mean square of a latent is .*sampler=mixture"),
     (["posterior=fsq", "posterior.levels=[3,3,2]"], "sampler=autoregressive")],
    ids=["elbo", "small_weight", "book"],
)  # fmt: skip
def test_samples_of_a_prior_that_is_not_the_law_of_the_codes_are_explained(overrides, said, config, capsys):
    cfg = config(*overrides, "trainer.max_steps=1")
    train(cfg)
    if "loss.KLD_weight=1e-6" in overrides:  # what many steps would do
        path = Path(cfg.run_dir) / "checkpoints" / "best.ckpt"
        content = torch.load(path, weights_only=True)
        content["state_dict"] = {k: 20 * v if "encoder" in k else v for k, v in content["state_dict"].items()}
        torch.save(content, path)
    capsys.readouterr()
    evaluate_runs([cfg.run_dir, "samples=200"])
    found = capsys.readouterr().err
    assert re.search(said, found) if said else "expect noise" not in found


def test_what_cannot_be_fitted_is_refused_with_the_reason(config):
    for overrides, name, reason in (
        (["objective=gan", "posterior=none"], "flow", "which posterior=none does not have; leave sampler=prior"),
        ([], "autoregressive", r"needs the codes of a book \(posterior=vq or fsq\), got posterior Gaussian"),
    ):
        cfg = config(*overrides, "trainer.max_steps=1", run_dir=name)
        train(cfg)
        with pytest.raises(ValueError, match=f"sampler={name}.*{reason}"):
            evaluate_runs([cfg.run_dir, "samples=1", f"sampler={name}"])
    with pytest.raises(ValueError, match="sampler"):
        evaluate_runs([cfg.run_dir, "sampler=vamp"])
