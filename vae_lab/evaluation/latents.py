"""Latents to a file, and points of the latent space as pictures.

Shapes: N images or points, F label columns; a latent is (*latent_shape).
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from vae_lab.data.batches import Batch, ImageData
from vae_lab.errors import one_line
from vae_lab.evaluation import pictures
from vae_lab.evaluation.gallery import CHUNK, NUM_CODES, fixed_labels
from vae_lab.models.vae import VAE
from vae_lab.runs.files import durable_open

SEED = 0  # of random points
MAX_POINTS = 1000
MAX_SHOWN = 6  # coordinates in a title


def write(vae: VAE, data: ImageData, split: str, path: Path) -> None:
    """Write what an encoder makes of a split to a `.npz` file.

    It holds `codes` E[z given x] (N, *latent_shape), `labels` (N, F), `images` (N,), their places in the dataset,
    `scale_factor` 1 / std of all numbers in one z for each image, and of a book `indices` (N, ...).

    Source: Rombach et al. 2022, appendix G, for the scale factor, there of the first batch.

    Raises:
        ValueError: if the model has no encoder.
        RunError: if the file cannot be written.
    """
    own, device = data.splits[split], next(vae.parameters()).device
    codes, drawn, indices = [], [], []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        for places in torch.arange(len(own)).split(CHUNK):
            x, y = own.__getitems__(places.tolist())
            batch = data.to_pixels(Batch(x.to(device), None if y is None else y.to(device)), training=False)
            q = vae.encode(batch.x, batch.y)
            codes.append(q.mean.float().cpu())
            drawn.append(q.rsample(1)[0].float().cpu())
            indices += [q.indices.cpu()] if hasattr(q, "indices") else []
    found = {"codes": torch.cat(codes), "labels": own.labels[own.index], "images": own.index}
    found |= {"scale_factor": 1 / torch.cat(drawn).std(correction=0)}
    found |= {"indices": torch.cat(indices)} if indices else {}
    with durable_open(path) as file:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in found.items()}
        np.savez(file, **arrays)


def draw(vae: VAE, data: ImageData, points: str, path: Path) -> None:
    """Draw what points of the latent space stand for, each below its coordinates.

    Args:
        vae: the model.
        data: its images; codes of validation images give the range of random points, their labels those of points.
        points: as on the command line: a list of points, a file, or a number.
        path: of the picture.

    Raises:
        ValueError: if that is no list of points of this model.
        RunError: if the picture cannot be written.
    """
    z = read_points(vae, data, points)
    labels, like = fixed_labels(vae, data, len(z)), next(vae.parameters())
    with torch.no_grad():
        images = []
        for chunk in torch.arange(len(z)).split(CHUNK):
            y = None if labels is None else labels[chunk].to(like.device)
            images.append(vae.generate(vae.project(z[chunk].to(like)), y).float().cpu())
    titles = []
    for point in z.flatten(1):
        more = ", ..." * (len(point) > MAX_SHOWN)
        titles.append(f"({', '.join(f'{value:.3g}' for value in point[:MAX_SHOWN].tolist())}{more})")
    num_columns = math.ceil(math.sqrt(len(z)))
    drawn = pictures.titled(torch.cat(images), titles, num_columns, "decoded points of the latent space")
    pictures.write_png(path, drawn)


def read_points(vae: VAE, data: ImageData, points: str) -> Tensor:
    """The points (N, *latent_shape) that `decode=` means."""
    shape, value = vae.latent_shape, None
    if Path(points).suffix in (".npy", ".npz"):
        try:
            content = np.load(points, allow_pickle=False)
            value = (
                content if isinstance(content, np.ndarray) else content["latents" if "latents" in content else "codes"]
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"decode={points} cannot be read: {one_line(error)}") from error
    else:
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(points)
    if type(value) is int and 1 <= value <= MAX_POINTS:
        x, y = data.examples("val", NUM_CODES)
        like = next(vae.parameters())
        with torch.no_grad():
            q = vae.encode(x.to(like), y.to(like.device) if vae.num_classes else None)
        low, high = q.mean.amin(0).cpu(), q.mean.amax(0).cpu()
        return low + (high - low) * torch.rand(value, *shape, generator=torch.Generator().manual_seed(SEED))
    try:
        z = torch.as_tensor(np.asarray(value, dtype=np.float32))
    except (TypeError, ValueError):
        z = torch.empty(0)
    if z.ndim < 2 or not 1 <= len(z) <= MAX_POINTS or z[0].numel() != math.prod(shape) or not z.isfinite().all():
        size = " x ".join(map(str, shape))
        raise ValueError(
            f"decode must be 1 to {MAX_POINTS} points of {size} finite numbers, as [[0, 1], [2, 3]] are two, a .npy or "
            f".npz file of them, or how many to draw at random, got {points}"
        )
    return z.reshape(-1, *shape)
