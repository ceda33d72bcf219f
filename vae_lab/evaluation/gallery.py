"""The gallery of a run: which pictures are drawn, when, and from which latents.

Drawing leaves no trace in training: no gradients, evaluation mode only for the time of a look, posterior
means instead of samples, and latents from a generator of its own. The number of files is bounded: those of an epoch
are kept for the epochs 0, 1, 2, 4, 8, ... and the last, and `training.npz` holds the images of all epochs, for the GIF.

Shapes: B batch, C channels, H height, W width, D latent_dim.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from vae_lab.data.batches import ImageData
from vae_lab.evaluation import pictures
from vae_lab.models.priors import StandardNormal
from vae_lab.models.vae import VAE
from vae_lab.runs.files import durable_open
from vae_lab.runs.metrics_file import read_events

SPLIT = "val"
CHUNK = 256  # images through the model at a time
NUM_CODES = 2000  # validation images in the latent scatter and in the variances of the latents
MAX_ROWS = 10  # of traversals, the latents that vary most
MAX_PAIRS = 8  # of interpolated images
MANIFOLD_SIDE = 20
MAX_LABELS, NUM_COLUMNS = 20, 12  # rows and columns of the picture of labels
SEED = 0  # of the latents that are followed through training
MAX_FRAMES = 60  # of training.gif; of more epochs every second, fourth, ... is kept


def fixed_latents(vae: VAE, num: int) -> Tensor:
    """Returns the same draws from the model's prior, (num, *latent_shape) on the CPU, at every call."""
    with at_rest(vae):
        return vae.prior.sample(num, torch.Generator().manual_seed(SEED)).cpu()


@contextmanager
def at_rest(vae: VAE) -> Iterator[None]:
    """In evaluation mode and without gradients; afterwards the modes are as before."""
    modes = {module: module.training for module in vae.modules()}
    vae.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def fixed_labels(vae: VAE, datamodule: ImageData, num: int) -> Tensor | None:
    """Returns labels (num, F) that go with `fixed_latents`: of validation images; None where the model takes none."""
    if not vae.num_classes:
        return None
    labels = datamodule.examples(SPLIT, num)[1]
    return labels[torch.arange(num) % len(labels)]


class Painter:
    """Draws a VAE and leaves its parameters, buffers and modes and the random generators as they were.

    Every `draw_` method writes PNG files to `run_dir/pictures` and returns the file of each kind.

    Args:
        vae: the model, on any device.
        datamodule: the images of the run.
        run_dir: the run folder; its metrics.jsonl gives the curves.
        num_images: originals, and samples, in a picture, >= 1.
        precision: makes the context in which the model runs, such as autocast.
    """

    def __init__(
        self,
        vae: VAE,
        datamodule: ImageData,
        run_dir: Path,
        num_images: int = 64,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.vae = vae
        self.datamodule = datamodule
        self.metrics = run_dir / "metrics.jsonl"
        self.folder = run_dir / "pictures"
        self.num_images = num_images
        self.precision = precision
        self.is_standard = isinstance(vae.prior, StandardNormal)
        self.followed = "samples" if vae.prior is not None else "reconstructions"
        self.kept: dict[int, np.ndarray] | None = None  # of `training.npz`, once it was read

    def draw_all(self, epoch: int) -> dict[str, Path]:
        """Draws every kind; `epoch` is the number of finished epochs, >= 0."""
        when = f"epoch {epoch}"
        paths = self.draw_progress(epoch) | self.draw_latents(when) | self.draw_walks(when)
        if self.vae.num_classes:
            paths |= self.draw_labels(when)
        if hasattr(self.vae.prior, "sample_below") and self.vae.encoder is not None:
            paths |= self.draw_layers(when)
        if self.metrics.is_file():
            paths |= self._save({"curves": pictures.curves(read_events(self.metrics))})
        return paths | self.draw_training()

    def draw_progress(self, epoch: int) -> dict[str, Path]:
        """Draws what is followed through training: reconstructions if there is an encoder, samples if a prior."""
        kinds = {"reconstructions", self.followed} if self.vae.encoder is not None else {self.followed}
        drawn = {kind: self._progress(kind, self._images(kind), epoch) for kind in sorted(kinds)}
        return self._save(drawn, f"/epoch_{epoch:03d}")

    def follow(self, epoch: int, is_drawn: bool) -> dict[str, Path]:
        """Keeps the images of an epoch in `training.npz`, epoch -> uint8 (B, C, H, W), and may draw them."""
        images = (self._images(self.followed).nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        frames = self._frames() | {epoch: images}
        stride = 1
        while sum(epoch % stride == 0 for epoch in frames) > MAX_FRAMES:
            stride *= 2
        self.kept = {e: frame for e, frame in frames.items() if e % stride == 0 or e == epoch}
        named: dict[str, Any] = {str(e): frame for e, frame in self.kept.items()}
        with durable_open(self.folder / "training.npz") as file:
            np.savez(file, **named)
        return self.draw_progress(epoch) if is_drawn else {}

    def draw_latents(self, when: str, suffix: str = "") -> dict[str, Path]:
        """Draws the posterior means of validation images in the plane, coloured by the first factor; of an encoder."""
        if self.vae.encoder is None:
            return {}
        x, labels = self.datamodule.examples(SPLIT, NUM_CODES)
        factor, name = (labels[:, 0], self.datamodule.factors[0]) if labels.shape[1] else (None, "")
        title, class_names = f"posterior means at {when}", getattr(self.datamodule, "class_names", ())
        picture = pictures.scatter(self._encode(x, labels), factor, name, title, class_names)
        return self._save({"latents": picture}, suffix)

    def draw_walks(self, when: str) -> dict[str, Path]:
        """Draws traversals, interpolations and, with two latents, the manifold; of a book, the use of its codes.

        A conditional model traverses under the label of the first image, and interpolates each half with the label of
        its end, so that both ends are reconstructions. Without the standard normal prior, mean, deviation and quantiles
        of the validation images' codes take its place. Without an encoder, latents from the prior take the place of
        these codes.
        """
        if self.vae.encoder is None:
            codes = fixed_latents(self.vae, NUM_CODES).flatten(1)
            y = fixed_labels(self.vae, self.datamodule, NUM_CODES)
            x = self._generate(codes[: 2 * MAX_PAIRS], None if y is None else y[: 2 * MAX_PAIRS])
        else:
            x, y = self.datamodule.examples(SPLIT, NUM_CODES)
            codes = self._encode(x, y)
        has_codes, first = hasattr(self.vae.posterior, "num_codes"), None if y is None else y[:1]
        if has_codes:
            drawn = {"codebook": self._codebook(x, when, y)}
        else:
            drawn = {"traversals": self._traversals(codes, when, first)}
        if len(x) > 1:
            drawn["interpolation"] = self._interpolation(x, codes, when, y)
        if codes.shape[1] == 2 and not has_codes:
            drawn["manifold"] = self._manifold(codes, when, first)
        return self._save(drawn)

    def draw_labels(self, when: str) -> dict[str, Path]:
        """Draws the same latents under every label of the first factor, one row each: draws from the prior, or codes.

        Where there are more factors, a column has those of a validation image.
        """
        x, y = self.datamodule.examples(SPLIT, NUM_COLUMNS)
        has_prior = self.vae.prior is not None
        z = fixed_latents(self.vae, len(x)).flatten(1) if has_prior else self._encode(x, y)
        num_rows = min(self.vae.num_classes[0], MAX_LABELS)
        labels = y.repeat(num_rows, 1)
        labels[:, 0] = torch.arange(num_rows).repeat_interleave(len(x))
        grid = pictures.grid(self._generate(z.repeat(num_rows, 1), labels), len(x))
        title = f"labels at {when}: each column is one {'draw from the prior' if has_prior else 'code'}"
        name, class_names = self.datamodule.factors[0], getattr(self.datamodule, "class_names", ())
        rows = list(class_names[:num_rows]) or [f"{name} {label}" for label in range(num_rows)]
        return self._save({"labels": pictures.annotate(grid, title, rows)})

    def draw_layers(self, when: str) -> dict[str, Path]:
        """Draws what the top layer of latents knows: its code of an image, with draws of the layer below."""
        x, y = self.datamodule.examples(SPLIT, MAX_PAIRS)
        codes, num = self._encode(x, y), NUM_COLUMNS - 2
        top = codes[:, : self.vae.prior.top_dim].repeat_interleave(num, 0)
        z = self._look(lambda top: self.vae.prior.sample_below(top, torch.Generator().manual_seed(SEED)), top)
        drawn = self._generate(z, y.repeat_interleave(num, 0)).unflatten(0, (len(x), num))
        rows = torch.cat([x[:, None], self._generate(codes, y)[:, None], drawn], 1)
        title = f"layers at {when}: the lower drawn given the image's upper"
        columns = ["original", "both", *map(str, range(1, num + 1))]
        return self._save(
            {"layers": pictures.annotate(pictures.grid(rows.flatten(0, 1), len(columns)), title, (), columns)}
        )

    def draw_training(self) -> dict[str, Path]:
        """Draws a GIF of the followed epochs, and the first of them beside the last."""
        frames = sorted(self._frames().items())
        if len(frames) < 2:
            return {}

        def draw(epoch: int, frame: np.ndarray) -> np.ndarray:
            return self._progress(self.followed, torch.from_numpy(frame) / 255, epoch)

        path = self.folder / "training.gif"
        pictures.write_gif(path, (draw(*frame) for frame in frames))  # which are many: one at a time
        ends = [draw(*frames[0]), draw(*frames[-1])]
        return self._save({f"{self.followed}_first_last": pictures.beside(ends)}) | {"training": path}

    def _images(self, kind: str) -> Tensor:
        if kind == "samples":
            labels = fixed_labels(self.vae, self.datamodule, self.num_images)
            return self._look(self.vae.generate, fixed_latents(self.vae, self.num_images), labels)
        return self._look(self.vae.reconstruct, *self.datamodule.examples(SPLIT, self.num_images))

    def _progress(self, kind: str, images: Tensor, epoch: int) -> np.ndarray:
        title = f"{kind} at epoch {epoch}"
        if kind == "samples":
            return pictures.annotate(pictures.grid(images, math.ceil(math.sqrt(len(images)))), title)
        return pictures.reconstructions(self.datamodule.examples(SPLIT, len(images))[0], images, title)

    def _frames(self) -> dict[int, np.ndarray]:
        path = self.folder / "training.npz"
        if self.kept is None and path.is_file():
            with np.load(path) as frames:
                self.kept = {int(epoch): frame for epoch, frame in frames.items()}
        return self.kept or {}

    def _traversals(self, codes: Tensor, when: str, y: Tensor | None = None) -> np.ndarray:
        variances = codes.var(0, correction=0)
        dims = variances.argsort(descending=True)[:MAX_ROWS]
        deviations = torch.linspace(-3, 3, 13)
        z = codes[0].repeat(len(dims), len(deviations), 1)
        for row, dim in zip(z, dims, strict=True):
            mean, scale = (0, 1) if self.is_standard else (codes[:, dim].mean(), variances[dim].sqrt())
            row[:, dim] = mean + scale * deviations
        grid = pictures.grid(self._generate(z.flatten(0, 1), y), len(deviations))
        title = f"traversals at {when}: one latent at -3 ... 3 sd, the others of the first image"
        rows = [f"z{dim} (var {variances[dim]:.2f})" for dim in dims]
        return pictures.annotate(grid, title, rows, [f"{deviation:.1f}" for deviation in deviations])

    def _codebook(self, x: Tensor, when: str, y: Tensor | None = None) -> np.ndarray:
        indices = self._look(lambda *chunk: self.vae.encode(*chunk).indices.flatten(1), x, y).long()
        posterior: Any = self.vae.posterior
        counts = torch.bincount(indices.flatten(), minlength=posterior.num_codes)
        return pictures.codebook(counts, f"use of the codes at {when}")

    def _interpolation(self, x: Tensor, codes: Tensor, when: str, y: Tensor | None = None) -> np.ndarray:
        num_pairs = min(MAX_PAIRS, len(x) // 2)
        start, end = slice(0, 2 * num_pairs, 2), slice(1, 2 * num_pairs, 2)
        weights = torch.linspace(0, 1, 11)
        z = torch.lerp(codes[start, None], codes[end, None], weights[:, None])
        labels = None if y is None else torch.where(weights[:, None] <= 0.5, y[start, None], y[end, None]).flatten(0, 1)
        images = self._generate(z.flatten(0, 1), labels).unflatten(0, z.shape[:2])
        rows = torch.cat([x[start, None], images, x[end, None]], 1)
        end_label, of = ("original", "real images") if self.vae.encoder is not None else ("sample", "samples")
        columns = [end_label, *(f"{weight:.1f}" for weight in weights), end_label]
        title = f"interpolation between the latents of {of} at {when}"
        title += ", each half with the label of its end" if self.vae.num_classes else ""
        return pictures.annotate(pictures.grid(rows.flatten(0, 1), len(columns)), title, columns=columns)

    def _manifold(self, codes: Tensor, when: str, y: Tensor | None = None) -> np.ndarray:
        probabilities = torch.linspace(0.05, 0.95, MANIFOLD_SIDE)
        if self.is_standard:
            z0 = z1 = torch.special.ndtri(probabilities.double()).float()
        else:
            z0, z1 = codes.quantile(probabilities, 0).T
        z = torch.cartesian_prod(z1.flip(0), z0).flip(1)  # z1 grows upwards, as in the scatter
        grid = pictures.grid(self._generate(z, y), MANIFOLD_SIDE)
        source = "prior" if self.is_standard else "latents"
        title = f"manifold at {when}: 5 to 95 % quantiles of the {source}, z0 to the right, z1 upwards"
        return pictures.annotate(grid, title, [f"{v:.2f}" for v in z1.flip(0)], [f"{v:.2f}" for v in z0])

    def _encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Codes (B, D) of images and their labels (B, F); a grid of latents is one long row."""
        return self._look(lambda *chunk: self.vae.encode(*chunk).mean.flatten(1), x, y)

    def _generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Images of the latents nearest to any (B, D) that the model can have; labels are (B, F), or (1, F) for all."""

        def generate(z: Tensor, *y: Tensor) -> Tensor:
            return self.vae.generate(self.vae.project(z), *y)

        return self._look(generate, z.unflatten(1, self.vae.latent_shape), None if y is None else y.expand(len(z), -1))

    def _look(self, function: Callable[..., Tensor], inputs: Tensor, y: Tensor | None = None) -> Tensor:
        """Applies a method of the model to (B, ...) in evaluation mode, to float32 (B, ...) on the CPU.

        Only a conditional model gets the labels (B, F).
        """
        like = next(self.vae.parameters())
        given = [inputs.to(like.dtype)] if y is None or not self.vae.num_classes else [inputs.to(like.dtype), y]
        with at_rest(self.vae), self.precision():
            chunks = zip(*(part.split(CHUNK) for part in given), strict=True)
            outputs = [function(*(part.to(like.device) for part in chunk)) for chunk in chunks]
        return torch.cat(outputs).float().cpu()

    def _save(self, drawn: dict[str, np.ndarray], suffix: str = "") -> dict[str, Path]:
        paths = {kind: self.folder / f"{kind}{suffix}.png" for kind in drawn}
        for kind, picture in drawn.items():
            pictures.write_png(paths[kind], picture)
        return paths


class Gallery(pl.Callback):
    """Draws pictures into the run folder and hands them to the trackers.

    Args:
        num_images: originals, and samples, in a picture, >= 1.
        every_n_epochs: how often reconstructions or samples are followed for the GIF, >= 1. They become files after 0,
            1, 2, 4, 8, ... of these periods; every kind is drawn at the end.
        scatter_every_n_steps: period of the latent scatter early in training, >= 1, or None for none.
        scatter_until_step: last step of the early latent scatters, >= 0.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self, num_images: int, every_n_epochs: int, scatter_every_n_steps: int | None, scatter_until_step: int
    ):
        for name, value, least in (
            ("num_images", num_images, 1),
            ("every_n_epochs", every_n_epochs, 1),
            ("scatter_every_n_steps", 1 if scatter_every_n_steps is None else scatter_every_n_steps, 1),
            ("scatter_until_step", scatter_until_step, 0),
        ):
            if value < least:
                raise ValueError(f"callbacks.gallery.{name} must be >= {least}, got {value}")
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.scatter_every_n_steps = scatter_every_n_steps
        self.scatter_until_step = scatter_until_step
        self.last_scatter_step = -1
        self.painter: Painter | None = None

    def on_train_start(self, trainer: pl.Trainer, lit: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            self._draw(trainer, lit, Painter.follow, 0, True)
            self._draw_early_latents(trainer, lit)

    def on_train_batch_end(self, trainer: pl.Trainer, lit: pl.LightningModule, *_) -> None:
        self._draw_early_latents(trainer, lit)

    def steps_to_look(self, step: int) -> float:
        """Optimizer steps from this one to the next that the gallery looks at; infinite if there is none."""
        period = self.scatter_every_n_steps
        return math.inf if period is None or step >= self.scatter_until_step else period - step % period

    def on_train_epoch_end(self, trainer: pl.Trainer, lit: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        periods, rest = divmod(epoch, self.every_n_epochs)
        if rest == 0:
            self._draw(trainer, lit, Painter.follow, epoch, periods & (periods - 1) == 0)  # drawn at powers of two

    def on_run_end(self, trainer: pl.Trainer, lit: pl.LightningModule) -> None:
        """Draw every kind, when training and its last validation are over; see `vae_lab.training.train.fit`."""
        self._draw(trainer, lit, Painter.follow, lit.epochs_begun, False)
        self._draw(trainer, lit, Painter.draw_all, lit.epochs_begun)

    def _draw_early_latents(self, trainer: pl.Trainer, lit: pl.LightningModule) -> None:
        step, period = trainer.global_step, self.scatter_every_n_steps
        is_due = period is not None and step <= self.scatter_until_step and step % period == 0
        if is_due and step != self.last_scatter_step:  # it stands still while gradients accumulate
            self.last_scatter_step = step
            self._draw(trainer, lit, Painter.draw_latents, f"step {step}", f"/step_{step:06d}")

    def _draw(self, trainer: pl.Trainer, lit: pl.LightningModule, draw: Callable, *arguments) -> None:
        if not trainer.is_global_zero:
            return
        if self.painter is None:
            run_dir, precision = Path(trainer.default_root_dir), trainer.precision_plugin.forward_context
            self.painter = Painter(lit.vae, trainer.datamodule, run_dir, self.num_images, precision)
        for kind, path in draw(self.painter, *arguments).items():
            for logger in trainer.loggers:
                if hasattr(logger, "log_picture"):
                    logger.log_picture(f"pictures/{kind}", path, trainer.global_step)
