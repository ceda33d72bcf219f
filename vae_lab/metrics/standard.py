"""What every validation measures: the objective's terms, the error of reconstructions, latents and codes in use.

Shapes: B batch, C channels, H height, W width, D latents. A mean over images weights each batch by its number of
images, so it does not depend on how they were batched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_lab.models.quantizers import perplexity
from vae_lab.models.vae import VAE

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2: a unit is active if Var_x(E[z given x]) exceeds this


class Means:
    """Running means of named tensors over images, kept on their device so that an evaluation never waits for it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.keys: list[str] = []
        self.sums: Tensor | None = None  # (number of keys, ...)
        self.count = 0

    def add(self, values: dict[str, Tensor], num: int) -> None:
        """Add the means of a batch of `num` images; the keys and shapes are those of the first batch."""
        self.add_stacked(list(values), torch.stack([value.detach() for value in values.values()]), num)

    def add_stacked(self, keys: list[str], stacked: Tensor, num: int) -> None:
        """Add the means of a batch of `num` images as one tensor (number of keys, ...)."""
        if self.sums is None:
            self.keys, self.sums = keys, torch.zeros_like(stacked)
        self.sums = self.sums.to(stacked.device)  # a checkpoint is loaded on the CPU
        self.sums.add_(stacked, alpha=num)
        self.count += num

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The means over everything added, on all processes; empty if nothing was."""
        if self.sums is None:
            return {}
        sums = total(self.sums)
        count = total(torch.tensor(float(self.count)))
        return dict(zip(self.keys, sums / count.to(sums.device), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain containers for a checkpoint."""
        return {"keys": self.keys, "sums": self.sums if self.sums is None else self.sums.clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.keys, self.sums, self.count = state["keys"], state["sums"], state["count"]


class Terms:
    """The terms that the objective returns, `loss` among them."""

    def __init__(self) -> None:
        self.means = Means()
        self.reset, self.compute = self.means.reset, self.means.compute

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the terms of a batch."""
        self.means.add(terms, len(batch.x))


class MSE:
    """`mse`: the mean squared error per pixel of the reconstruction from the code; of a model with an encoder."""

    def __init__(self) -> None:
        self.means = Means()
        self.reset, self.compute = self.means.reset, self.means.compute

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the error of a batch."""
        if q is None:
            return
        error = (vae.generate(q.mean, batch.y) - batch.x).square().mean()
        self.means.add({"mse": error}, len(batch.x))


class ActiveUnits:
    """`active_units`: the number of latents with Var_x(E[z given x]) > 0.01; of an encoder and a prior.

    Source: Burda et al. 2016, section 5.2.
    """

    def __init__(self) -> None:
        self.codes = Means()
        self.reset = self.codes.reset

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Add the codes of a batch."""
        if q is not None and vae.prior is not None:
            code = q.mean.cpu().double()  # because a variance is the small difference of two sums
            self.codes.add({"mean": code.mean(0), "square": code.square().mean(0)}, len(batch.x))

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Count them over everything added, on all processes."""
        codes = self.codes.compute(total)
        if not codes:
            return {}
        variance = codes["square"] - codes["mean"].square()  # (D,)
        return {"active_units": (variance > ACTIVE_VARIANCE).sum()}


class CodebookUse:
    """`perplexity` of the codes over all places of all images, and `dead_codes`, those that no image has.

    Of a posterior with codes. A split with fewer places than codes bounds the first and raises the second.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew."""
        self.counts: Tensor | None = None  # (K,)

    def update(self, vae: VAE, batch: Any, q: Any, terms: dict[str, Tensor]) -> None:
        """Count the codes of a batch."""
        if hasattr(q, "indices"):
            counts = torch.bincount(q.indices.flatten(), minlength=q.num_codes)
            self.counts = counts if self.counts is None else self.counts + counts

    def compute(self, total: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Both over everything added, on all processes."""
        if self.counts is None:
            return {}
        counts = total(self.counts.double())
        return {"perplexity": perplexity(counts), "dead_codes": (counts == 0).sum()}
