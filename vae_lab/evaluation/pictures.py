"""Pictures of a generative model: image grids, latent scatters, loss curves and GIFs.

Pure functions from tensors to pictures, and two that write files. A picture is a uint8 array (H, W, 3).
N images, C channels (1 or 3), D latent_dim.
"""

import math
import warnings
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from vae_lab.errors import NumericsError
from vae_lab.models.quantizers import perplexity
from vae_lab.runs.files import durable_open

MIN_TILE = 48  # pixels: an 8x8 digit becomes readable
GAP = 2  # pixels between tiles
GAP_GREY = 0.8  # tells tiles apart on black and on white backgrounds
MARGIN = 10  # pixels around labels
INK = (60, 60, 60)
MUTED = ["#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3"]
MUTED += ["#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd"]
STAGES = {"train": MUTED[0], "val": MUTED[1]}
LAYOUT = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
MAX_NAME = 20  # characters of a class in a legend
MAX_TICKS = 30  # classes that are named on a colour bar
MAX_FRAME_SIZE = 1200  # pixels, of the GIF


def grid(images: Tensor, num_columns: int) -> np.ndarray:
    """Tiles images row by row, small ones enlarged by an integer factor.

    Args:
        images: (N, C, H, W), clamped to [0, 1]; NaN is drawn black.
        num_columns: images per row, >= 1.

    Returns:
        The picture; each tile is at least 48 pixels wide and high.
    """
    scale = math.ceil(MIN_TILE / min(images.shape[-2:]))
    images = images.float().nan_to_num().clamp(0, 1)
    images = images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    tiles = make_grid(images, nrow=num_columns, padding=GAP, pad_value=GAP_GREY)
    return (tiles * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def annotate(picture: np.ndarray, title: str, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> np.ndarray:
    """Writes a title above a picture, labels left of its rows and above its columns.

    Args:
        picture: (H, W, 3), whose rows and columns are equally high and wide.
        title: one line, or empty.
        rows: one label per row, or empty.
        columns: one label per column, or empty.

    Returns:
        The picture on a larger white page.
    """
    height, width = picture.shape[:2]
    small, large = _font(14), _font(17)
    left = MARGIN + (math.ceil(max(map(small.getlength, rows))) + MARGIN if rows else 0)
    header = MARGIN + (24 if title else 0)
    top = header + (22 if columns else 0)
    page_width = max(left + width, left + math.ceil(large.getlength(title))) + MARGIN
    page = Image.new("RGB", (page_width, top + height + MARGIN), "white")
    page.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(page)
    draw.text((left, header / 2 + 1), title, INK, large, anchor="lm")
    for i, label in enumerate(rows):
        draw.text((left - MARGIN, top + (i + 0.5) * height / len(rows)), label, INK, small, anchor="rm")
    for j, label in enumerate(columns):
        draw.text((left + (j + 0.5) * width / len(columns), top - 11), label, INK, small, anchor="mm")
    return np.asarray(page)


def titled(images: Tensor, titles: Sequence[str], num_columns: int, title: str) -> np.ndarray:
    """Tiles images row by row, each below a title of its own, enlarged until that fits.

    Args:
        images: (N, C, H, W), clamped to [0, 1].
        titles: one line for each.
        num_columns: images per row, >= 1.
        title: one line above all.
    """
    scale = math.ceil(max(MIN_TILE, *map(_font(14).getlength, titles)) / images.shape[-1])
    images = images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    tiles = [annotate(grid(image[None], 1), "", (), [text]) for image, text in zip(images, titles, strict=True)]
    rows = [beside(tiles[i : i + num_columns]) for i in range(0, len(tiles), num_columns)]
    return annotate(stack(rows), title)


def stack(pictures: list[np.ndarray]) -> np.ndarray:
    """Puts pictures below each other, aligned left on a white page."""
    width = max(picture.shape[1] for picture in pictures)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures])


def beside(pictures: list[np.ndarray]) -> np.ndarray:
    """Puts pictures next to each other, aligned at the top on a white page."""
    return stack([picture.swapaxes(0, 1) for picture in pictures]).swapaxes(0, 1)


def reconstructions(x: Tensor, x_hat: Tensor, title: str) -> np.ndarray:
    """Draws each row of originals directly above the row of their reconstructions.

    Args:
        x: originals (N, C, H, W) in [0, 1].
        x_hat: their reconstructions (N, C, H, W), about [0, 1].
        title: one line.

    Returns:
        The picture; N images are split into rows so that it is about square.
    """
    num_columns = min(len(x), 2 * math.ceil(math.sqrt(len(x))))
    pairs = [
        annotate(grid(torch.cat(pair), len(pair[0])), title * (i == 0), ["original", "reconstruction"])
        for i, pair in enumerate(zip(x.split(num_columns), x_hat.split(num_columns), strict=True))
    ]
    return stack(pairs)


def principal_components(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Projects codes (N, D) on their two directions of largest variance: (N, 2), and the share of each (2,) in [0, 1].

    The largest loading of each direction is made positive, so that a picture does not flip between runs.
    An exact decomposition, as `torch.pca_lowrank` draws from the global random generator.
    """
    centred = (codes - codes.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    variances, directions = variances[-2:].flip(0).clamp(min=0), directions[:, -2:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    total = centred.square().sum().clamp(min=torch.finfo(torch.double).tiny)
    return (centred @ (directions * largest.sign())).to(codes.dtype), (variances / total).to(codes.dtype)


def scatter(
    codes: Tensor, labels: Tensor | None, label_name: str, title: str, class_names: Sequence[str] = ()
) -> np.ndarray:
    """Draws codes as points in the plane, by their first two principal components if D > 2.

    Args:
        codes: (N, D), the posterior means.
        labels: int64 (N,) for the colours, or None for one colour.
        label_name: title of the legend.
        title: one line.
        class_names: of the labels 0, 1, ..., where they have names.

    Returns:
        The picture; up to 10 distinct labels have a legend, more have a colour bar.

    Raises:
        NumericsError: if a code is not finite.
    """
    if not codes.isfinite().all():
        raise NumericsError("cannot draw the latents: some are not finite, the model has diverged")
    if codes.shape[1] > 2:
        codes, explained = principal_components(codes)
        names = [f"principal component {i} ({share:.0%} of variance)" for i, share in enumerate(explained, 1)]
    else:
        names = ["z0", f"z{codes.shape[1] - 1}"]  # D = 1 lies on the diagonal
    x, y = codes[:, 0].numpy(), codes[:, -1].numpy()

    figure = Figure(figsize=(6.6, 5.6), dpi=120, layout=LAYOUT)
    axes = figure.subplots()
    style: dict[str, Any] = {"s": 12 if len(x) > 1000 else 24, "alpha": 0.75, "linewidths": 0}
    values = [] if labels is None else labels.unique().tolist()
    full = [class_names[value] if value < len(class_names) else str(value) for value in values]
    shown = [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in full]
    # Two dollars would be a formula, and a name that begins with _ is left out of a legend.
    shown = [" " * (name[0] == "_") + name.replace("$", r"\$") for name in shown]
    if labels is None or not values:
        axes.scatter(x, y, color=MUTED[0], **style)
    elif len(values) <= len(MUTED):
        for value, name, color in zip(values, shown, MUTED, strict=False):
            chosen = (labels == value).numpy()
            axes.scatter(x[chosen], y[chosen], color=color, label=name, **style)
        legend = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "markerscale": 2.2, "frameon": False}
        axes.legend(title=label_name, fontsize=11, title_fontsize=11, handletextpad=0.1, **legend)
    else:
        points = axes.scatter(x, y, c=labels.numpy(), cmap="viridis", **style)
        bar = figure.colorbar(points, ax=axes, shrink=0.7)
        bar.set_label(label_name, fontsize=11)
        if class_names and len(values) <= MAX_TICKS:
            bar.set_ticks(values, labels=shown, fontsize=8)
    axes.set_aspect("equal", adjustable="datalim")
    _label(axes, title, *names)
    return _render(figure)


def codebook(counts: Tensor, title: str) -> np.ndarray:
    """Draws how often each code of a book was used, from the most used to the least, beside an even use.

    Args:
        counts: (K,), >= 0, at least one of them positive.
        title: one line; the perplexity and the number of unused codes are written behind it.

    Returns:
        The picture; the area is the share of all places.
    """
    share = (counts / counts.sum()).sort(descending=True).values
    num, unused = len(share), int((counts == 0).sum())
    figure = Figure(figsize=(7.4, 4.2), dpi=120, layout=LAYOUT)
    axes = figure.subplots()
    axes.stairs(100 * share.numpy(), range(1, num + 2), fill=True, color=MUTED[0])
    axes.axhline(100 / num, color=MUTED[1], linewidth=1.5, label="even use")
    axes.set_xlim(1, num + 1)
    axes.legend(fontsize=11, frameon=False)
    found = f"perplexity {perplexity(counts.float()):.4g} of {num}, {unused} unused"
    _label(axes, f"{title}: {found}", "codes, most used first", "% of all places")
    return _render(figure)


def curves(rows: list[dict]) -> np.ndarray:
    """Draws loss, reconstruction, KL and the two players' losses against the step, training and validation in each.

    Args:
        rows: the lines of metrics.jsonl. A step that was repeated after a resume counts once, the last time.

    Returns:
        The picture, with a panel for each of them that was recorded.
    """
    recorded = {key.partition("/")[2] for row in rows for key in row}
    shown = ("loss", "reconstruction", "kl", "generator_loss", "discriminator_loss")
    keys = [key for key in shown if key in recorded] or ["loss"]
    figure = Figure(figsize=(4.3 * len(keys), 3.6), dpi=120, layout=LAYOUT)
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for stage, color in STAGES.items():
            name = f"{stage}/{key}"
            points = dict(sorted({row["step"]: row[name] for row in rows if row.get(name) is not None}.items()))
            marker = "o" if len(points) <= 30 else None
            axes.plot(points.keys(), points.values(), color=color, label=stage, marker=marker, markersize=4)
        axes.margins(y=0.08)
        axes.grid(alpha=0.25)
        _label(axes, key, "step", "nats per image" if key == keys[0] else "")
        axes.legend(fontsize=11, frameon=False)
    return _render(figure)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture (H, W, 3) whole or not at all.

    Raises:
        RunError: if it cannot be written.
    """
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    _write(path, buffer.getvalue())


def write_gif(path: Path, frames: list[np.ndarray]) -> None:
    """Animates pictures (H, W, 3), on white pages of one size, and holds the last for 2 seconds.

    Raises:
        RunError: if it cannot be written.
    """
    size = max(frame.shape[1] for frame in frames), max(frame.shape[0] for frame in frames)
    pages = [Image.new("RGB", size, "white") for _ in frames]
    for page, frame in zip(pages, frames, strict=True):
        page.paste(Image.fromarray(frame))
        page.thumbnail((MAX_FRAME_SIZE, MAX_FRAME_SIZE))
    pages = [page.quantize(256, dither=Image.Dither.NONE) for page in pages]
    duration = min(max(6000 // len(pages), 80), 400)  # milliseconds
    durations = [duration] * (len(pages) - 1) + [2000]
    buffer = BytesIO()
    pages[0].save(buffer, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    _write(path, buffer.getvalue())


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=13, loc="left")
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _render(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)  # whatever MPLBACKEND says
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of limits that coincide or overflow: `train.log` has the values
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(path: Path, data: bytes) -> None:
    with durable_open(path, len(data)) as file:
        file.write(data)
