"""Labels reach both networks, and only those of a conditional model."""

import pytest
import torch

from vae_lab.config.instantiate import build_vae
from vae_lab.models.networks.conditional import one_hot

SMALL = ["dataset=sprites", "dataset.image_size=16", "dataset.source.positions=2", "latent_dim=3"]
MODELS = {
    "mlp": ["model=mlp", "model.hidden_dims=[8]"],
    "conv": ["model=conv", "model.channels=[4,8]", "model.hidden_dims=[]"],
    "resnet": ["model=resnet", "model.channels=[4,8]"],
    "linear": ["model=linear"],
}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_several_labels(model, config):
    vae = build_vae(config(*MODELS[model], *SMALL, "model.conditional=true", tiny=[]))
    assert vae.num_classes == (3, 4, 8, 2, 2)
    torch.manual_seed(0)
    vae.eval()
    x = torch.rand(6, 1, 16, 16)
    y = torch.stack([torch.randint(number, (6,)) for number in vae.num_classes], 1)
    other = y.clone()
    other[0, 2] = (y[0, 2] + 1) % 8
    q, q_other = vae.encode(x, y), vae.encode(x, other)
    moved = (q.mean - q_other.mean).abs().amax(1)
    assert moved[0] > 1e-4
    torch.testing.assert_close(moved[1:], torch.zeros(5), atol=1e-5, rtol=0)  # no other image is touched
    z = q.rsample(2)
    assert vae.decode(z, y).shape == (2, 6, 1, 16, 16)
    moved = (vae.decode(z, y) - vae.decode(z, other)).abs().amax((0, 2, 3, 4))
    assert moved[0] > 1e-4
    torch.testing.assert_close(moved[1:], torch.zeros(5), atol=1e-5, rtol=0)
    assert vae.sample(6, y).shape == vae.reconstruct(x, y).shape == x.shape
    for call in (lambda: vae.sample(6), lambda: vae.encode(x)):
        with pytest.raises(ValueError, match=r"a conditional model needs labels y, \(B, F\)"):
            call()


def test_labels_are_one_hot_side_by_side():
    assert one_hot(torch.tensor([[1, 0], [0, 2]]), [2, 3]).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_a_model_that_is_not_conditional_never_sees_a_label(config):
    vae = build_vae(config())
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)[:, None]
    assert vae.num_classes == ()
    assert torch.equal(vae.reconstruct(x, y), vae.reconstruct(x))


def test_a_dataset_without_labels_is_refused(config):
    folder = ["dataset=image_folder", "dataset.root=pictures", "dataset.image_size=8", "model.conditional=true"]
    with pytest.raises(ValueError, match=r"needs a dataset with labels, got dataset\.num_classes=None; .*=\[NUMBER\]"):
        build_vae(config(*folder))
    assert build_vae(config(*folder, "dataset.num_classes=[7]")).num_classes == (7,)
