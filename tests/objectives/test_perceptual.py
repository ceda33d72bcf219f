import math

import pytest
import torch
from linear_gaussian import SHAPE, LinearGaussian

from vae_lab.data.batches import Batch
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO
from vae_lab.objectives.perceptual import VGG, FeatureDistance, MNISTClassifier

EVALUATION = Context(0, 100, "val")


class Moments(torch.nn.Module):
    """Features of one's own: the image and its square."""

    def forward(self, x):
        return [x, x.square()]


def evaluate(objective, vae, x):
    torch.manual_seed(1)
    return objective(vae, Batch(x), EVALUATION)


def test_weight_0_is_the_elbo_and_otherwise_the_distance_is_added():
    torch.manual_seed(0)
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


def test_what_is_not_at_hand_is_refused():
    with pytest.raises(ValueError, match="features.weights must be a file, got /nowhere.*vgg19-dcbb9e9d.pth"):
        VGG("/nowhere")
    with pytest.raises(ValueError, match="objective.perceptual.weight must be >= 0 and finite, got nan"):
        FeatureDistance(math.nan, Moments())
