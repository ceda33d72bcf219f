"""Means over images, kept on their device so that a step never waits for it."""

from collections.abc import Callable

import torch
from torch import Tensor


class Means:
    """Running means of named tensors, each batch weighted by its number of images."""

    def __init__(self):
        self.keys: list[str] = []
        self.sums: Tensor | None = None  # (number of keys, ...)
        self.count = 0

    def add(self, values: dict[str, Tensor], num: int) -> None:
        """Add the means of a batch of `num` images; the keys and shapes are those of the first batch."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if self.sums is None:
            self.keys, self.sums = list(values), torch.zeros_like(stacked)
        self.sums = self.sums.to(stacked.device)  # a checkpoint is loaded on the CPU
        self.sums.add_(stacked, alpha=num)
        self.count += num

    def compute(self, sum_over_processes: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The means over everything added, on all processes; empty if nothing was."""
        if self.sums is None:
            return {}
        sums = sum_over_processes(self.sums)
        count = sum_over_processes(torch.tensor(float(self.count)))
        return dict(zip(self.keys, sums / count.to(sums.device), strict=True))

    def state_dict(self) -> dict:
        """Plain containers for a checkpoint."""
        return {"keys": self.keys, "sums": self.sums if self.sums is None else self.sums.clone(), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""
        self.keys, self.sums, self.count = state["keys"], state["sums"], state["count"]
