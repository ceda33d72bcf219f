"""Samplers that are fitted after training, on the codes of the training images, and put latents in the prior's place.

Where the prior is not the law of the codes, as of a plain autoencoder, at a small `KLD_weight` or of a book of codes,
images decoded from it are noise, while those from one of these are not. A sampler is built from the shape of one code
and has

    fit(codes, steps)       learn from codes (N, *shape); `steps` is how long, where it is trained by gradient
    sample(n, generator)    draw n of them, (n, *shape), on the CPU

A code is one z drawn from q(z given x), or, for `autoregressive`, the indices (n, *grid) of a book.

Shapes: N codes, D latents of each, L places of a grid of indices, K codes in the book.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import track
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lab.data.batches import Batch, ImageData
from vae_lab.errors import RunError, one_line
from vae_lab.models.networks.layers import mlp
from vae_lab.models.posteriors import DiagonalGaussian
from vae_lab.models.priors import Flow as FlowPrior
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.runs.files import durable_open
from vae_lab.runs.measurements import parameters_sha256
from vae_lab.runs.trained import check_fit

TRAINED = ("flow", "two_stage", "autoregressive")  # by gradient
NAMES = ("prior", "gaussian", "mixture", *TRAINED)
SEED = 0  # of a fit, which is the same at every call
MAX_CODES = 50_000  # that a sampler is fitted on
MAX_SIZE = 1024  # latents of one code, with full covariances
NUM_COMPONENTS = 10  # of the mixture
CHUNK = 256  # codes in a step, and through a network at a time
QUIET_SECONDS = 5.0  # at least, between two lines on a fit
NUM_LOOKED_AT, FAR = 1024, 4.0  # codes; how many times, or what part, of the mean square of the prior


class Mixture(nn.Module):
    """A mixture of Gaussians with full covariances, fitted by expectation maximisation (scikit-learn).

    Source: Ghosh et al. 2020, "From variational to deterministic autoencoders", ex-post density estimation: there a
    mixture of 10 components, or one Gaussian.

    Args:
        shape: of one code.
        components: >= 1.
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, shape: Sequence[int], components: int):
        super().__init__()
        self.shape, size = tuple(shape), math.prod(shape)
        self.register_buffer("weights", torch.ones(components) / components)
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("factors", torch.eye(size).repeat(components, 1, 1))  # of the covariances, lower triangles

    def fit(self, codes: Tensor, steps: int) -> None:
        """Fit weights, means and covariances to codes (N, *shape)."""
        flat = codes.flatten(1).double().cpu().numpy()
        scale = max(float(flat.var()), 1e-12)
        found = GaussianMixture(min(len(self.weights), len(flat)), reg_covar=1e-6 * scale, random_state=SEED).fit(flat)
        num = found.n_components
        self.weights[num:] = 0
        self.weights[:num] = torch.from_numpy(found.weights_)
        self.means[:num] = torch.from_numpy(found.means_)
        self.factors[:num] = torch.linalg.cholesky(torch.from_numpy(found.covariances_))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n codes, (n, *shape)."""
        chosen = self.weights.multinomial(n, replacement=True, generator=generator)
        eps = torch.randn(n, self.means.shape[1], generator=generator)
        z = self.means[chosen]
        for k in chosen.unique():  # by component, because a covariance for each code would fill the memory
            z[chosen == k] += eps[chosen == k] @ self.factors[k].T
        return z.unflatten(1, self.shape)


class Flow(nn.Module):
    """The affine couplings of `prior=flow`, trained on codes that are fixed, after centring and scaling them.

    Source: Dinh et al. 2017, "Density estimation using Real NVP".

    Args:
        shape: of one code.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.flow = FlowPrior(shape, couplings=6, hidden_dim=256)
        self.register_buffer("centre", torch.zeros(tuple(shape)))
        self.register_buffer("scale", torch.ones(tuple(shape)))

    def fit(self, codes: Tensor, steps: int) -> None:
        """Maximise the likelihood of codes (N, *shape)."""
        self.centre.copy_(codes.mean(0))
        self.scale.copy_(deviation(codes))
        minimise(self, lambda z: -self.flow.log_prob(((z - self.centre) / self.scale)[None]).mean(), codes, steps)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n codes, (n, *shape)."""
        return self.centre + self.scale * self.flow.sample(n, generator)


class TwoStage(nn.Module):
    """A second variational autoencoder, of the codes: u ~ N(0, I), then z ~ N(decoder(u), gamma^2), gamma learned.

    Its latent has as many dimensions as the code.

    Source: Dai and Wipf 2019, "Diagnosing and enhancing VAE models".

    Args:
        shape: of one code.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        size, hidden = math.prod(shape), [512, 512]
        self.encoder = nn.Sequential(*mlp([size, *hidden], "relu"), nn.Linear(hidden[-1], 2 * size))
        self.decoder = nn.Sequential(*mlp([size, *hidden], "relu"), nn.Linear(hidden[-1], size))
        self.log_gamma = nn.Parameter(torch.zeros(()))
        self.prior = StandardNormal((size,))
        self.register_buffer("centre", torch.zeros(tuple(shape)))
        self.register_buffer("scale", torch.ones(tuple(shape)))

    def fit(self, codes: Tensor, steps: int) -> None:
        """Maximise the evidence lower bound of codes (N, *shape)."""
        self.centre.copy_(codes.mean(0))
        self.scale.copy_(deviation(codes))
        minimise(self, self.loss, codes, steps)

    def loss(self, codes: Tensor) -> Tensor:
        """The negative bound of codes (B, *shape) in nats, but for a constant, 0-dim."""
        z = ((codes - self.centre) / self.scale).flatten(1)
        mean, log_var = self.encoder(z).chunk(2, 1)
        q = DiagonalGaussian(mean, log_var.clamp(-20, 20))
        squares = (z - self.decoder(q.rsample(1)[0])).square() * torch.exp(-2 * self.log_gamma)
        kl = q.kl(self.prior)
        assert kl is not None
        return (0.5 * squares + self.log_gamma + kl).sum(1).mean()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n codes, (n, *shape)."""
        u = self.prior.sample(n, generator)
        z = self.decoder(u)
        z = z + self.log_gamma.exp() * torch.randn(z.shape, generator=generator)
        return self.centre + self.scale * z.unflatten(1, self.centre.shape)


class Autoregressive(nn.Module):
    """A causal transformer over the places of a grid of codes: p(c) = prod_i p(c_i given c_1 ... c_(i-1)), row by row.

    Sources: van den Oord et al. 2017, "Neural discrete representation learning" (such a prior, fitted when the codes
    are fixed; there a PixelCNN); Vaswani et al. 2017, "Attention is all you need" (the network).

    Args:
        shape: of the indices of one image, (n, *grid).
        num_codes: K.
        width: of the network.
        depth: number of its layers.
    """

    def __init__(self, shape: Sequence[int], num_codes: int, width: int = 128, depth: int = 4):
        super().__init__()
        self.shape, self.num_codes = tuple(shape), num_codes
        length = math.prod(shape)
        self.embedding = nn.Embedding(num_codes + 1, width)  # the last one begins
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_codes)

    def forward(self, indices: Tensor) -> Tensor:
        """Logits of each place given those before it: indices (B, l), of the first l places -> (B, l + 1, K).

        With all L places the last logits, of a place that there is not, are left out: (B, L, K).
        """
        begin = indices.new_full((len(indices), 1), self.num_codes)
        indices = torch.cat([begin, indices], 1)[:, : len(self.position)]
        x = self.embedding(indices) + self.position[: indices.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(indices.shape[1], device=x.device)
        return self.head(self.layers(x, mask, is_causal=True))

    def fit(self, codes: Tensor, steps: int) -> None:
        """Maximise the likelihood of indices (N, n, *grid)."""
        minimise(self, lambda c: F.cross_entropy(self(c).flatten(0, 1), c.flatten()), codes.flatten(1), steps)

    def sample(self, n: int, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Draw n grids of indices, int64 (n, n_codes, *grid); a temperature > 0 divides the logits."""
        indices = torch.zeros(n, 0, dtype=torch.long)
        for _ in range(len(self.position)):
            logits = torch.cat([self(chunk)[:, -1] for chunk in indices.split(CHUNK)])
            indices = torch.cat([indices, (logits / temperature).softmax(1).multinomial(1, generator=generator)], 1)
        return indices.unflatten(1, self.shape)


def minimise(module: nn.Module, loss: Callable[[Tensor], Tensor], codes: Tensor, steps: int) -> None:
    """Train a module on random batches of codes (N, ...), with a learning rate that falls to 0."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in shown(steps):
        chosen = torch.randint(len(codes), (min(CHUNK, len(codes)),))
        optimizer.zero_grad()
        loss(codes[chosen.to(codes.device)]).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def shown(steps: int) -> Iterator[int]:
    """The steps of a fit, which may take an hour, with a bar; without a terminal with a line for each tenth.

    A fit of a few seconds says nothing there.
    """
    console = Console(stderr=True)
    if console.is_terminal or console.is_jupyter:
        yield from track(range(steps), "fitting", console=console, transient=True)
        return
    began = told = time.monotonic()
    for done in range(1, steps + 1):
        yield done - 1
        now = time.monotonic()
        if done < steps and done * 10 // steps > (done - 1) * 10 // steps and now - told >= QUIET_SECONDS:
            told, left = now, timedelta(seconds=round((now - began) * (steps - done) / done))
            print(f"fitting: {done:,} of {steps:,} steps, {left} left", file=sys.stderr)


def deviation(codes: Tensor) -> Tensor:
    """The standard deviation of each latent, (N, ...) -> (...), never 0."""
    return codes.std(0, correction=0).clamp(min=1e-6)


def unlike_prior(vae: VAE, data: ImageData, drawn: Tensor) -> str:
    """Why samples of the prior may be noise where reconstructions are good, and what helps; else empty.

    Args:
        vae: the model.
        data: its images, which have been read.
        drawn: latents of the prior, (N, *latent_shape) on the CPU.
    """
    if vae.encoder is None:
        return ""
    if hasattr(vae.posterior, "num_codes"):
        return (
            "the prior draws every code of the book alike and each place by itself, as no image does: expect noise, "
            "however good the reconstructions are; sampler=autoregressive learns which codes stand together"
        )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        codes = encode(vae, data, False, NUM_LOOKED_AT).square().mean().item()
    prior = drawn.square().mean().item()
    if prior / FAR <= codes <= prior * FAR:
        return ""
    return (
        f"the mean square of a latent is {codes:.2g} of the codes and {prior:.2g} of the prior, whose latents the "
        "decoder has hardly seen: expect noise, however good the reconstructions are; sampler=mixture and sampler=flow "
        "are fitted to the codes, and a loss.KLD_weight nearer to 1 keeps them near the prior"
    )


def encode(vae: VAE, data: ImageData, of_book: bool, most: int) -> Tensor:
    """Codes of the first training images, or their indices in the book, (N, ...), on the device of the model."""
    split, device = data.splits["train"], next(vae.parameters()).device
    found = []
    for places in torch.arange(min(len(split), most)).split(CHUNK):
        x, y = split.__getitems__(places)
        batch = data.to_pixels(Batch(x.to(device), None if y is None else y.to(device)), training=False)
        q = vae.encode(batch.x, batch.y)
        found.append(q.indices if of_book else q.rsample(1)[0])
    return torch.cat(found)


def build(name: str, vae: VAE) -> Any:
    """A sampler that is not fitted yet.

    Raises:
        ValueError: if the model has no codes of the kind that it needs, or too large ones.
    """
    if vae.encoder is None:
        raise ValueError(f"sampler={name} is fitted to codes, which posterior=none does not have; leave sampler=prior")
    if name == "autoregressive":
        if not hasattr(vae.posterior, "num_codes"):
            kind = type(vae.posterior).__name__
            raise ValueError(f"sampler={name} needs the codes of a book (posterior=vq or fsq), got posterior {kind}")
        return Autoregressive(vae.prior.places, vae.prior.num_codes)
    if name in ("flow", "two_stage"):
        return Flow(vae.latent_shape) if name == "flow" else TwoStage(vae.latent_shape)
    if (size := math.prod(vae.latent_shape)) > MAX_SIZE:
        raise ValueError(f"sampler={name} has full covariances, for at most {MAX_SIZE} latents, got {size}; take flow")
    return Mixture(vae.latent_shape, 1 if name == "gaussian" else NUM_COMPONENTS)


def load(sampler: nn.Module, path: Path, made_for: dict[str, str]) -> bool:
    """Give a sampler what is stored of an earlier fit; False if there is none for this model.

    Raises:
        RunError: if the file is damaged or does not fit.
    """
    if not path.is_file():
        return False
    try:
        with safetensors.safe_open(path, "pt") as file:
            is_same = file.metadata() == made_for
        weights = safetensors.torch.load_file(path)
    except Exception as error:  # the library's own error, or one of half a dozen others
        raise RunError(f"{path} is damaged: {one_line(error)}; delete it to fit the sampler again") from error
    if is_same:
        check_fit(sampler, weights, path)
        sampler.load_state_dict(weights)
    return is_same


def fitted(name: str, vae: VAE, data: ImageData, folder: Path, steps: int) -> Any:
    """A sampler on the CPU, fitted once and stored in the run folder, `samplers/NAME.safetensors`.

    What is stored is of this model and number of steps.

    Args:
        name: one of `NAMES` but `prior`.
        vae: the model, in evaluation mode.
        data: its images, which have been read.
        folder: of the run.
        steps: of a fit by gradient, >= 1.

    Raises:
        ValueError: if the model has no codes of the kind that is needed.
        RunError: if the file is damaged or cannot be written.
    """
    path, made_for = folder / "samplers" / f"{name}.safetensors", {"model": parameters_sha256(vae), "steps": str(steps)}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        sampler = build(name, vae)
        if not load(sampler, path, made_for):
            codes = encode(vae, data, name == "autoregressive", MAX_CODES)
            with torch.enable_grad():
                sampler.to(next(vae.parameters()).device).fit(codes, steps)
            sampler.cpu()
            with durable_open(path) as file:
                file.write(safetensors.torch.save(dict(sampler.state_dict()), made_for))
    return sampler.eval()


def draw_latents(name: str, vae: VAE, data: ImageData, folder: Path, num: int, steps: int, seed: int = SEED) -> Tensor:
    """Latents from a fitted sampler, (num, *latent_shape) on the CPU, the same ones for the same seed.

    Args:
        name: as the others, see `fitted`.
        vae: the model.
        data: its images.
        folder: of the run.
        num: latents, >= 1.
        steps: of the fit.
        seed: of what is drawn, not of the fit.

    Raises:
        ValueError, RunError: as `fitted`.
    """
    sampler, device = fitted(name, vae, data, folder, steps), next(vae.parameters()).device
    with torch.no_grad():
        drawn = sampler.sample(num, torch.Generator().manual_seed(seed))
        chunks = (chunk.to(device) for chunk in drawn.split(CHUNK))
        to_latents: Any = vae.posterior.lookup if name == "autoregressive" else vae.project
        return torch.cat([to_latents(chunk).cpu() for chunk in chunks])
