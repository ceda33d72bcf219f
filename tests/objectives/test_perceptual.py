import pytest
import torch
from linear_gaussian import SHAPE, LinearGaussian, evaluate

from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.perceptual import FeatureDistance, MNISTClassifier


class Moments(torch.nn.Module):
    """Features of one's own: the image and its square."""

    def forward(self, x):
        return [x, x.square()]


def test_weight_0_is_the_elbo_and_otherwise_the_distance_is_added():
    vae, x = LinearGaussian().vae(0.3, 0.5), torch.rand(8, *SHAPE)
    expected = evaluate(ELBO(1.0, 0, 0.0), vae, x)
    nothing = evaluate(ELBO(1.0, 0, 0.0, perceptual=FeatureDistance(0.0, Moments())), vae, x)
    some = evaluate(ELBO(1.0, 0, 0.0, perceptual=FeatureDistance(3.0, Moments())), vae, x)
    for key, value in expected.items():
        assert nothing[key] == value
    assert some["elbo"] == expected["elbo"]
    torch.testing.assert_close(some["loss"], expected["loss"] + some["feature_distance"])


def test_the_distance_is_the_papers():
    a, b = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    expected = sum(0.5 / 9 * (f(a) - f(b)).square().flatten(1).sum(1).mean() for f in (lambda x: x, torch.square))
    torch.testing.assert_close(FeatureDistance(2.0, Moments())(a, b), 2 * expected)
    assert FeatureDistance(2.0, Moments())(a, a) == 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16)])
def test_the_classifier_is_fixed_and_no_part_of_a_checkpoint(shape):
    distance = FeatureDistance(1.0, MNISTClassifier())
    assert list(distance.parameters()) == []
    assert distance.state_dict() == {}
    other = torch.rand(4, *shape, requires_grad=True)
    distance(torch.rand(4, *shape), other).backward()
    assert other.grad.ne(0).any()
