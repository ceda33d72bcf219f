import pytest
import torch

from vae_lab.data.batches import Batch
from vae_lab.models.likelihoods import Bernoulli
from vae_lab.models.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.models.posteriors import Deterministic
from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.regularized import RAE, squared_jacobian

IMAGE = (1, 4, 4)


@pytest.fixture
def vae() -> VAE:
    networks = MLPEncoder(IMAGE, 3, [16], "tanh"), MLPDecoder(3, IMAGE, [16], "tanh")
    return VAE(*networks, Deterministic(), None, Bernoulli(), (3,), IMAGE)


@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize("regularizer", ["l2", "gradient"])
def test_without_weights_it_is_the_plain_autoencoder(vae, regularizer, stage):
    batch, context = Batch(torch.rand(8, *IMAGE)), Context(0, 8, stage)
    with torch.inference_mode(stage == "val"):  # as Lightning validates
        terms = RAE(0.0, 0.0, regularizer)(vae, batch, context)
        expected = ELBO(1.0, 0, 0.0)(vae, batch, context)
        weighted = RAE(2.0, 3.0, regularizer)(vae, batch, context)
    assert list(terms) == ["loss", "reconstruction", "code_norm", "decoder_norm"]
    assert terms["loss"] == terms["reconstruction"] == expected["loss"]
    paid = 2 * weighted["code_norm"] + 3 * weighted["decoder_norm"]
    torch.testing.assert_close(weighted["loss"], weighted["reconstruction"] + paid)


def test_the_terms_are_those_of_the_paper(vae):
    x = torch.rand(8, *IMAGE)
    terms = RAE(1.0, 1.0, "l2")(vae, Batch(x), Context(0, 8, "val"))
    code = vae.encode(x).mean
    torch.testing.assert_close(terms["code_norm"], 0.5 * code.square().sum(1).mean())
    torch.testing.assert_close(terms["decoder_norm"], sum(w.square().sum() for w in vae.decoder.parameters()))


def test_the_gradient_penalty_is_the_norm_of_the_jacobian(vae):
    z = torch.randn(1, 3)
    jacobian = torch.autograd.functional.jacobian(vae.generate, z)
    with torch.no_grad():
        found = [squared_jacobian(vae, z.expand(500, -1), None) for _ in range(8)]
    # The relative standard deviation of one probe is at most sqrt(2), of 4000 of them 0.022.
    assert torch.stack(found).mean().item() == pytest.approx(jacobian.square().sum().item(), rel=0.1)


def test_the_gradient_penalty_trains_decoder_and_encoder(vae):
    RAE(0.0, 1.0, "gradient")(vae, Batch(torch.rand(8, *IMAGE)), Context(0, 8, "train"))["decoder_norm"].backward()
    for network in (vae.encoder, vae.decoder):
        assert all(weight.grad.ne(0).any() for weight in list(network.parameters())[:1])
