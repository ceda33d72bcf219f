"""Every posterior with every objective, and every pair of the options that make a model: it runs, or it is refused.

All of it is read from `conf/`: a new option is tried without a line here. Each row is built as a run builds it, takes
two steps on a few random images and is evaluated.
"""

import io
import itertools
import re
from functools import cache

import pytest
import torch
from composed import composed
from omegaconf import OmegaConf

from vae_lab.__main__ import CONF
from vae_lab.config.instantiate import build_vae
from vae_lab.data.batches import Batch
from vae_lab.metrics.catalogue import UNKNOWN, find
from vae_lab.objectives import Context
from vae_lab.training.build import build_members, build_objective, check_trained, names_of_metrics
from vae_lab.training.module import LitVAE
from vae_lab.training.steps import Waits

GROUPS = ("posterior", "objective", "prior", "loss", "model")
FLAGS = ("conditional", "spatial")  # of a model: its options are tried with each of those that it has
DEFAULT = {"posterior": "gaussian", "objective": "elbo", "prior": "standard_normal", "loss": "bce", "model": "mlp"}
COMPANION = {"rae": {"posterior": "deterministic"}, "gan": {"posterior": "none"}, "none": {"objective": "gan"}}
NUM_CLASSES = 3
# Samples have no gradient for the weights of a mixture, which then stay equal.
UNTRAINED = {"prior.logits"}
REFUSED = {
    "objective=gan": "GAN never trains the encoder, MLPEncoder; choose posterior=none",
    "objective=gan posterior=none loss=gaussian": "GAN never trains the likelihood, LearnedGaussian; choose a",
    "objective=aae prior=flow": "AAE never trains the prior, Flow; choose prior=standard_normal",
    "objective=iwae posterior=vq": "IWAE needs a posterior with a density, whose samples differ, got VectorQuantizer",
    "objective=iwae posterior=deterministic": "IWAE needs a model with prior, which posterior Deterministic has",
    "objective=capacity posterior=fsq": "Capacity needs a posterior with a density, whose samples differ",
    "objective=beta_tc posterior=planar": "BetaTC needs a posterior that is a diagonal Gaussian, got Planar",
    "objective=rae": "RAE needs a posterior that is a point",
    "objective=elbo posterior=none": "ELBO needs a model with encoder",
    "prior=vamp posterior=iaf": "prior=vamp needs a posterior that is a diagonal Gaussian",
    "prior=vamp model=mlp conditional": "needs an encoder without labels",
    "prior=mixture posterior=vmf": "VonMisesFisher brings a prior of its own",
    "posterior=iaf model=conv spatial": "InverseAutoregressive has one vector of latents for each image, not a grid",
}
# Sums over images. The loss is one too, unless the docstring of the objective says that it depends on the batch.
OF_IMAGES = {"reconstruction", "kl", "elbo", "bound_is4", "bound_is5", "bound_is16"}
OF_BATCHES = {"capacity", "beta_tc", "dip", "info", "wae_mmd", "gan", "vae_gan"}


@cache
def options(group: str) -> list[str]:
    """The options of a group; a model's flags follow its name, as `conv conditional spatial`."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if group != "model":
        return names
    found = []
    for name in names:
        flags = [flag for flag in FLAGS if flag in OmegaConf.load(CONF / group / f"{name}.yaml")]
        subsets = [flags[:n] for n in range(len(flags) + 1)] + [flags[1:]] * (len(flags) > 1)
        found += [" ".join([name, *each]) for each in subsets]
    return found


@cache
def part(group: str, option: str):
    """The config of an option, as small as can be."""
    name, *flags = option.split()
    node = load(group, name)
    node.update(dict.fromkeys(flags, True))
    shrink(node)
    return node


def load(group: str, name: str):
    """A file of `conf/` with those that its defaults name, as Hydra composes them, which takes longer."""
    node = OmegaConf.load(CONF / group / f"{name}.yaml")
    defaults = node.pop("defaults", ["_self_"])
    return OmegaConf.merge(*(node if one == "_self_" else load(group, one.partition("@")[0]) for one in defaults))


def shrink(node) -> None:
    for key in node:
        if OmegaConf.is_interpolation(node, key):
            continue
        if key in ("channels", "hidden_dims"):
            node[key] = [4] * len(node[key])
        elif key in ("hidden_dim", "num_codes", "components"):
            node[key] = 8
        elif OmegaConf.is_dict(node[key]):
            shrink(node[key])


@cache
def rest():
    cfg = composed("dataset.image_size=16", f"dataset.num_classes=[{NUM_CLASSES}]", "latent_dim=4")
    return OmegaConf.masked_copy(cfg, ["latent_dim", "dataset"])


@cache
def metrics() -> list:
    return list(build_members(composed("metrics=all").metrics, "metrics", ("update", "compute")).values())


def build(row: dict[str, str], is_measured: bool = True) -> LitVAE:
    """Build a row, with all metrics if it is measured, and make the checks that a run makes before it starts."""
    cfg = OmegaConf.merge(rest(), {group: part(group, option) for group, option in row.items()})
    vae = build_vae(cfg)
    objective = build_objective(cfg, vae)
    measured = metrics() if is_measured and vae.encoder is not None else []
    lit = LitVAE(vae, objective, measured, torch.optim.Adam, None, lr=1e-3, seed=0)
    names_of_metrics(lit)
    check_trained(lit)
    return lit


def train(lit: LitVAE, batch: Batch) -> None:
    """Take two steps of the model and of its adversary."""
    vae, objective, adversary = lit.vae, lit.objective, lit.adversary
    optimizers = lit.new_optimizers()
    for step in range(2):
        context = Context(step, 100, "train")
        if adversary is not None:
            adversary.requires_grad_(False)
        vae.zero_grad()
        with Waits("cpu") as waits:
            terms = objective(vae, batch, context)
            terms["loss"].backward()
        assert not waits.found
        optimizers[0].step()
        of_model = {key: parameter.grad for key, parameter in vae.named_parameters()}
        assert {key for key, gradient in of_model.items() if gradient is None} <= UNTRAINED
        assert all(gradient.isfinite().all() for gradient in of_model.values() if gradient is not None)
        check_terms(terms)
        if adversary is None:
            continue
        adversary.requires_grad_(True)
        adversary.zero_grad()
        with Waits("cpu") as waits:
            judged = objective.adversary_loss(vae, batch, context)
        assert not waits.found
        both = [*adversary.parameters(), *vae.parameters()]
        found = torch.autograd.grad(judged["discriminator_loss"], both, allow_unused=True, retain_graph=True)
        num = len(list(adversary.parameters()))
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found[:num])
        assert all(gradient is None for gradient in found[num:])  # the model learns nothing from its adversary's loss
        judged["discriminator_loss"].backward()
        optimizers[1].step()
        check_terms(judged)


def check_terms(terms: dict[str, torch.Tensor]) -> None:
    assert all(value.ndim == 0 and value.isfinite() for value in terms.values()), terms
    assert [key for key in terms if find(key) is UNKNOWN] == []
    assert ("elbo" in terms) == ("kl" in terms)
    if "elbo" in terms:
        torch.testing.assert_close(terms["elbo"], -(terms["reconstruction"] + terms["kl"]))


def evaluate(lit: LitVAE, batch: Batch, num: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    """The terms of a batch in evaluation, or their means over batches of `num` images."""
    torch.manual_seed(seed)
    sizes = len(batch.x) if num is None else num
    parts = zip(batch.x.split(sizes), batch.y.split(sizes), strict=True)
    found = [lit.objective(lit.vae, Batch(*one), Context(2, 100, "val")) for one in parts]
    for terms in found:
        check_terms(terms)
    return {key: sum(terms[key] for terms in found) / len(found) for key in found[0]}


def check_evaluation(lit: LitVAE, batch: Batch, names: set[str]) -> None:
    """What is a sum over images does not depend on how they are batched, if each image gets the same noise."""
    whole = evaluate(lit, batch)
    if any(whole[key] != value for key, value in evaluate(lit, batch, seed=1).items()):
        return  # not all noise is from `randn`
    for key, value in evaluate(lit, batch, 2).items():
        if key in OF_IMAGES or key == "loss" and not names & OF_BATCHES:
            # sums of 256 pixels in float32
            torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-4, msg=key)


def check_round_trip(lit: LitVAE, batch: Batch, row: dict[str, str]) -> None:
    """Another model with the stored weights is the same model."""
    file = io.BytesIO()
    torch.save(lit.state_dict(), file)
    file.seek(0)
    with torch.enable_grad():
        again = build(row)
    again.load_state_dict(torch.load(file, weights_only=True))
    again.eval()
    for key, value in evaluate(lit, batch).items():
        assert torch.equal(evaluate(again, batch)[key], value), key


def pairs(row: dict[str, str]) -> set[tuple]:
    return set(itertools.combinations(((group, row[group]) for group in GROUPS if group in row), 2))


def rows(ran: set[tuple]):
    """Each pair of options that did not run yet, beside others whose pairs did not; if that is refused, by itself."""
    refused: set[tuple] = set()
    for one, other in itertools.combinations(GROUPS, 2):
        for a, b in itertools.product(options(one), options(other)):
            row = {one: a, other: b}
            pair = pairs(row)
            if pair <= ran:
                continue
            for group in GROUPS:
                found = {option: pairs(row | {group: option}) for option in (DEFAULT[group], *options(group))}
                fit = [option for option in found if not found[option] & refused] or [DEFAULT[group]]
                row.setdefault(group, max(fit, key=lambda option: len(found[option] - ran)))  # noqa: B023
            yield {group: row[group] for group in GROUPS}
            if not pair <= ran:
                yield DEFAULT | COMPANION.get(a, {}) | COMPANION.get(b, {}) | {one: a, other: b}
                refused |= pair - ran


def same_noise(*shape, generator=None, device=None, dtype=None):
    """Normal noise (S, B, ...) that is the same for each of the B images."""
    shape = shape[0] if isinstance(shape[0], torch.Size) else shape
    drawn = torch.empty(shape[0], *shape[2:]).normal_(generator=torch.Generator().manual_seed(0))
    return drawn.unsqueeze(1).expand(shape)


def one_hot(indices, num_classes):
    """As torch has it for a GPU: on a CPU it reads the indices, to check their range."""
    return (indices[..., None] == torch.arange(num_classes)).long()


def walk(rows, ran: set[tuple], monkeypatch, round_trip: bool = False) -> dict[tuple, str]:
    """Try rows, noting the pairs of options that ran together; returns of each row that was refused the reason."""
    batch = Batch((torch.rand(4, 1, 16, 16) * 255).round() / 255, torch.randint(NUM_CLASSES, (4, 1)))
    refused = {}
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)
    for row in rows:
        if pairs(row) <= ran or tuple(row.items()) in refused:
            continue
        try:
            lit = build(row, round_trip or row["objective"] == DEFAULT["objective"])
        except ValueError as error:
            refused[tuple(row.items())] = str(error)
            continue
        try:
            train(lit, batch)
            lit.eval()
            with torch.no_grad(), monkeypatch.context() as patch:
                if round_trip:
                    check_round_trip(lit, batch, row)
                patch.setattr(torch, "randn", same_noise)
                check_evaluation(lit, batch, set(row.values()))
        except Exception as error:
            raise AssertionError(f"{row}: {error}") from error
        ran |= pairs(row)
    return refused


@pytest.mark.slow
def test_every_option_runs_and_is_stored(monkeypatch):
    rows = [DEFAULT | COMPANION.get(option, {}) | {group: option} for group in GROUPS for option in options(group)]
    assert walk(rows, set(), monkeypatch, round_trip=True) == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_pair_runs_or_is_refused_in_one_line(monkeypatch):
    ran: set[tuple] = set()
    refused = walk(rows(ran), ran, monkeypatch)
    assert [reason for reason in refused.values() if len(reason) > 250 or "\n" in reason] == []


@pytest.mark.parametrize(("settings", "message"), REFUSED.items(), ids=REFUSED)
def test_what_makes_no_model_is_refused_with_the_reason(settings, message):
    with pytest.raises(ValueError, match=message):
        build(DEFAULT | dict(re.findall(r"(\w+)=(.+?)(?= \w+=|$)", settings)))
