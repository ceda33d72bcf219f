"""Codes: which is chosen, what it costs, how gradients pass, and how the book follows."""

import copy
import math
import os

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributions import OneHotCategorical, RelaxedOneHotCategorical

from vae_lab.models.priors import StandardNormal
from vae_lab.models.quantizers import (
    FiniteScalarQuantizer,
    GumbelSoftmax,
    VectorQuantizer,
    perplexity,
)

LEVELS = [8, 5, 2, 3]


def vq(num_codes=16, code_dim=4, commitment=0.25, decay=0.99, revive_below=0.1):
    return VectorQuantizer(num_codes, code_dim, commitment, decay, revive_below)


def trained_vq(**settings):
    """One that has seen vectors of the kind that the tests use."""
    quantizer = vq(**settings)
    quantizer(torch.randn(64, quantizer.code_dim))
    return quantizer.eval()


CODES = {"vq": lambda: trained_vq(), "fsq": lambda: FiniteScalarQuantizer(LEVELS)}


@pytest.mark.parametrize("grid", [(), (3, 2)])
@pytest.mark.parametrize("name", CODES)
def test_codes_cost_log_k_at_each_place_and_pass_gradients_through(name, grid):
    quantizer = CODES[name]()
    params = torch.randn(6, 8, *grid, requires_grad=True)
    q, prior, num = quantizer(params.bfloat16()), quantizer.prior((8, *grid)), quantizer.num_codes
    assert q.mean.shape == params.shape
    assert q.mean.dtype == torch.float32
    assert q.indices.shape == q.kl(prior).shape == (6, 2, *grid)  # two codes of four latents
    torch.testing.assert_close(q.kl(prior), torch.full(q.indices.shape, math.log(num)))
    z = q.rsample(3)
    assert torch.equal(z, q.mean.expand(3, *q.mean.shape))
    # The sampled KL is the exact one: all the mass is on the code.
    torch.testing.assert_close((q.log_prob(z) - prior.log_prob(z)), q.kl(prior).flatten(1).sum(1).expand(3, -1))
    assert (q.log_prob(z + 0.1) == -math.inf).all()
    assert q.kl(StandardNormal((8, *grid))) is None
    # Indices and codes are the same thing.
    assert torch.equal(quantizer.lookup(q.indices), q.mean)
    assert torch.equal(quantizer.project(q.mean), q.mean)
    assert 1 <= q.diagnostics()["perplexity"] <= num
    drawn = prior.sample(5, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, prior.sample(5, torch.Generator().manual_seed(1)))
    assert torch.equal(quantizer.project(drawn), drawn)
    q.mean.sum().backward()
    assert params.grad.all()


def test_the_nearest_code_is_chosen_and_the_jacobian_is_the_identity():
    quantizer = trained_vq(num_codes=7)
    params = torch.randn(5, 4)
    q = quantizer(params)
    assert torch.equal(q.indices[:, 0], torch.cdist(params, quantizer.book).argmin(1))
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x[None]).mean[0], params[0])
    assert torch.equal(jacobian, torch.eye(4))
    distance = (params - q.mean).square().sum(1).mean()
    torch.testing.assert_close(q.terms, {"commitment": 0.25 * distance})


def test_the_perplexity_is_the_number_of_codes_in_even_use():
    assert perplexity(torch.full((12,), 3.0)).item() == pytest.approx(12)
    assert perplexity(torch.tensor([0.0, 7, 0])).item() == pytest.approx(1)


def test_the_book_follows_the_running_means_of_its_vectors():
    quantizer = vq(num_codes=3, code_dim=2, decay=0.8, revive_below=0.0)
    quantizer.book.copy_(torch.tensor([[0.0, 0], [10, 0], [0, 99]]))
    counts, sums, book = torch.zeros(3), torch.zeros(3, 2), quantizer.book.clone()  # the paper's N and m
    for _ in range(4):
        x = torch.cat([torch.randn(5, 2), torch.randn(3, 2) + torch.tensor([10.0, 0])])
        mine = torch.nn.functional.one_hot(torch.cdist(x, book).argmin(1), 3).float()
        quantizer(x)
        counts = 0.8 * counts + 0.2 * mine.sum(0)
        sums = 0.8 * sums + 0.2 * mine.T @ x
        book = torch.where(counts[:, None] > 0, sums / counts[:, None], book)
        torch.testing.assert_close(quantizer.book, book, rtol=1e-5, atol=1e-5)
    assert torch.equal(quantizer.book[2], torch.tensor([0.0, 99]))  # never used, never moved
    before = copy.deepcopy(quantizer.state_dict())
    with torch.no_grad():
        quantizer(x)
    quantizer.eval()(x)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)  # only training moves it


def test_dead_codes_are_revived_by_the_batch_and_the_same_way_from_the_same_seed():
    first, second = vq(num_codes=32), vq(num_codes=32)
    second.load_state_dict(first.state_dict())
    for quantizer in (first, second):
        torch.manual_seed(5)
        for _ in range(3):
            x = torch.randn(256, 4)
            quantizer(x)
        quantizer.book[4:] = 1e6  # far from everything
        quantizer.use[4:] = 0
        quantizer(x)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert first.book.abs().max() < 10
    assert first.eval()(x).diagnostics()["perplexity"] > 16
    # A batch of fewer vectors than codes, all the same, is no reason to stop.
    for _ in range(5):
        first.train()(torch.ones(2, 4))
    assert first.book.isfinite().all()


def test_a_book_trained_by_gradient_is_drawn_to_its_vectors():
    quantizer = vq(decay=None)
    x = torch.randn(32, 4, requires_grad=True)
    q = quantizer(x)
    q.terms["codebook"].backward()
    assert x.grad is None
    used = q.indices.unique()
    assert quantizer.book.grad[used].any(1).all()
    torch.testing.assert_close(q.terms["codebook"].detach(), 4 * q.terms["commitment"].detach())


def test_every_level_is_reached_and_indices_count_the_codes():
    quantizer = FiniteScalarQuantizer(LEVELS)
    axis = torch.linspace(-6, 6, 400)
    for place, num in enumerate(LEVELS):
        params = torch.zeros(400, 4)
        params[:, place] = axis
        levels = quantizer(params).mean[:, place].unique()
        assert len(levels) == num
        assert levels.min() == -1
    codes = quantizer.lookup(torch.arange(240)[:, None])
    assert len(codes.unique(dim=0)) == quantizer.num_codes == 240
    # An encoder output that is rounded to a code has its index: atanh undoes the bound, which a thousandth shrinks.
    odd = FiniteScalarQuantizer([5, 3])
    codes = odd.lookup(torch.arange(15)[:, None])
    assert torch.equal(odd((0.99 * codes).atanh()).indices[:, 0], torch.arange(15))


@pytest.mark.parametrize("grid", [(), (2, 3)])
def test_exact_categories_are_those_of_torch(grid):
    quantizer = GumbelSoftmax(3, 1.0, 0.5, 100).eval()
    params = torch.randn(4, 6, *grid)
    q, prior = quantizer(params), quantizer.prior((6, *grid))
    z = q.rsample(2000)
    assert z.unique().tolist() == [0, 1]
    # 5 standard errors of a share of 2,000
    assert (z.mean(0) - q.mean).abs().max() < 5 * 0.5 / math.sqrt(2000)
    logits = params.unflatten(1, (2, 3)).movedim(2, -1)
    expected = OneHotCategorical(logits=logits)
    places = z[:7].unflatten(2, (2, 3)).movedim(3, -1)
    torch.testing.assert_close(q.log_prob(z[:7]), expected.log_prob(places).flatten(2).sum(2))
    torch.testing.assert_close(q.kl(prior), math.log(3) - expected.entropy(), rtol=1e-5, atol=1e-6)
    # The mean log-ratio of exact samples is the KL.
    ratio = (q.log_prob(z) - prior.log_prob(z)).mean(0)
    torch.testing.assert_close(ratio, q.kl(prior).flatten(1).sum(1), rtol=0, atol=0.3)
    assert quantizer.project(prior.sample(5)).sum() == 5 * 2 * math.prod(grid)
    hard = quantizer(1e4 * params)
    torch.testing.assert_close(hard.kl(prior), torch.full((4, 2, *grid), math.log(3)))


def test_relaxed_categories_have_the_density_of_torch_and_gradients():
    quantizer = GumbelSoftmax(3, 1.0, 0.5, 100)
    quantizer.step = 50
    params = torch.randn(4, 6, requires_grad=True)
    q, prior = quantizer(params), quantizer.prior((6,))
    z = q.rsample(5)
    places = z.unflatten(2, (2, 3))
    temperature = torch.tensor(0.5**0.5)
    assert q.diagnostics() == {"temperature": pytest.approx(temperature)}
    expected = RelaxedOneHotCategorical(temperature, logits=params.unflatten(1, (2, 3)))
    even = RelaxedOneHotCategorical(temperature, logits=torch.zeros(3))
    torch.testing.assert_close(q.log_prob(z), expected.log_prob(places).sum(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior.log_prob(z), even.log_prob(places).sum(2), rtol=1e-4, atol=1e-4)
    z.square().sum().backward()
    assert params.grad.all()
    for step, value in ((0, 1.0), (100, 0.5), (1000, 0.5)):
        quantizer.step = step
        assert quantizer.current_temperature() == pytest.approx(value)


def share_of(rank, folder):
    """Train a book on one of two halves of the same vectors."""
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    half = torch.randn(64, 4, generator=torch.Generator().manual_seed(3)).chunk(2)[rank]
    torch.save((book_of(half), book_of(half, revive_below=0.5)), folder / f"{rank}.pt")
    distributed.destroy_process_group()


def book_of(x, revive_below=0.0):
    torch.manual_seed(int(x[0, 0] * 1000))  # each process draws its own numbers
    quantizer = vq(num_codes=4, revive_below=revive_below)
    quantizer.book.copy_(torch.eye(4))
    for _ in range(3):
        quantizer(x)
    return quantizer.book


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin as copies")
def test_processes_share_one_book(tmp_path):
    multiprocessing.start_processes(share_of, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # revived codes too
    whole = book_of(torch.randn(64, 4, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(first[0], whole, rtol=1e-5, atol=1e-6)
