import pytest
import torch
from linear_gaussian import SHAPE, LinearGaussian, Sampled

from vae_lab.data.batches import Batch
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.importance import CIWAE, IWAE, MIWAE

TRAINING = Context(0, 100, "train")


@pytest.fixture
def model() -> LinearGaussian:
    return LinearGaussian()


def evaluate(objective, vae, x):
    """The terms of a batch, and the gradient of all parameters, for the same noise."""
    torch.manual_seed(1)
    vae.zero_grad()
    terms = objective(vae, Batch(x), TRAINING)
    terms["loss"].backward()
    return terms, torch.cat([parameter.grad.flatten() for parameter in vae.parameters()])


# Each is the same bound of the same samples; the sums of a few terms of about 10 are float32.
SAME = {
    "iwae of one sample is the ELBO": (IWAE(1), ELBO(1.0, 0, 0.0)),
    "ciwae with beta = 0 is iwae": (CIWAE(4, 0.0), IWAE(4)),
    "miwae of one group is iwae": (MIWAE(1, 4), IWAE(4)),
    "miwae of groups of one is ciwae with beta = 1": (MIWAE(4, 1), CIWAE(4, 1.0)),
    "ciwae of one sample is the ELBO": (CIWAE(1, 0.3), ELBO(1.0, 0, 0.0)),
    "piwae of one group is iwae": (MIWAE(1, 4, partial=True), IWAE(4)),
    "doubly reparameterized, the value": (IWAE(4, "doubly_reparameterized"), IWAE(4)),
}


@pytest.mark.parametrize("case", SAME)
def test_special_cases_agree(model, case):
    vae, x = model.vae(0.3, 0.5), torch.randn(6, *SHAPE)
    vae.prior = Sampled()
    (terms, gradient), (others, expected) = (evaluate(objective, vae, x) for objective in SAME[case])
    for key in {*terms} & {*others}:
        torch.testing.assert_close(terms[key], others[key], rtol=1e-5, atol=1e-5)
    if "value" not in case:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_bound_rises_with_k_to_log_p(model):
    vae, x = model.vae(0.4, 0.7), torch.randn(5, *SHAPE).repeat(4000, 1, 1, 1)
    log_p = model.log_prob(x).mean().item()
    with torch.no_grad():
        bounds = [IWAE(k)(vae, Batch(x), TRAINING)[f"bound_is{k}"].item() for k in (1, 5, 50)]
        exact = IWAE(3)(model.vae(), Batch(x[:5]), TRAINING)["bound_is3"].item()
    assert bounds[0] < bounds[1] < bounds[2] < log_p + 0.01  # the standard error of the last is below 0.003
    assert bounds[2] == pytest.approx(log_p, abs=0.03)
    assert exact == pytest.approx(model.log_prob(x[:5]).mean().item(), abs=1e-4)  # no Monte Carlo error at all


class PerImage(torch.nn.Module):
    """An encoder whose output for each image is a parameter, so that each has a gradient of its own."""

    def __init__(self, params):
        super().__init__()
        self.params = torch.nn.Parameter(params)

    def forward(self, x):
        return self.params


def test_the_doubly_reparameterized_gradient_has_the_same_mean_and_less_variance(model):
    vae, x = model.vae(0.1, 0.1), torch.randn(1, *SHAPE).expand(4000, -1, -1, -1)
    with torch.no_grad():
        vae.encoder = PerImage(vae.encoder(x))
    of_encoder, of_decoder = [], []
    for objective in (IWAE(8), IWAE(8, "doubly_reparameterized")):
        evaluate(objective, vae, x)
        of_encoder.append(vae.encoder.params.grad * len(x))
        of_decoder.append(vae.decoder[0].weight.grad.clone())
    standard, doubly = of_encoder
    error = ((standard.var(0) + doubly.var(0)) / len(x)).sqrt()
    assert ((standard.mean(0) - doubly.mean(0)).abs() < 4 * error).all()
    assert (doubly.var(0) < 0.5 * standard.var(0)).all()
    torch.testing.assert_close(*of_decoder, rtol=1e-4, atol=1e-5)  # which is the same, sample by sample


def test_piwae_trains_the_decoder_as_iwae_and_the_encoder_as_miwae(model):
    vae, x = model.vae(0.3, 0.5), torch.randn(6, *SHAPE)
    objectives = {"piwae": MIWAE(3, 4, partial=True), "miwae": MIWAE(3, 4), "iwae": IWAE(12)}
    found = {}
    for name, objective in objectives.items():
        evaluate(objective, vae, x)
        found[name] = [parameter.grad.clone() for net in (vae.encoder, vae.decoder) for parameter in net.parameters()]
    for ours, encoder, decoder, is_encoder in zip(*found.values(), (True, True, False, False), strict=True):
        torch.testing.assert_close(ours, encoder if is_encoder else decoder, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(encoder, decoder, rtol=1e-2)
