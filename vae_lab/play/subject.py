"""A trained run to play with: its model, some of its images, their codes, and what can be asked of them.

Every function takes and gives tensors on the CPU, and knows nothing of the page that shows them. A latent is one long
row here, also where the model has a grid of them.

Shapes: N images, B latents or images, C channels, H height, W width, D latents, F label columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from vae_lab.data.batches import Batch, ImageData
from vae_lab.data.decoding import decode
from vae_lab.data.standard import no_downloads
from vae_lab.errors import DataError, NumericsError, one_line, printable
from vae_lab.evaluation import samplers
from vae_lab.evaluation.evaluate import DEFAULTS, build_images
from vae_lab.evaluation.gallery import CHUNK, NUM_CODES
from vae_lab.metrics.standard import ACTIVE_VARIANCE
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.runs.trained import build_stored, read_stored
from vae_lab.training.module import check_same_images

MAX_BYTES = 10_000_000  # of an uploaded picture
MAX_PROBED = 1024  # latents that are moved one by one, to see which of them matter
STEPS: Any = DEFAULTS["sampler_steps"]  # of a fit, so that `vae-lab-eval` and the playground share it
REACH = 3.0  # of a standard normal latent, to both sides


@dataclass(eq=False)
class Subject:
    """A trained run to play with.

    Args:
        name: for the page.
        folder: of the run or the export.
        vae: in evaluation mode, without gradients.
        cfg: of the run.
        data: its images; None where they cannot be read.
        trouble: why they cannot; empty otherwise.
    """

    name: str
    folder: Path
    vae: VAE
    cfg: DictConfig
    data: ImageData | None
    trouble: str

    def __post_init__(self):
        num_labels = len(self.vae.num_classes)
        self.x, self.y = torch.zeros(0, *self.vae.image_shape), torch.zeros(0, num_labels, dtype=torch.long)
        self.kl: Tensor | None = None  # (D,), nats, where each latent has a closed form
        self.indices: Tensor | None = None  # (N, n, *grid), of a book
        if self.data is not None:
            self.x, self.y = self.data.examples("val", NUM_CODES)
        self.codes = torch.zeros(0, math.prod(self.vae.latent_shape))
        if self.has_encoder and len(self.x):
            self.codes, self.kl, self.indices = self.encode(self.x, self.y)

    @property
    def has_encoder(self) -> bool:
        """Whether images have codes."""
        return self.vae.encoder is not None

    @property
    def has_book(self) -> bool:
        """Whether the latents are codes of a book, which have indices."""
        return hasattr(self.vae.posterior, "num_codes")

    @property
    def num_latents(self) -> int:
        """D."""
        return self.codes.shape[1]

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Codes (B, D) of images (B, C, H, W) and labels (B, F), mean KL of each latent (D,), indices (B, n, *grid).

        The last two are None where there are none.
        """
        codes, kls, indices = [], [], []
        with torch.inference_mode():
            for batch in Batch(x, y if self.vae.num_classes else None).split(CHUNK):
                q = self.vae.encode(batch.x, batch.y)
                codes.append(q.mean.float().flatten(1))
                kl = q.kl(self.vae.prior) if self.vae.prior is not None else None
                kls += [kl.flatten(1)] if kl is not None else []
                indices += [q.indices] if hasattr(q, "indices") else []
        found = torch.cat(codes)
        has_each = bool(kls) and kls[0].shape[1] == found.shape[1]
        return found, torch.cat(kls).mean(0) if has_each else None, torch.cat(indices) if indices else None

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """Images (B, C, H, W) of the latents nearest to any (B, D) that the model can have; labels (B, F) or (1, F)."""
        labels = y.expand(len(z), -1) if self.vae.num_classes else None
        with torch.inference_mode():
            chunks = Batch(z.unflatten(1, self.vae.latent_shape), labels).split(CHUNK)
            return torch.cat([self.vae.generate(self.vae.project(z), y).float() for z, y in chunks])

    def label(self) -> Tensor:
        """The first label of each column, (1, F), to decode with where nothing else is said."""
        return torch.zeros(1, len(self.vae.num_classes), dtype=torch.long)

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and largest value of each latent, (D,): of the codes, and of most draws from the prior."""
        parts = [self.codes]
        if self.vae.prior is not None and not len(self.codes):
            parts.append(self._prior_draws)
        if isinstance(self.vae.prior, StandardNormal) or not sum(map(len, parts)):
            parts += [torch.full((1, self.num_latents), side) for side in (-REACH, REACH)]
        values = torch.cat(parts)
        low, high = values.amin(0), values.amax(0)
        is_still = high - low < 1e-6
        return low - 1.0 * is_still, high + 1.0 * is_still

    @cached_property
    def centre(self) -> Tensor:
        """The mean of the prior, (D,), or of the codes, where the model has none."""
        if isinstance(self.vae.prior, StandardNormal) or (self.vae.prior is None and not len(self.codes)):
            return torch.zeros(self.num_latents)
        return (self._prior_draws if self.vae.prior is not None else self.codes).mean(0)

    @cached_property
    def _prior_draws(self) -> Tensor:
        with torch.inference_mode():
            return self.vae.prior.sample(NUM_CODES, torch.Generator().manual_seed(0)).cpu().flatten(1)

    @cached_property
    def weights(self) -> tuple[Tensor, str]:
        """How much each latent matters, (D,), and the unit: its KL, the variance of its codes, or its effect."""
        if self.kl is not None:
            return self.kl, "nats"
        if len(self.codes):
            return self.codes.var(0, correction=0), "variance"
        num = min(self.num_latents, MAX_PROBED)
        low, high = self.bounds
        moved = torch.eye(self.num_latents)[:num]
        ends = [self.decode(self.centre + moved * (end - self.centre), self.label()) for end in (low, high)]
        effects = torch.zeros(self.num_latents)
        effects[:num] = (ends[1] - ends[0]).square().flatten(1).mean(1)
        return effects, "effect"

    @cached_property
    def order(self) -> list[int]:
        """The active latents, those that matter most first; without codes, and of a plane, all of them."""
        order = self.weights[0].argsort(descending=True, stable=True).tolist()
        if not len(self.codes) or len(order) == 2:
            return order
        variances = self.codes.var(0, correction=0)
        return [latent for latent in order if variances[latent] > ACTIVE_VARIANCE] or order[:1]

    @cached_property
    def samplers(self) -> list[str]:
        """The names of what can draw latents: the prior, and what can be fitted to the codes."""
        names = ["prior"] if self.vae.prior is not None else []
        for name in samplers.NAMES[1:] if self.data is not None and self.has_encoder else ():
            try:
                samplers.build(name, self.vae)
            except ValueError:
                continue
            names.append(name)
        return names

    def has_temperature(self, sampler: str) -> bool:
        """Whether draws can be pulled together: not where every latent is one of a few, as of the prior of a book."""
        return sampler != "prior" or not hasattr(self.vae.posterior, "project")

    def draw(self, sampler: str, num: int, temperature: float, seed: int) -> Tensor:
        """Latents (num, D), the same for the same seed.

        At temperature T they are m + T (z - m), m the mean of all draws; of an autoregressive sampler the logits are
        divided by T.

        Raises:
            RunError: if a fitted sampler cannot be read or kept.
        """
        generator = torch.Generator().manual_seed(seed)
        if sampler == "prior":
            with torch.inference_mode():
                z, centre = self.vae.prior.sample(num, generator).cpu().flatten(1), self.centre
        else:
            assert self.data is not None
            fitted = samplers.fitted(sampler, self.vae, self.data, self.folder, STEPS)
            with torch.inference_mode():
                if sampler == "autoregressive":
                    indices = fitted.sample(num, generator, max(temperature, 1e-3))
                    return self.vae.posterior.lookup(indices).flatten(1)
                z, centre = fitted.sample(num, generator).flatten(1), self.codes.mean(0)
        return centre + temperature * (z - centre) if self.has_temperature(sampler) else z

    def manifold(self, dims: tuple[int, int], z: Tensor, y: Tensor, side: int) -> np.ndarray:
        """One picture of two latents over their bounds, the second upwards, in rows of `side`; the others are z's."""
        low, high = self.bounds
        steps = (torch.arange(side) + 0.5) / side  # a tile is what its middle stands for
        right, up = (low[dim] + (high[dim] - low[dim]) * steps for dim in dims)
        points = z.repeat(side * side, 1)
        points[:, list(dims)] = torch.cartesian_prod(up.flip(0), right).flip(1)
        return tiled(self.decode(points, y), side)

    def mean_of(self, label: int) -> Tensor:
        """The mean code (1, D) of the images with a label in the first column."""
        return self.codes[self.y[:, 0] == label].mean(0, keepdim=True)

    def upload(self, name: str, content: bytes) -> Tensor:
        """An uploaded picture as one image of the run, (1, C, H, W), read as a picture of an image folder is.

        Raises:
            DataError: if it cannot be used; the line names it.
        """
        if len(content) > MAX_BYTES:
            raise DataError(f"{printable(name)}: more than {MAX_BYTES // 10**6} MB")
        background = self.cfg.dataset.get("background", 0)
        levels = tuple([background] * 3 if isinstance(background, int) else background)
        shape: Any = self.vae.image_shape
        with TemporaryDirectory() as folder:
            path = Path(folder, "picture")
            path.write_bytes(content)
            try:
                pixels = decode(path, shape, self.cfg.dataset.get("fit", "resize"), levels)
            except DataError as error:
                raise DataError(f"{printable(name)}: {str(error).removeprefix(f'{path}: ')}") from error
        x = pixels[None].float() / 255
        return x if self.cfg.dataset.get("binarize", "none") == "none" else x.round()


def open_subject(folder: Path, settings: dict[str, Any], others: Sequence[Subject] = ()) -> Subject:
    """Open a run or an export to play with; if its images cannot be read, the subject says why.

    Args:
        folder: of the run.
        settings: `checkpoint`, `data_root` and `dataset.root`.
        others: that are open; one of the same dataset shares its images.

    Raises:
        RunError, ValueError: as `read_stored`.
        NumericsError: if the model has diverged.
    """
    stored = read_stored(folder, settings["checkpoint"])
    vae, cfg, data, trouble = build_stored(stored), stored.cfg, None, ""
    for key in ("data_root", "dataset.root"):
        if settings[key] is not None:
            OmegaConf.update(cfg, key, settings[key])
    try:
        cfg.dataset.num_workers = 0
        places = (cfg.dataset, cfg.get("data_root"))
        same = (o.data for o in others if o.data is not None and (o.cfg.dataset, o.cfg.get("data_root")) == places)
        data = next(same, None) or build_images(cfg)
        with no_downloads():
            data.prepare_data()
        check_same_images(data, stored.images)
    except (DataError, OSError) as error:
        data, trouble = None, one_line(error)
    except (LookupError, TypeError, AttributeError) as error:  # a stranger's config can lack anything, anywhere
        raise ValueError(f"the config beside {stored.source} does not describe images: {one_line(error)}") from error
    subject = Subject(folder.resolve().name, folder, vae, cfg, data, trouble)
    if not subject.codes.isfinite().all():
        raise NumericsError(f"{folder} has nothing to play with: its codes are not finite, the model has diverged")
    return subject


def interpolate(start: Tensor, end: Tensor, num: int, on_sphere: bool) -> Tensor:
    """Latents (num, D) from one (D,) to another, on the line between them or along the great circle.

    sin((1 - t) a) / sin(a) start + sin(t a) / sin(a) end, a the angle between the two

    Source: White 2016, "Sampling generative networks", on spherical linear interpolation.
    """
    t = torch.linspace(0, 1, num)[:, None]
    angle = torch.acos(torch.cosine_similarity(start, end, 0).clamp(-1, 1))
    if not on_sphere or angle.sin() < 1e-3:
        return torch.lerp(start[None], end[None], t)
    return (((1 - t) * angle).sin() * start + (t * angle).sin() * end) / angle.sin()


def tiled(images: Tensor, num_columns: int) -> np.ndarray:
    """Images (B, C, H, W) row by row without gaps, one picture (H, W, 3)."""
    tiles = make_grid(images.nan_to_num().clamp(0, 1), nrow=num_columns, padding=0)
    return (tiles * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture (H, W, 3) as a file."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=85, compress_level=1)  # at once: a drag waits for it
    return buffer.getvalue()
