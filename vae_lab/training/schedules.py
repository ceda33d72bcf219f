"""Learning-rate schedules as pure functions of the optimizer step, so that a resumed run continues exactly.

A schedule is called with (step, total_steps) and returns the factor on `optimizer.lr`, in [0, 1].
"""

import math


def warmup(step: int, warmup_steps: int) -> float:
    """Rise linearly from 1 / warmup_steps at step 0 to 1."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def check_warmup(warmup_steps: int) -> None:
    """Refuse a negative warm-up.

    Raises:
        ValueError: naming the key and the value.
    """
    if not isinstance(warmup_steps, int) or warmup_steps < 0:
        raise ValueError(f"optimizer.schedule.warmup_steps must be a whole number >= 0, got {warmup_steps!r}")


class Cosine:
    """Half a cosine from 1 after the warm-up to `final_fraction` at `total_steps`.

    Source: Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", without restarts.

    Args:
        warmup_steps: >= 0.
        final_fraction: in [0, 1].
    """

    def __init__(self, warmup_steps: int, final_fraction: float):
        check_warmup(warmup_steps)
        if not 0 <= final_fraction <= 1:
            raise ValueError(f"optimizer.schedule.final_fraction must be in [0, 1], got {final_fraction}")
        self.warmup_steps = warmup_steps
        self.final_fraction = final_fraction

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor on the learning rate at an optimizer step.

        Raises:
            ValueError: if total_steps is not finite.
        """
        if step < self.warmup_steps:
            return warmup(step, self.warmup_steps)
        if math.isinf(total_steps):
            raise ValueError("optimizer/schedule=cosine needs an end: set trainer.max_epochs or trainer.max_steps")
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class Step:
    """A factor `gamma` every `step_size` optimizer steps after the warm-up.

    Args:
        warmup_steps: >= 0.
        step_size: >= 1.
        gamma: in (0, 1].
    """

    def __init__(self, warmup_steps: int, step_size: int, gamma: float):
        check_warmup(warmup_steps)
        if step_size < 1:
            raise ValueError(f"optimizer.schedule.step_size must be >= 1, got {step_size}")
        if not 0 < gamma <= 1:
            raise ValueError(f"optimizer.schedule.gamma must be in (0, 1], got {gamma}")
        self.warmup_steps = warmup_steps
        self.step_size = step_size
        self.gamma = gamma

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor on the learning rate at an optimizer step."""
        if step < self.warmup_steps:
            return warmup(step, self.warmup_steps)
        return self.gamma ** ((step - self.warmup_steps) // self.step_size)
