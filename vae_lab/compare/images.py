"""Images of the compared models side by side: the same inputs, the same latents, each group's first seed.

The first seed and not the best one, because the best of some seeds flatters a group. A group's images are one strip.
Shapes: N images in a strip, C channels, H height, W width, D latent_dim.
"""

import base64
import math
from dataclasses import dataclass, field
from html import escape
from io import BytesIO

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from vae_lab.compare.groups import Group, yardstick
from vae_lab.compare.runs import visible
from vae_lab.data.standard import no_downloads
from vae_lab.errors import one_line
from vae_lab.evaluation.gallery import fixed_latents
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.runs.trained import build_stored, read_stored
from vae_lab.training.build import build_data

SIZES = {32: 18, 64: 14, 1024: 8, math.inf: 6}  # images in a strip, by the largest height
MAX_SIZE = 128  # pixels; larger images are shrunk to it
NUM_CODES = 500  # validation images that tell which latents vary
NUM_LATENTS = 3  # of which are walked through
REACH = 3.0  # deviations to both sides
MAX_BYTES = 5_000_000  # of all images, before base64 adds a third
KINDS = {
    "reconstructions": "of the same validation images, from the posterior mean",
    "samples": "decoded from the same latents; where latent_dim differs, from their first dimensions",
    "traversals": "of the latents that vary most, from −3 to 3; the others are those of the first image",
}


@dataclass
class Gallery:
    """Strips of images in order, kind -> (number of the group, None for originals; caption; data URI), and notes."""

    strips: dict[str, list[tuple[int | None, str, str]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    notes: list[str] = field(default_factory=list)
    size: int = 0

    def add(self, kind: str, number: int | None, caption: str, images: Tensor, num_columns: int) -> None:
        """Add images (N, C, H, W) as rows of so many, if there is room."""
        content, mime = encode(images, num_columns)
        if self.size <= MAX_BYTES < self.size + len(content):
            self.notes.append("The other images are left out: they would make the file too large.")
        self.size += len(content)
        if self.size <= MAX_BYTES:
            uri = f"data:{mime};base64,{base64.b64encode(content).decode()}"
            self.strips[kind].append((number, caption, uri))

    def html(self) -> str:
        """The section of the report."""
        parts = ["<p>The first seed of each group that is completed, its best checkpoint.</p>"]
        if self.notes:
            parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in self.notes)}</ul>')
        for kind, strips in self.strips.items():
            rows = ""
            for number, caption, uri in strips:
                key = f'<span class="key" data-key="{number}"></span> <b>{number}</b> ' if number else ""
                group = f' data-g="{number}"' if number else ""
                alt = escape(f"group {number}: {caption}" if number else caption)
                rows += f'<div{group}>{key}{escape(caption)}</div><img{group} loading="lazy" alt="{alt}" src="{uri}">'
            if any(number for number, *_ in strips):
                heading = f"{kind.capitalize()} <span>{KINDS[kind]}</span>"
                parts.append(f'<h3>{heading}</h3><div class="strips">{rows}</div>')
        return "".join(parts)


def draw_groups(groups: list[Group], max_groups: int, data_root: str | None) -> Gallery:
    """Draw the first groups that have a completed run with a model; what cannot be drawn is said in the notes.

    Without a `data_root` the images are where the runs found them. Nothing is downloaded.
    """
    gallery, inputs = Gallery(), {}
    drawable = [(group, run, run.folder) for group in groups if (run := group.first_run) and run.folder]
    if len(drawable) > max_groups:
        gallery.notes.append(f"The first {max_groups} of {len(drawable)} groups; max_images={len(drawable)} draws all.")
    for group, run, folder in drawable[:max_groups]:
        try:
            stored = read_stored(folder, "best")
            vae, cfg = build_stored(stored), stored.cfg
            key = yardstick(run, "mse")
            if key not in inputs:
                found = inputs[key] = read_inputs(cfg, data_root, gallery)
                if found is not None and len(inputs) > 1:
                    gallery.notes.append(f"From group {group.number} on there are inputs of another dataset or split.")
                if found is not None:
                    x = found[0][: in_a_strip(found[0].shape[2])]
                    gallery.add("reconstructions", None, "originals", x, len(x))
            caption = group.label if run.seed is None else f"{group.label}, seed={run.seed}"
            draw(gallery, group.number, caption, vae, inputs[key])
        except Exception as error:  # a stranger's run may hold anything; the report goes on without its images
            gallery.notes.append(f"No images of group {group.number}: {visible(one_line(error))}")
    return gallery


def read_inputs(cfg: DictConfig, data_root: str | None, gallery: Gallery) -> tuple[Tensor, Tensor] | None:
    """The first validation images of a run (N, C, H, W) and their labels (N, F), or None with a note."""
    if data_root is not None:
        cfg.data_root = data_root
        if "root" in cfg.dataset and not OmegaConf.is_interpolation(cfg.dataset, "root"):
            cfg.dataset.root = data_root
    cfg.dataset.num_workers = 0
    try:
        with no_downloads():
            data = build_data(cfg)
            data.prepare_data()
        return data.examples("val", NUM_CODES)
    except Exception as error:  # of any source, also of a user's own
        reason = visible(one_line(error))
        gallery.notes.append(f"No reconstructions and traversals, the images cannot be read: {reason}")
        return None


def in_a_strip(height: int) -> int:
    """How many images of a height are in a strip."""
    return next(number for size, number in SIZES.items() if height <= size)


@torch.no_grad()
def draw(gallery: Gallery, group: int, caption: str, vae: VAE, inputs: tuple[Tensor, Tensor] | None) -> None:
    """Add the strips of one group; a conditional model has samples only where there are labels."""
    number = in_a_strip(vae.image_shape[1])
    if inputs is not None and vae.encoder is not None:
        x, y = inputs
        gallery.add("reconstructions", group, caption, vae.reconstruct(x[:number], y[:number]), min(number, len(x)))
        odd = number - 1 + number % 2
        gallery.add("traversals", group, caption, traversals(vae, x, y, odd), odd)
    labels = inputs[1][torch.arange(number) % len(inputs[1])] if inputs is not None else None
    if vae.prior is not None and (labels is not None or not vae.num_classes):
        gallery.add("samples", group, caption, vae.generate(fixed_latents(vae, number), labels), number)


def traversals(vae: VAE, x: Tensor, y: Tensor, num_steps: int) -> Tensor:
    """Decode walks along the latents that vary most over images, from the code of the first (rows * steps, C, H, W)."""
    chunks = zip(x.split(250), y.split(250), strict=True)
    codes = torch.cat([vae.encode(*chunk).mean.flatten(1) for chunk in chunks])  # (N, D), also of a grid
    variances = codes.var(0, correction=0)
    dims = variances.argsort(descending=True)[:NUM_LATENTS]
    steps = torch.linspace(-REACH, REACH, num_steps)
    z = codes[0].repeat(len(dims), num_steps, 1)  # (rows, steps, D)
    for row, dim in zip(z, dims, strict=True):
        own = codes[:, dim].mean() + variances[dim].sqrt() * steps  # without that prior, the deviation of the codes
        row[:, dim] = steps if isinstance(vae.prior, StandardNormal) else own
    return vae.generate(vae.project(z.flatten(0, 1).unflatten(1, vae.latent_shape)), y[:1])


def encode(images: Tensor, num_columns: int) -> tuple[bytes, str]:
    """Images (N, C, H, W) in [0, 1] as rows of a PNG file, or of a JPEG file where they are large or coloured."""
    height, is_grey = images.shape[-2], images.shape[1] == 1
    if height > MAX_SIZE:
        images = F.interpolate(images, (MAX_SIZE, MAX_SIZE), mode="bilinear", antialias=True)
    images = images.float().nan_to_num().clamp(0, 1)
    pixels = (make_grid(images, num_columns, padding=1, pad_value=0.5) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels[0].numpy() if is_grey else pixels.permute(1, 2, 0).contiguous().numpy())
    buffer, kind = BytesIO(), "png" if height <= (64 if is_grey else 32) else "jpeg"
    how = {"optimize": True} if kind == "png" else {"quality": 90, "subsampling": 0}
    picture.save(buffer, kind, **how)
    return buffer.getvalue(), f"image/{kind}"
