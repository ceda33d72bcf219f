"""The gallery draws every kind at its time and leaves no trace in training."""

import copy
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import record
from lightning.pytorch.plugins.precision import Precision
from PIL import Image
from scipy.stats import norm
from torch import nn

from vae_lab.evaluation import gallery as gallery_module
from vae_lab.evaluation import pictures
from vae_lab.evaluation.gallery import MANIFOLD_SIDE, Gallery, Painter, fixed_latents
from vae_lab.models.likelihoods import Bernoulli
from vae_lab.models.posteriors import Deterministic, Gaussian
from vae_lab.models.priors import StandardNormal
from vae_lab.models.quantizers import FiniteScalarQuantizer, GumbelSoftmax, VectorQuantizer
from vae_lab.models.spheres import VonMisesFisher
from vae_lab.models.vae import VAE
from vae_lab.training.train import train

SHAPE = (1, 8, 8)


def make_vae(latent_dim=2, posterior=None, shape=SHAPE):
    posterior, size = posterior or Gaussian(), math.prod(shape)
    encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(size, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.ReLU(),
        nn.Linear(16, latent_dim * posterior.params_per_latent),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Linear(latent_dim, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, size), nn.Unflatten(1, shape)
    )
    prior = StandardNormal((latent_dim,)) if posterior.has_density else None
    return VAE(encoder, decoder, posterior, prior, Bernoulli(), (latent_dim,), shape)


class Images:
    """The pictures of a run, with labels."""

    def __init__(self, num=80, num_factors=1, shape=SHAPE):
        self.x = torch.rand(num, *shape, generator=torch.Generator().manual_seed(3))
        self.labels = torch.arange(num)[:, None].expand(-1, num_factors) % 10
        self.factors = ["digit", "style"][:num_factors]

    def examples(self, split, num):
        return self.x[:num], self.labels[:num]


def make_gallery(every_n_epochs=1, scatter_every_n_steps=None, scatter_until_step=0, num_images=4):
    return Gallery(num_images, every_n_epochs, scatter_every_n_steps, scatter_until_step)


def trainer_in(folder, told=None):
    """As much of a trainer as a gallery sees."""
    logger = SimpleNamespace(log_picture=lambda *picture: told is None or told.append(picture))
    return SimpleNamespace(
        global_step=0, current_epoch=0, is_global_zero=True, default_root_dir=folder, datamodule=Images(),
        precision_plugin=Precision(), loggers=[object(), logger],
    )  # fmt: skip


def fit(folder, vae, gallery, max_epochs=3, told=None, first=0, accumulate=1):
    """What a trainer calls in some epochs of four batches."""
    trainer, lit = trainer_in(folder, told), SimpleNamespace(vae=vae, epochs_begun=max_epochs)
    trainer.global_step = 4 * first
    gallery.on_train_start(trainer, lit)
    for trainer.current_epoch in range(first, max_epochs):
        for batch in range(4):
            trainer.global_step += (batch + 1) % accumulate == 0
            gallery.on_train_batch_end(trainer, lit)
        gallery.on_train_epoch_end(trainer, lit)
    gallery.on_run_end(trainer, lit)


def names(folder):
    """The files of a run's pictures, such as 'samples/epoch_002.png'."""
    root = folder / "pictures"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def state(vae):
    """Tensors, and everything else."""
    numbers = np.random.get_state()[1].tolist(), random.getstate()
    modes, gradients = [module.training for module in vae.modules()], [p.grad for p in vae.parameters()]
    return [*(p.clone() for p in vae.state_dict().values()), torch.get_rng_state()], (*numbers, modes, gradients)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_end", "on_train_epoch_end", "on_run_end"])
def test_no_hook_leaves_a_trace(tmp_path, hook):
    vae = make_vae()
    vae.encoder[2].eval()  # a submodule's own mode must survive
    before = state(vae)
    getattr(make_gallery(scatter_every_n_steps=1), hook)(trainer_in(tmp_path), SimpleNamespace(vae=vae, epochs_begun=0))
    assert names(tmp_path)
    after = state(vae)
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1] == after[1]


def test_training_is_bit_exact_with_and_without_pictures(config, tmp_path):
    drawn = "{_target_:vae_lab.evaluation.gallery.Gallery,num_images:4,every_n_epochs:1,scatter_every_n_steps:2,"
    for number, gallery in enumerate(("null", drawn + "scatter_until_step:6}")):
        train(config(f"callbacks.gallery={gallery}", "trainer.precision=bf16-mixed", run_dir=str(number)))
    assert record(tmp_path / "0") == record(tmp_path / "1")
    steps = {f"latents/step_{step:06d}.png" for step in (0, 2, 4, 6)}  # however many are taken at once
    assert steps | {"samples/epoch_002.png", "traversals.png"} <= names(tmp_path / "1")


def test_a_run_draws_every_kind_at_its_time(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 4, "epoch": 0, "train/loss": 1.0}) + "\n")
    told = []
    fit(tmp_path, make_vae(), make_gallery(2, scatter_every_n_steps=3, scatter_until_step=7), 7, told)

    progress = {f"{kind}/epoch_00{e}.png" for kind in ("samples", "reconstructions") for e in (0, 2, 4, 7)}
    early = {f"latents/step_00000{step}.png" for step in (0, 3, 6)}
    final = {f"{kind}.png" for kind in ("latents", "traversals", "interpolation", "manifold", "curves")}
    drawn = progress | early | final | {"samples_first_last.png", "training.gif"}
    assert names(tmp_path) == drawn | {"training.npz"}
    assert {path.relative_to(tmp_path / "pictures").as_posix() for _, path, _ in told} == drawn
    assert ("pictures/samples", tmp_path / "pictures/samples/epoch_002.png", 8) in told
    assert num_frames(tmp_path) == 5  # 0, 2, 4, 6 and the last


def num_frames(folder) -> int:
    with Image.open(folder / "pictures" / "training.gif") as gif:
        return gif.n_frames


def test_the_number_of_files_and_of_frames_is_bounded(tmp_path, monkeypatch):
    """Files at the powers of two; of more epochs than the GIF holds, evenly spaced ones and the last."""
    monkeypatch.setattr(gallery_module, "MAX_FRAMES", 5)
    vae, drawn = make_vae(), set()
    monkeypatch.setattr(Painter, "draw_progress", lambda self, epoch: drawn.add(epoch) or {})
    fit(tmp_path, vae, make_gallery(), 19)
    assert drawn == {0, 1, 2, 4, 8, 16, 19}
    assert list(np.load(tmp_path / "pictures" / "training.npz")) == ["0", "4", "8", "12", "16", "19"]


def test_the_frames_are_the_pictures_of_their_epochs(tmp_path):
    fit(tmp_path, make_vae(), make_gallery(), 2)
    folder = tmp_path / "pictures"
    frames = np.load(folder / "training.npz")
    for epoch in ("0", "1", "2"):
        picture = pictures.annotate(
            pictures.grid(torch.from_numpy(frames[epoch]) / 255, 2), f"samples at epoch {epoch}"
        )
        drawn = Image.open(folder / "samples" / f"epoch_00{epoch}.png").convert("RGB")
        np.testing.assert_array_equal(picture, np.asarray(drawn))


def test_drawing_an_older_checkpoint_leaves_the_frames_alone(tmp_path):
    vae = make_vae()
    fit(tmp_path, vae, make_gallery(), 3)
    before = (tmp_path / "pictures" / "training.npz").read_bytes()
    Painter(vae, Images(), tmp_path, num_images=9).draw_all(epoch=1)
    assert (tmp_path / "pictures" / "training.npz").read_bytes() == before
    assert num_frames(tmp_path) == 4


def test_frames_of_different_numbers_of_images_make_one_gif(tmp_path):
    for epoch, num in ((1, 4), (2, 9)):
        Painter(make_vae(), Images(), tmp_path, num_images=num).follow(epoch, False)
    Painter(make_vae(), Images(), tmp_path).draw_training()
    assert num_frames(tmp_path) == 2


def test_the_early_scatter_draws_once_a_step_while_gradients_accumulate(tmp_path):
    told = []
    gallery = make_gallery(scatter_every_n_steps=1, scatter_until_step=3)
    fit(tmp_path, make_vae(), gallery, 2, told, accumulate=2)
    assert [step for _, path, step in told if path.name.startswith("step")] == [0, 1, 2, 3]


def test_a_resumed_run_continues_the_same_gif(tmp_path):
    fit(tmp_path / "run", make_vae(), make_gallery(), 2)
    first = np.load(tmp_path / "run" / "pictures" / "training.npz")["0"]

    fit(tmp_path / "run", make_vae(), make_gallery(), 5, first=2)
    frames = np.load(tmp_path / "run" / "pictures" / "training.npz")
    assert list(frames) == ["0", "1", "2", "3", "4", "5"]
    np.testing.assert_array_equal(frames["0"], first)
    assert num_frames(tmp_path / "run") == 6


def test_the_plain_autoencoder_has_no_samples_and_follows_reconstructions(tmp_path):
    fit(tmp_path, make_vae(posterior=Deterministic()), make_gallery(), 2)
    assert not [name for name in names(tmp_path) if name.startswith("samples")]
    assert {"reconstructions_first_last.png", "training.gif", "manifold.png"} <= names(tmp_path)
    assert num_frames(tmp_path) == 3


@pytest.mark.parametrize(
    ("latent_dim", "num_factors", "shape"),
    [(1, 1, (1, 8, 8)), (2, 2, (1, 8, 8)), (12, 0, (3, 32, 32))],
)
def test_draw_all_needs_no_trainer(tmp_path, latent_dim, num_factors, shape):
    vae = make_vae(latent_dim, shape=shape)
    paths = Painter(vae, Images(30, num_factors, shape), tmp_path).draw_all(epoch=7)
    assert {path.relative_to(tmp_path / "pictures").as_posix() for path in paths.values()} == names(tmp_path)
    kinds = {"samples", "reconstructions", "latents", "traversals", "interpolation"}
    assert set(paths) == kinds | ({"manifold"} if latent_dim == 2 else set())


def test_a_generator_without_encoder_draws_its_samples(tmp_path):
    vae = make_vae()
    vae.encoder = None
    painter = Painter(vae, Images(30), tmp_path, num_images=4)
    for epoch in range(2):
        painter.follow(epoch, True)
    painter.draw_all(epoch=1)
    kinds = {"traversals.png", "interpolation.png", "manifold.png", "samples_first_last.png", "training.gif"}
    assert names(tmp_path) == kinds | {"samples/epoch_000.png", "samples/epoch_001.png", "training.npz"}
    assert num_frames(tmp_path) == 2


def generated(painter, draw):
    """The latents that `draw` decodes."""
    recorded = []
    painter.vae.generate = lambda z: recorded.append(z) or z.new_zeros(len(z), *SHAPE)
    draw("epoch 0")
    return torch.cat(recorded)


def test_the_manifold_is_a_grid_of_normal_quantiles(tmp_path):
    painter = Painter(make_vae(), Images(), tmp_path)
    codes = painter._encode(painter.datamodule.x)
    quantiles = torch.from_numpy(norm.ppf(np.linspace(0.05, 0.95, MANIFOLD_SIDE))).float()
    z = generated(painter, lambda when: painter._manifold(codes, when)).view(MANIFOLD_SIDE, MANIFOLD_SIDE, 2)
    torch.testing.assert_close(z[..., 0], quantiles.expand(MANIFOLD_SIDE, -1))
    torch.testing.assert_close(z[..., 1], quantiles.flip(0)[:, None].expand(-1, MANIFOLD_SIDE))


def test_the_manifold_of_an_autoencoder_spans_its_codes(tmp_path):
    painter = Painter(make_vae(posterior=Deterministic()), Images(), tmp_path)
    codes = painter._encode(painter.datamodule.x)
    z = generated(painter, lambda when: painter._manifold(codes, when))
    edges = np.quantile(codes.numpy(), [0.05, 0.95], axis=0)
    np.testing.assert_allclose([z.amin(0).numpy(), z.amax(0).numpy()], edges, rtol=1e-4)


def test_traversals_change_one_latent_a_row_the_most_varying_first(tmp_path):
    painter = Painter(make_vae(latent_dim=12), Images(), tmp_path)
    codes = torch.randn(50, 12) * torch.arange(1.0, 13).roll(4)
    order = codes.var(0, correction=0).argsort(descending=True)[:10]
    z = generated(painter, lambda when: painter._traversals(codes, when)).view(10, 13, 12)
    for row, dim in zip(z, order, strict=True):
        torch.testing.assert_close(row[:, dim], torch.linspace(-3, 3, 13))
        others = torch.arange(12) != dim
        assert torch.equal(row[:, others], codes[0, others].expand(13, -1))


def test_interpolation_runs_from_one_latent_to_the_other(tmp_path):
    painter = Painter(make_vae(latent_dim=5), Images(), tmp_path)
    x, codes = painter.datamodule.x, torch.randn(80, 5)
    z = generated(painter, lambda when: painter._interpolation(x, codes, when)).view(8, 11, 5)
    torch.testing.assert_close(z[:, 0], codes[0:16:2])
    torch.testing.assert_close(z[:, 5], (codes[0:16:2] + codes[1:16:2]) / 2)
    torch.testing.assert_close(z[:, -1], codes[1:16:2])


class Wide(nn.Module):
    """p(z) = N(0, 4 I)."""

    def __init__(self, latent_shape):
        super().__init__()
        self.latent_shape = latent_shape

    def sample(self, n, generator=None):
        return 2 * torch.randn(n, *self.latent_shape, generator=generator)


def test_the_followed_latents_are_the_priors():
    vae = make_vae()
    standard = fixed_latents(vae, 5)
    vae.prior = Wide(vae.latent_shape)
    assert torch.equal(fixed_latents(vae, 5), 2 * standard)
    assert torch.equal(fixed_latents(vae, 5), fixed_latents(vae, 5))


def test_a_grid_of_latents_is_drawn_too(tmp_path):
    encoder, decoder = nn.Conv2d(1, 6, 4, 4), nn.ConvTranspose2d(3, 1, 4, 4)  # 8x8 pixels, three latents on 2x2
    vae = VAE(encoder, decoder, Gaussian(), Wide((3, 2, 2)), Bernoulli(), (3, 2, 2), (1, 8, 8))
    drawn = Painter(vae, Images(), tmp_path, num_images=4).draw_all(1)
    assert {"samples", "reconstructions", "latents", "traversals", "interpolation"} <= drawn.keys()
    assert "manifold" not in drawn


def test_each_label_is_a_row_of_the_same_latents(tmp_path):
    vae, data = make_vae(), Images(num=30, num_factors=2)
    vae.decoder.num_classes = (10, 10)
    painter, recorded = Painter(vae, data, tmp_path), []
    vae.generate = lambda z, y: recorded.append((z, y)) or z.new_zeros(len(z), *SHAPE)
    assert painter.draw_labels("epoch 0")["labels"].is_file()
    z, y = (torch.cat(parts).unflatten(0, (10, 12)) for parts in zip(*recorded, strict=True))
    assert torch.equal(z, z[:1].expand_as(z))
    assert torch.equal(y[..., 0], torch.arange(10)[:, None].expand(10, 12))
    assert torch.equal(y[..., 1], data.labels[:12, 1].expand(10, 12))  # the other factors are those of images
    painter._interpolation(data.x, torch.randn(30, 2), "epoch 0", data.labels)
    y = recorded[-1][1].view(8, 11, 2)  # each half has the label of its end
    assert torch.equal(y[:, :6], data.labels[0:16:2, None].expand(-1, 6, -1))
    assert torch.equal(y[:, 6:], data.labels[1:16:2, None].expand(-1, 5, -1))
    painter._images("samples")
    assert torch.equal(recorded[-1][1], data.labels[torch.arange(64) % 30])


def vq():
    quantizer = VectorQuantizer(8, 2, 0.25, 0.99, 0.1)
    quantizer.book.copy_(torch.arange(16).view(8, 2))
    return quantizer


CODED = {
    "vq": (vq, {"codebook"}),
    "fsq": (lambda: FiniteScalarQuantizer([5, 3]), {"codebook"}),
    "gumbel": (lambda: GumbelSoftmax(2, 1.0, 0.5, 10), {"traversals", "manifold"}),
    "vmf": (lambda: VonMisesFisher(100.0), {"traversals", "manifold"}),
}


@pytest.mark.parametrize("name", CODED)
def test_only_latents_that_the_posterior_can_have_are_drawn(name, tmp_path):
    build, kinds = CODED[name]
    posterior = build()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 2 + getattr(posterior, "params_per_image", 0)))
    decoder = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, SHAPE))
    vae = VAE(encoder, decoder, posterior, posterior.prior((2,)), Bernoulli(), (2,), SHAPE)
    decoded = []
    decoder.register_forward_hook(lambda module, inputs, output: decoded.append(inputs[0]))
    before = copy.deepcopy(vae.state_dict())
    drawn = Painter(vae, Images(), tmp_path, num_images=4).draw_all(1)
    assert drawn.keys() - {"training"} == kinds | {"samples", "reconstructions", "latents", "interpolation"}
    if name != "gumbel":  # whose codes are probabilities
        torch.testing.assert_close(z := torch.cat(decoded), posterior.project(z))
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)
