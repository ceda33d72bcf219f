"""Images of the compared models side by side: the same inputs, the same latents, each group's first seed.

The first seed and not the best one, because the best of some seeds flatters a group. A group's images are one strip, so
that the same input or latent stands in the same column for all groups.

Shapes: N images in a strip, C channels, H height, W width, D latent_dim.
"""

import base64
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
from vae_lab.compare.runs import Entry, visible
from vae_lab.data.standard import no_downloads
from vae_lab.errors import one_line
from vae_lab.evaluation.gallery import fixed_latents
from vae_lab.models.vae import VAE
from vae_lab.runs.trained import load_run
from vae_lab.training.build import build_data

SIZES = {32: 18, 64: 14, 1024: 8}  # images in a strip, by the largest height
MAX_SIZE = 128  # pixels; larger images are shrunk to it
NUM_CODES = 500  # validation images that tell which latents vary
NUM_LATENTS = 3  # of which are walked through
REACH = 3.0  # deviations to both sides
MAX_BYTES = 5_000_000  # of all images, before base64 adds a third
KINDS = {
    "reconstructions": ("Reconstructions", "of the same validation images, from the posterior mean"),
    "samples": ("Samples", "decoded from the same latents; where latent_dim differs, from their first dimensions"),
    "traversals": (
        "Traversals",
        "of the latents that vary most, from −3 to 3; the others are those of the first image",
    ),
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
        self.size += len(content)
        if self.size <= MAX_BYTES:
            uri = f"data:{mime};base64,{base64.b64encode(content).decode()}"
            self.strips[kind].append((number, caption, uri))

    def html(self) -> str:
        """The section of the report."""
        parts = ["<p>The first seed of each group that is completed, its best checkpoint.</p>"]
        if self.notes or self.size > MAX_BYTES:
            notes = [*self.notes, *(["The other images are left out: they would make the file too large."]
                                    if self.size > MAX_BYTES else [])]  # fmt: skip
            parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>')
        for kind, strips in self.strips.items():
            title, text = KINDS[kind]
            if any(number is not None for number, *_ in strips):
                rows = "".join(strip(number, caption, uri) for number, caption, uri in strips)
                parts.append(f'<h3>{title} <span>{text}</span></h3><div class="strips">{rows}</div>')
        return "".join(parts)


def strip(number: int | None, caption: str, uri: str) -> str:
    """One row: what it is, and the images."""
    key = f'<span class="key" data-key="{number}"></span> <b>{number}</b> ' if number else ""
    group = f' data-g="{number}"' if number else ""
    alt = escape(f"group {number}: {caption}" if number else caption, quote=True)
    return f'<div{group}>{key}{escape(caption)}</div><img{group} loading="lazy" alt="{alt}" src="{uri}">'


def draw_groups(groups: list[Group], max_groups: int, data_root: str | None) -> Gallery:
    """Draw the first groups that have a completed run with a model; what cannot be drawn is said in the notes.

    Args:
        groups: best first.
        max_groups: how many are drawn, >= 1.
        data_root: where the images are now; None is where the runs found them. Nothing is downloaded.
    """
    gallery, inputs = Gallery(), {}
    drawable = [(group, group.first_run) for group in groups if group.first_run]
    if len(drawable) > max_groups:
        gallery.notes.append(f"The first {max_groups} of {len(drawable)} groups; max_images={len(drawable)} draws all.")
    for group, run in drawable[:max_groups]:
        try:
            vae, cfg = load_run(run.folder)
            key = yardstick(run, "mse")
            if key not in inputs:
                inputs[key] = read_inputs(cfg, data_root, gallery)
                if len(inputs) > 1 and inputs[key] is not None:
                    gallery.notes.append(f"From group {group.number} on there are inputs of another dataset or split.")
                add_originals(gallery, inputs[key])
            draw(gallery, group, run, vae, inputs[key])
        except Exception as error:  # a stranger's run may hold anything; the report goes on without its images
            reason = visible(one_line(error))
            gallery.notes.append(f"No images of group {group.number}: {reason}")
    return gallery


def read_inputs(cfg: DictConfig, data_root: str | None, gallery: Gallery) -> Tensor | None:
    """The first validation images of a run (N, C, H, W), or None with a note where they cannot be read."""
    if data_root is not None:
        cfg.data_root = data_root
        if "root" in cfg.dataset and not OmegaConf.is_interpolation(cfg.dataset, "root"):
            cfg.dataset.root = data_root
    cfg.dataset.num_workers = 0
    try:
        with no_downloads():
            data = build_data(cfg)
            data.prepare_data()
        return data.examples("val", NUM_CODES)[0]
    except Exception as error:  # of any source, also of a user's own
        reason = visible(one_line(error))
        gallery.notes.append(f"No reconstructions and traversals, the images cannot be read: {reason}")
        return None


def count(height: int) -> int:
    """Images in a strip."""
    return next((number for size, number in SIZES.items() if height <= size), 6)


def add_originals(gallery: Gallery, x: Tensor | None) -> None:
    """The inputs above their reconstructions."""
    if x is not None:
        number = min(count(x.shape[2]), len(x))
        gallery.add("reconstructions", None, "originals", x[:number], number)


def draw(gallery: Gallery, group: Group, run: Entry, vae: VAE, x: Tensor | None) -> None:
    """Add the strips of one group."""
    caption = f"{group.label}, seed={run.seed}" if run.seed is not None else group.label
    number = count(vae.image_shape[1])
    with torch.no_grad():
        if x is not None:
            shown = x[:number]
            gallery.add("reconstructions", group.number, caption, vae.reconstruct(shown), len(shown))
            walk, columns = traversals(vae, x, number - 1 + number % 2)
            gallery.add("traversals", group.number, caption, walk, columns)
        if vae.prior is not None:
            z = fixed_latents(number * 4096, 1).reshape(number, -1)[:, : vae.latent_dim]
            gallery.add("samples", group.number, caption, vae.generate(z), number)


def traversals(vae: VAE, x: Tensor, columns: int) -> tuple[Tensor, int]:
    """Decode walks along the latents that vary most over some images, from the code of the first image.

    Returns:
        Images (rows * columns, C, H, W), and the columns.
    """
    codes = torch.cat([vae.encode(chunk).mean for chunk in x.split(250)])
    variances = codes.var(0, correction=0)
    dims = variances.argsort(descending=True)[:NUM_LATENTS]
    steps = torch.linspace(-REACH, REACH, columns)
    z = codes[0].repeat(len(dims), columns, 1)
    for row, dim in zip(z, dims, strict=True):
        own = codes[:, dim].mean() + variances[dim].sqrt() * steps  # without a prior, the deviation of the codes
        row[:, dim] = steps if vae.prior is not None else own
    return vae.generate(z.flatten(0, 1)), columns


def encode(images: Tensor, num_columns: int) -> tuple[bytes, str]:
    """Images (N, C, H, W) in [0, 1] as rows of a PNG file, or of a JPEG file where they are large or coloured.

    Returns:
        The file's content and its type.
    """
    height = images.shape[-2]
    if height > MAX_SIZE:
        images = F.interpolate(images, (MAX_SIZE, MAX_SIZE), mode="bilinear", antialias=True)
    images = images.float().nan_to_num().clamp(0, 1)
    pixels = (make_grid(images, num_columns, padding=1, pad_value=0.5) * 255).round().to(torch.uint8)
    is_grey = images.shape[1] == 1
    array = pixels[0].numpy() if is_grey else pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = BytesIO()
    if height <= (64 if is_grey else 32):
        Image.fromarray(array).save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    Image.fromarray(array).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue(), "image/jpeg"
