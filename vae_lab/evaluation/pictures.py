"""Pictures of a generative model: image grids, latent scatters, loss curves and GIFs.

Pure functions from tensors to pictures, and two that write files. A picture is a uint8 array (H, W, 3).
N images, C channels (1 or 3), D latent_dim.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from vae_lab.errors import NumericsError
from vae_lab.models.quantizers import perplexity
from vae_lab.runs.files import durable_open

MIN_TILE = 48  # pixels: an 8x8 digit becomes readable
GAP = 2  # pixels between tiles
GAP_GREY = 204  # tells tiles apart on black and on white backgrounds
MARGIN = 10  # pixels around labels
INK = (60, 60, 60)
PALE = (225, 225, 225)  # lines of a chart
MUTED = ["#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3"]
MUTED += ["#937860", "#da8bc3", "#8c8c8c", "#ccb974", "#64b5cd"]
VIRIDIS = ["#440154", "#472c7a", "#3b518b", "#2c718e", "#21908d", "#27ad81", "#5cc863", "#aadc32", "#fde725"]
OPACITY = 190  # of the points of a scatter, of 255
STAGES = {"train": MUTED[0], "val": MUTED[1]}
MAX_NAME = 20  # characters of a class in a legend
MAX_TICKS = 30  # classes that are named on a colour bar
MAX_FRAME_SIZE = 1200  # pixels, of the GIF


def grid(images: Tensor, num_columns: int, min_tile: int = MIN_TILE) -> np.ndarray:
    """Tiles images row by row, small ones enlarged by an integer factor.

    Args:
        images: (N, C, H, W), clamped to [0, 1]; NaN is drawn black.
        num_columns: images per row, >= 1.
        min_tile: pixels that a tile is at least wide and high.

    Returns:
        The picture.
    """
    scale = math.ceil(min_tile / min(images.shape[-2:]))
    images = (images.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    images = images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    return make_grid(images, nrow=num_columns, padding=GAP, pad_value=GAP_GREY).permute(1, 2, 0).contiguous().numpy()


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
    values = [] if labels is None else labels.unique().tolist()
    full = [class_names[value] if value < len(class_names) else str(value) for value in values]
    shown = [name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in full]
    is_legend, is_named = len(values) <= len(MUTED), len(values) <= MAX_TICKS and len(class_names) > 0
    width = max(map(_font(15).getlength, [*(shown if is_legend or is_named else ["0" * 5]), label_name]))
    chart = Chart((792, 672), codes[:, 0].numpy(), codes[:, -1].numpy(), round(width) + 50 if values else 0, True)
    if labels is None or not values:
        colors = np.broadcast_to(_rgb(MUTED[:1]), (len(codes), 3))
    elif is_legend:
        colors = _rgb(MUTED)[np.searchsorted(values, labels.numpy())]
        chart.legend(shown, MUTED, label_name, is_beside=True)
    else:
        low, high = values[0], values[-1]
        where = np.linspace(0, 1, len(VIRIDIS))
        colors = np.stack([np.interp((labels - low) / (high - low), where, c) for c in _rgb(VIRIDIS).T], -1)
        ticks = dict(zip(values, shown, strict=True)) if is_named else {t: f"{t:g}" for t in _ticks(low, high, 8)}
        chart.bar(ticks, low, high, label_name)
    chart.points(codes[:, 0].numpy(), codes[:, -1].numpy(), colors, 3 if len(codes) > 1000 else 4)
    return chart.picture(title, *names)


def codebook(counts: Tensor, title: str) -> np.ndarray:
    """Draws how often each code of a book was used, from the most used to the least, beside an even use.

    Args:
        counts: (K,), >= 0, at least one of them positive.
        title: one line; the perplexity and the number of unused codes are written behind it.

    Returns:
        The picture; the area is the share of all places.
    """
    share = 100 * (counts / counts.sum()).sort(descending=True).values.double().numpy()
    num, unused = len(share), int((counts == 0).sum())
    chart = Chart((888, 504), np.array([1, num + 1]), np.array([0, share[0], 100 / num]))
    edges = np.repeat(np.arange(1, num + 2), 2)
    chart.area(edges, np.concatenate([[0], np.repeat(share, 2), [0]]), MUTED[0])
    chart.line(edges[[0, -1]], np.full(2, 100 / num), MUTED[1])
    chart.legend(["even use"], MUTED[1:])
    found = f"perplexity {perplexity(counts.float()):.4g} of {num}, {unused} unused"
    return chart.picture(f"{title}: {found}", "codes, most used first", "% of all places")


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
    panels = []
    for key in keys:
        lines = {}
        for stage in STAGES:
            values = {row["step"]: row[f"{stage}/{key}"] for row in rows if row.get(f"{stage}/{key}") is not None}
            lines[stage] = np.array([p for p in sorted(values.items()) if math.isfinite(p[1])], float).reshape(-1, 2)
        chart = Chart((516, 432), *np.concatenate(list(lines.values())).T)
        for stage, points in lines.items():
            x, y = points.T
            chart.line(x, y, STAGES[stage])
            if len(points) <= 30:
                chart.points(x, y, np.broadcast_to(_rgb([STAGES[stage]]), (len(points), 3)), 4, 255)
        chart.legend(list(STAGES), list(STAGES.values()))
        panels.append(chart.picture(key, "step", "nats per image" if key == keys[0] else ""))
    return beside(panels)


class Chart:
    """Axes on a white page. What is drawn on them is drawn twice as large and then reduced, which smooths it.

    Args:
        size: width and height of the page, in pixels.
        x: all values that have to fit, (N,).
        y: the same of the vertical axis, (M,).
        right: pixels beside the axes that are left free.
        is_equal: whether a unit is as long on both axes.
    """

    def __init__(self, size: tuple[int, int], x: np.ndarray, y: np.ndarray, right: int = 0, is_equal: bool = False):
        self.box = left, top, right, bottom = 76, 70, size[0] - 20 - right, size[1] - 58
        extent = np.array([right - left, bottom - top])
        self.low, self.high = np.array([_span(x), _span(y)]).T
        if is_equal:
            half, centre = ((self.high - self.low) / extent).max() * extent / 2, (self.high + self.low) / 2
            self.low, self.high = centre - half, centre + half
        self.page = Image.new("RGB", (2 * size[0], 2 * size[1]), "white")
        self.draw = ImageDraw.Draw(self.page, "RGBA")
        self.texts: list[tuple[tuple[float, float], str, int, str]] = []  # place, text, size, anchor
        x_ticks, y_ticks = (_ticks(low, high, 6) for low, high in zip(self.low, self.high, strict=True))
        for tick, place in zip(x_ticks, self._at(x_ticks, self.low[1])[:, 0] / 2, strict=True):
            self.draw.line((2 * place, 2 * top, 2 * place, 2 * bottom), PALE, 2)
            self.texts.append(((place, bottom + 8), f"{tick:.6g}", 15, "mt"))
        for tick, place in zip(y_ticks, self._at(self.low[0], y_ticks)[:, 1] / 2, strict=True):
            self.draw.line((2 * left, 2 * place, 2 * right, 2 * place), PALE, 2)
            self.texts.append(((left - 8, place), f"{tick:.6g}", 15, "rm"))

    def _at(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Places on the larger page, (N, 2)."""
        left, top, right, bottom = self.box
        unit = (np.stack(np.broadcast_arrays(x, y), -1).astype(float) - self.low) / (self.high - self.low)
        return 2 * (np.array([left, bottom]) + unit * np.array([right - left, top - bottom]))

    def points(self, x: np.ndarray, y: np.ndarray, colors: np.ndarray, radius: float, opacity: int = OPACITY) -> None:
        """Draw points in colours (N, 3) of 0 to 255."""
        r = 2 * radius
        for (i, j), color in zip(self._at(x, y).tolist(), colors.astype(int).tolist(), strict=True):
            self.draw.ellipse((i - r, j - r, i + r, j + r), (*color, opacity))

    def line(self, x: np.ndarray, y: np.ndarray, color: str) -> None:
        """Draw a line through points."""
        self.draw.line(self._at(x, y).flatten().tolist(), color, 4, "curve")

    def area(self, x: np.ndarray, y: np.ndarray, color: str) -> None:
        """Fill what a line encloses."""
        self.draw.polygon(self._at(x, y).flatten().tolist(), color)

    def legend(self, names: Sequence[str], colors: Iterable[str], title: str = "", is_beside: bool = False) -> None:
        """Name colours, in a row above the axes or in a column beside them."""
        _, top, right, bottom = self.box
        if is_beside:
            left, first = right + 24, (top + bottom) / 2 - 12 * len(names)
            self.texts.append(((left - 8, first - 28), title, 15, "lm"))
            places: list[tuple[float, float]] = [(left, first + 24 * i) for i in range(len(names))]
        else:
            widths = [38 + _font(15).getlength(name) for name in names]
            places = [(right - sum(widths[i:]) + 24, top - 16) for i in range(len(names))]
        for (x, y), name, color in zip(places, names, colors, strict=False):
            self.draw.ellipse((2 * x - 11, 2 * y - 11, 2 * x + 11, 2 * y + 11), color)
            self.texts.append(((x + 14, y), name, 15, "lm"))

    def bar(self, ticks: dict, low: float, high: float, title: str) -> None:
        """Draw the colours of the values from low to high beside the axes, and name some of them."""
        _, top, right, bottom = self.box
        where = np.linspace(1, 0, bottom - top - 60)
        colors = np.stack([np.interp(where, np.linspace(0, 1, len(VIRIDIS)), c) for c in _rgb(VIRIDIS).T], -1)
        strip = Image.fromarray(colors[:, None].astype(np.uint8)).resize((36, 2 * len(where)))
        self.page.paste(strip, (2 * right + 40, 2 * top + 60))
        self.texts.append(((right + 20, top + 14), title, 15, "lm"))
        for tick, name in ticks.items():
            place = top + 30 + (high - tick) / (high - low) * len(where)
            self.texts.append(((right + 44, place), name, 15 if len(ticks) < 20 else 11, "lm"))

    def picture(self, title: str, x: str, y: str) -> np.ndarray:
        """The page with its texts: the title, and what the axes are."""
        left, top, right, bottom = self.box
        for edge in ((left, bottom, right, bottom), (left, top, left, bottom)):
            self.draw.line([2 * place for place in edge], INK, 2)
        page = self.page.reduce(2)
        draw = ImageDraw.Draw(page)
        named = [((left, 24), title, 19, "lm"), ((left, top - 16), y, 16, "lm")]
        for place, text, size, anchor in [*self.texts, *named, (((left + right) / 2, bottom + 42), x, 16, "mm")]:
            draw.text(place, text, INK, _font(size), anchor)
        return np.asarray(page)


def _span(values: np.ndarray) -> tuple[float, float]:
    """A little more than what values (N,) cover."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    largest = max(abs(low), abs(high), 1.0)
    margin = 0.05 * (high - low) if high - low > 1e-9 * largest else 0.5 * largest
    return low - margin, high + margin


def _ticks(low: float, high: float, most: int) -> np.ndarray:
    """Round numbers from low to high, at most so many."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= most)
    return step * np.arange(math.ceil(low / step), math.floor(high / step) + 1)


def _rgb(colors: Sequence[str]) -> np.ndarray:
    return np.array([ImageColor.getrgb(color) for color in colors])  # (N, 3)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture (H, W, 3) whole or not at all.

    Raises:
        RunError: if it cannot be written.
    """
    buffer = BytesIO()
    _image(picture).save(buffer, "PNG", compress_level=1)  # four times as fast, a tenth larger
    _write(path, buffer.getvalue())


def write_gif(path: Path, frames: Iterable[np.ndarray]) -> None:
    """Animates pictures (H, W, 3), on white pages of one size, and holds the last for 2 seconds.

    Raises:
        RunError: if it cannot be written.
    """
    pages = []  # of a byte a pixel
    for frame in frames:
        image = _image(frame)
        image.thumbnail((MAX_FRAME_SIZE, MAX_FRAME_SIZE))
        pages.append(_in_bytes(image))
    size = max(page.width for page in pages), max(page.height for page in pages)
    for i, page in enumerate(pages):
        if page.size != size:
            white = Image.new("L" if page.mode == "L" else "RGB", size, "white")
            white.paste(page)
            pages[i] = _in_bytes(white)
    duration = min(max(6000 // len(pages), 80), 400)  # milliseconds
    durations = [duration] * (len(pages) - 1) + [2000]
    buffer = BytesIO()
    pages[0].save(buffer, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    _write(path, buffer.getvalue())


def _in_bytes(image: Image.Image) -> Image.Image:
    """Grey, or in the 256 colours that suit best."""
    return image if image.mode == "L" else image.quantize(256, dither=Image.Dither.NONE)


def _image(picture: np.ndarray) -> Image.Image:
    """In the form that takes least time and space to write: most pictures are grey."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    is_grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return Image.fromarray(np.ascontiguousarray(red) if is_grey else picture)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(path: Path, data: bytes) -> None:
    with durable_open(path, len(data)) as file:
        file.write(data)
