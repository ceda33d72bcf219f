"""A trained run at hand: its model for arrays and tensors of any size, its images, and what it measured.

Shapes: N images or latents, C channels, H height, W width, F label columns; `latent_shape` is (D,) or (D, h, w).
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from vae_lab.data.batches import ImageData
from vae_lab.evaluation.gallery import CHUNK, at_rest
from vae_lab.evaluation.samplers import NAMES, draw_latents
from vae_lab.models.vae import VAE
from vae_lab.runs.files import read_json
from vae_lab.runs.metrics_file import as_frame, read_events
from vae_lab.runs.states import state_of
from vae_lab.runs.trained import CONFIG, Stored, build_stored, is_export, read_content, read_stored
from vae_lab.training.build import build_data
from vae_lab.training.module import check_same_images


class Run:
    """A run folder, or an export, of which everything is read when it is first asked for.

    `encode`, `decode`, `reconstruct` and `sample` compute in evaluation mode, without gradients, a few hundred images
    at a time, on the device of the model. An array of NumPy gives an array, a tensor gives a tensor on its own device.

    Args:
        folder: of the run.
        checkpoint: `best`, `last`, or one that was kept, as `epoch_0010`; an export holds only one of them.
        trainable: whether the model is in training mode and its parameters take gradients.
    """

    def __init__(self, folder: str | Path, checkpoint: str = "best", trainable: bool = False):
        self.folder, self.checkpoint, self.trainable = Path(folder), checkpoint, trainable

    def __repr__(self) -> str:
        result = self.result
        values = (f"{key}={result[key]:.4g}" for key in ("val/elbo", "val/mse") if isinstance(result.get(key), float))
        state = "export" if is_export(self.folder) else state_of(self.folder, read_json(self.folder / "status.json"))[0]
        return f"Run({', '.join([repr(str(self.folder)), state, *values])})"

    @cached_property
    def stored(self) -> Stored:
        """What the folder holds of the model.

        Raises:
            RunError: if the folder or the checkpoint is missing or damaged.
            ValueError: if the config names a class that is not trusted.
        """
        return read_stored(self.folder, self.checkpoint)

    @property
    def cfg(self) -> DictConfig:
        """The config; `vae` and `data` are built from it when they are first asked for, with a `data_root` set here."""
        return self.stored.cfg

    @cached_property
    def vae(self) -> VAE:
        """The model, on the CPU; see `to`."""
        vae = build_stored(self.stored)
        self.stored = self.stored._replace(weights={})  # which are the model's now
        return vae.train().requires_grad_() if self.trainable else vae

    @cached_property
    def data(self) -> ImageData:
        """The images that it was trained on.

        `data.to_pixels(data.splits["test"][:64])` is what the model sees of some.

        Raises:
            DataError: if they are missing, or others.
        """
        data = build_data(self.cfg)
        data.setup("run")
        check_same_images(data, self.stored.images)
        return data

    @property
    def result(self) -> dict[str, Any]:
        """The final values, `result.json`; of an export those that it was given."""
        is_shared = is_export(self.folder)
        return read_content(self.folder / CONFIG)["metrics"] if is_shared else read_json(self.folder / "result.json")

    @property
    def metrics(self) -> Any:
        """What was logged, a row for each step, as a pandas frame by step, or dicts where there is no pandas."""
        rows: dict[int, dict] = {}
        for event in read_events(self.folder / "metrics.jsonl"):
            rows.setdefault(int(event["step"] or 0), {}).update(event)
        return as_frame([rows[step] for step in sorted(rows)], "step")

    def picture(self, kind: str) -> Image.Image:
        """The latest picture of a kind that the run drew, such as `reconstructions`, `traversals`, `latents`, `curves`.

        Raises:
            ValueError: if there is none of that kind.
        """
        folder = self.folder / "pictures"
        drawn = {path.parent.name: path for path in sorted(folder.glob("*/*.png"))}  # the last of each
        drawn |= {path.stem: path for path in folder.glob("*.png")}
        if kind not in drawn:
            raise ValueError(f"there is no picture {kind} in {folder}, only {', '.join(sorted(drawn)) or 'none'}")
        with Image.open(drawn[kind]) as picture:
            return picture.convert("RGB")

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device."""
        self.vae.to(device)
        return self

    def encode(self, x: Any, y: Any = None) -> Any:
        """E[z given x], the codes: images -> (N, *latent_shape).

        Args:
            x: (N, C, H, W), floats in [0, 1] or bytes.
            y: labels (N, F) or (N,), or one for all, of a conditional model.

        Raises:
            ValueError: if the images are not of that shape or range, or the model has no encoder.
        """
        return self._in_chunks(lambda x, y: self.vae.encode(x, y).mean, x, y, self.vae.image_shape, "images")

    def decode(self, z: Any, y: Any = None) -> Any:
        """E[x given z]: latents (N, *latent_shape) -> images (N, C, H, W), in [0, 1] if the likelihood's mean is.

        Args:
            z: (N, *latent_shape).
            y: labels, as in `encode`.

        Raises:
            ValueError: if the latents are not of that shape.
        """
        return self._in_chunks(self.vae.generate, z, y, self.vae.latent_shape, "latents")

    def reconstruct(self, x: Any, y: Any = None) -> Any:
        """E[x given z] at the code of each image: (N, C, H, W) -> (N, C, H, W); arguments as in `encode`."""
        return self._in_chunks(self.vae.reconstruct, x, y, self.vae.image_shape, "images")

    def sample(
        self, n: int, y: Any = None, seed: int | None = None, sampler: str = "prior", sampler_steps: int = 3000
    ) -> Tensor:
        """E[x given z] for n latents from the prior, or from a sampler that is fitted to the codes: (n, C, H, W).

        Args:
            n: how many, >= 0.
            y: labels, as in `encode`.
            seed: of the latents, the same for the same seed; None draws from torch's generator.
            sampler: `prior`, or `gaussian`, `mixture`, `flow`, `two_stage`, `autoregressive`, which are fitted once and
                kept in the run folder.
            sampler_steps: of the fit of `flow`, `two_stage` and `autoregressive`, >= 1.

        Raises:
            ValueError: if n is below 0, there is no such sampler, or the model lacks what it needs.
        """
        if n < 0:
            raise ValueError(f"the number of samples must be >= 0, got {n}")
        if sampler not in NAMES:
            raise ValueError(f"sampler must be one of {', '.join(NAMES)}, got {sampler!r}")
        if sampler == "prior" and self.vae.prior is None:
            raise ValueError(
                "samples need a prior, which this model does not have; fit a sampler with sampler='mixture'"
            )
        with at_rest(self.vae):
            if sampler == "prior":
                z = self.vae.prior.sample(n, None if seed is None else torch.Generator().manual_seed(seed))
            else:
                seed = int(torch.randint(2**62, ())) if seed is None else seed
                z = draw_latents(sampler, self.vae, self.data, self.folder, n, sampler_steps, seed)
        return self.decode(z.to(next(self.vae.parameters()).device), y)

    def _in_chunks(self, compute: Callable, given: Any, y: Any, shape: tuple[int, ...], what: str) -> Any:
        """Compute some hundred rows at a time, and give back what was given: an array, or a tensor on its device."""
        rows: Any = given if isinstance(given, Tensor) else np.asarray(given)
        if tuple(rows.shape[1:]) != shape or not rows.ndim:
            raise ValueError(f"{what} must have the shape (N, {', '.join(map(str, shape))}), got {tuple(rows.shape)}")
        like, labels = next(self.vae.parameters()), self._labels(y, len(rows))
        done: list[Tensor] = []
        with at_rest(self.vae):
            for start in range(0, max(len(rows), 1), CHUNK):
                part = rows[start : start + CHUNK]
                chunk = part.detach() if isinstance(part, Tensor) else torch.tensor(np.ascontiguousarray(part))
                x = chunk.to(like) / (255 if chunk.dtype == torch.uint8 else 1)
                if what == "images" and not ((x >= 0) & (x <= 1)).all():
                    raise ValueError(f"images must be bytes, or lie in [0, 1], got {x.min():.4g} to {x.max():.4g}")
                done.append(compute(x, None if labels is None else labels[start : start + CHUNK].to(like.device)))
        whole = torch.cat(done).float()
        return whole.to(rows.device) if isinstance(rows, Tensor) else whole.cpu().numpy()

    def _labels(self, y: Any, n: int) -> Tensor | None:
        """Labels (n, F) of a conditional model; others see none."""
        classes = self.vae.num_classes
        if y is None or not classes:
            return None
        labels = torch.as_tensor(y).long()
        labels = labels.reshape(-1, len(classes)) if labels.ndim < 2 else labels
        if labels.shape not in ((1, len(classes)), (n, len(classes))):
            raise ValueError(f"labels must have the shape ({n}, {len(classes)}), got {tuple(torch.as_tensor(y).shape)}")
        if ((labels < 0) | (labels >= torch.tensor(classes, device=labels.device))).any():
            raise ValueError(f"labels must be whole numbers >= 0 below {list(classes)}, got {labels.tolist()[:8]}")
        return labels.expand(n, -1)
