import copy
import itertools
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from vae_lab.config.instantiate import instantiate
from vae_lab.models.networks.conv import ConvDecoder, ConvEncoder
from vae_lab.models.networks.layers import ACTIVATIONS, activation_layer, norm_layer, reduced_size
from vae_lab.models.networks.mlp import MLPDecoder, MLPEncoder
from vae_lab.models.networks.resnet import ResNetDecoder, ResNetEncoder

CONF = Path(__file__).parents[2] / "conf" / "model"
# Unpadded convolutions do not fit small images, and max-pooling does not look at every pixel.
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "unpadded")
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
D = 5


@pytest.fixture(autouse=True)
def _all_warnings():
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch's own warnings come once a process and would hide in all but one test
    yield
    torch.set_warn_always(always)


def networks(option: str, image_shape: tuple, upsample: str = "transposed", **model) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of a config option, with some of its keys replaced."""
    node = OmegaConf.load(CONF / f"{option}.yaml")
    if "upsample" in node.decoder:
        node.decoder.upsample = upsample
    cfg = OmegaConf.create({"model": OmegaConf.merge(node, model)})
    encoder = instantiate(cfg.model.encoder, "model.encoder", image_shape=image_shape, out_features=2 * D)
    decoder = instantiate(cfg.model.decoder, "model.decoder", latent_dim=D, image_shape=image_shape)
    return encoder, decoder


def variants() -> list[tuple[str, str]]:
    return [(o, u) for o in OPTIONS for u in ("transposed", "nearest") if u == "transposed" or o == "conv"]


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize(("option", "upsample"), variants())
def test_every_option_fits_every_image_and_back(option, upsample, image_shape):
    encoder, decoder = networks(option, image_shape, upsample)
    assert encoder(torch.rand(2, *image_shape)).shape == (2, 2 * D)
    assert decoder(torch.randn(2, D)).shape == (2, *image_shape)


@pytest.mark.parametrize(("option", "upsample"), variants())
def test_everything_has_a_part_in_the_output_and_the_last_layer_is_linear(option, upsample):
    pair = networks(option, (1, 8, 8), upsample)
    for network, x in zip(pair, (torch.rand(8, 1, 8, 8), torch.randn(8, D)), strict=True):
        network(x).square().sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
        network.eval()
        jacobian = torch.autograd.functional.jacobian(lambda v, network=network: network(v).flatten(), x[:1])
        by_output = jacobian.flatten(1).ne(0)
        assert by_output.any(1).all()  # no output is constant
        assert by_output.any(0).all()  # no input is ignored
        # With its weights negated and scaled, a bare linear layer gives exactly the negated and scaled output; an
        # activation, a normalisation or dropout behind it would not.
        before = network(x)
        last = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)][-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.mul_(-1024)  # a power of two: no rounding
        torch.testing.assert_close(network(x), -1024 * before, rtol=1e-6, atol=0)
        assert (before < 0).any()
        assert (before > 0).any()


@pytest.mark.parametrize("norm", ["batch", "group", None])
@pytest.mark.parametrize("build", [ConvEncoder, ResNetEncoder])
def test_small_networks_still_see_the_image(build, norm):
    # Eight channels on a 1x1 map: a normalisation of single channels would make every image the same.
    if build is ConvEncoder:
        encoder = ConvEncoder((1, 8, 8), D, [4, 8, 8], [4] * 3, [2] * 3, [], norm, "silu", 0.0)
    else:
        encoder = ResNetEncoder((1, 8, 8), D, [4, 8, 8], 1, norm, "silu", 0.0)
    codes = encoder.eval()(torch.rand(16, 1, 8, 8))
    assert (codes.std(0) > 1e-4).all()  # float32 rounding alone gives 1e-7


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize(("kernel", "stride"), [*itertools.product((2, 3, 4, 5), (1, 2, 3))])
def test_kernels_and_strides_divide_exactly_or_are_refused(kernel, stride, upsample):
    lists = [8, 8], [kernel] * 2, [stride] * 2
    if (stride == 1 and kernel % 2 == 0) or kernel < stride:  # which would skip pixels
        with pytest.raises(ValueError, match=rf"model\.kernel_sizes: {kernel} does not go with stride {stride}"):
            ConvEncoder((1, 36, 36), D, *lists, [], None, "relu", 0.0)
        return
    encoder = ConvEncoder((1, 36, 36), D, *lists, [], None, "relu", 0.0)
    assert encoder[0](torch.rand(1, 1, 36, 36)).shape[2:] == (36 // stride, 36 // stride)
    assert encoder(torch.rand(2, 1, 36, 36)).shape == (2, D)
    decoder = ConvDecoder(D, (1, 36, 36), *lists, [], None, "relu", 0.0, upsample)
    assert decoder(torch.randn(2, D)).shape == (2, 1, 36, 36)


def test_mixed_kernels_and_strides_mirror():
    lists = [4, 8, 16], [3, 5, 4], [1, 3, 2]
    encoder = ConvEncoder((3, 24, 24), D, *lists, [20, 10], "batch", "gelu", 0.1)
    decoder = ConvDecoder(D, (3, 24, 24), *lists, [20, 10], "batch", "gelu", 0.1, "transposed")
    assert encoder(torch.rand(2, 3, 24, 24)).shape == (2, D)
    assert decoder(torch.randn(2, D)).shape == (2, 3, 24, 24)
    forward = [(m.in_channels, m.kernel_size, m.stride) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    kind = nn.ConvTranspose2d
    back = [(m.out_channels, m.kernel_size, m.stride) for m in decoder.modules() if isinstance(m, kind)]
    assert back == forward[::-1]
    widths = [m.out_features for m in encoder.modules() if isinstance(m, nn.Linear)]
    assert widths == [20, 10, D]
    assert [m.in_features for m in decoder.modules() if isinstance(m, nn.Linear)] == widths[::-1]


@pytest.mark.parametrize("image_shape", SHAPES[1:])
def test_unpadded_networks_fit_images_that_are_large_enough(image_shape):
    encoder, decoder = networks("unpadded", image_shape)
    assert encoder(torch.rand(2, *image_shape)).shape == (2, 2 * D)
    assert decoder(torch.randn(2, D)).shape == (2, *image_shape)
    with pytest.raises(ValueError, match=r"dataset\.image_size must be >= 16 for 2 unpadded convolutions, got 8"):
        networks("unpadded", (1, 8, 8))
    assert networks("unpadded", (1, 16, 16))[0](torch.rand(2, 1, 16, 16)).shape == (2, 2 * D)


@pytest.mark.parametrize("size", [3, 27, 30, 33, 61])
@pytest.mark.parametrize("option", ["conv", "resnet"])
def test_a_size_that_does_not_fit_is_refused_and_the_sizes_named_do_fit(option, size):
    with pytest.raises(ValueError, match=rf"dataset\.image_size={size} does not fit") as caught:
        networks(option, (1, size, size))
    named = [int(n) for n in re.findall(r"\d+", re.search(r"nearest: ([\d or]+)", str(caught.value))[1])]
    assert all(abs(n - size) < 4 for n in named)
    for fits in named:
        encoder, decoder = networks(option, (1, fits, fits))
        assert encoder(torch.rand(2, 1, fits, fits)).shape == (2, 2 * D)
        assert decoder(torch.randn(2, D)).shape == (2, 1, fits, fits)


def test_the_decoder_refuses_the_same_sizes():
    with pytest.raises(ValueError, match=r"dataset\.image_size=30 does not fit"):
        ConvDecoder(D, (1, 30, 30), [8, 8], [4, 4], [2, 2], [], None, "relu", 0.0, "transposed")
    with pytest.raises(ValueError, match=r"dataset\.image_size=30 does not fit"):
        ResNetDecoder(D, (1, 30, 30), [8, 8], 1, None, "relu", 0.0)


def test_images_must_be_square():
    with pytest.raises(ValueError, match=r"dataset\.image_shape must be square, got 8x12"):
        reduced_size((1, 8, 12), [2])


@pytest.mark.parametrize(
    ("option", "changes", "message"),
    [
        ("mlp", {"activation": "swish"}, r"model\.activation must be one of relu, .*'swish'"),
        ("resnet", {"norm": "layer"}, r"model\.norm must be batch, group or null, got 'layer'"),
        ("conv", {"dropout": -0.1}, r"model\.dropout must be in \[0, 1\), got -0.1"),
        ("mlp", {"hidden_dims": [64, 0]}, r"model\.hidden_dims must all be >= 1, got \[64, 0\]"),
        ("conv", {"channels": [8, 0]}, r"model\.channels must all be >= 1, got \[8, 0\]"),
        ("conv", {"kernel_sizes": [4, 0]}, r"model\.kernel_sizes must all be >= 1, got \[4, 0\]"),
        ("conv", {"strides": [2, 0]}, r"model\.strides must all be >= 1, got \[2, 0\]"),
        ("conv", {"channels": [8]}, r"model\.channels, .* one entry for each layer, got 1, 2 and 2"),
        ("resnet", {"channels": []}, r"model\.channels must have one entry for each stage"),
        ("resnet", {"num_blocks": -1}, r"model\.num_blocks must be >= 0, got -1"),
        ("conv", {"decoder": {"upsample": "cubic"}}, r"model\.upsample must be transposed or nearest, got 'cubic'"),
    ],
)
def test_bad_values_name_their_key(option, changes, message):
    with pytest.raises(ValueError, match=message):
        networks(option, (1, 8, 8), **changes)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_one(name):
    layer = activation_layer(name)
    x = torch.linspace(-3, 3, 101)
    assert not torch.allclose(layer(x), x)
    assert type(layer) is not type(activation_layer("relu")) or name == "relu"


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 12, 64])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_take_any_width(norm, channels):
    (layer,) = norm_layer(norm, channels)
    assert layer(torch.rand(4, channels, 3, 3)).shape == (4, channels, 3, 3)


def test_batch_norm_takes_one_value_per_channel_as_in_evaluation():
    # A 1x1 map and a batch of one image, such as the last of an epoch.
    (layer,) = norm_layer("batch", 3)
    layer(torch.randn(16, 3, 1, 1))
    statistics = copy.deepcopy(layer.state_dict())
    x = torch.randn(1, 3, 1, 1, requires_grad=True)
    y = layer(x)
    assert y.sum().backward() is None
    assert x.grad.any()
    torch.testing.assert_close(layer.state_dict(), statistics)
    torch.testing.assert_close(y, layer.eval()(x))


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (2, 3, 1, 1)])
def test_batch_norm_is_otherwise_that_of_torch(shape):
    (layer,), reference = norm_layer("batch", 3), nn.BatchNorm2d(3)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer.state_dict(), reference.state_dict())


def test_dropout_is_active_in_training_only():
    encoder, _ = networks("conv", (1, 8, 8), dropout=0.5, norm=None)
    x = torch.rand(4, 1, 8, 8)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_no_hidden_layer_at_all():
    assert MLPEncoder((1, 8, 8), D, [], "relu")(torch.rand(2, 1, 8, 8)).shape == (2, D)
    assert MLPDecoder(D, (1, 8, 8), [], "relu")(torch.rand(2, D)).shape == (2, 1, 8, 8)
    assert ResNetEncoder((1, 8, 8), D, [4], 0, None, "relu", 0.0)(torch.rand(2, 1, 8, 8)).shape == (2, D)
