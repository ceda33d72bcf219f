"""The evidence lower bound. What an objective is, is in `vae_lab.objectives`.

Shapes: S samples of z, B batch, D latents.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context

CYCLES, RISE = 4, 0.5  # of a cyclic warm-up


class ELBO(nn.Module):
    """The evidence lower bound with a weight on the KL, from one sample of z for each image.

    loss = reconstruction + kld_weight * w(step) * sum_j max(free_bits, mean_B kl_j)

    w is min(1, step / warmup_steps) with a linear warm-up. A cyclic one repeats that at the beginning of each of its
    cycles of warmup_steps / rise steps, and stays at 1 after the last. So in training; in evaluation w is 1 and there
    are no free bits, whose bound on the mean of a batch would make the loss depend on the batch size.

    Sources: Kingma and Welling 2014, eq. 3 (the bound); Higgins et al. 2017, eq. 4 (the weight);
    Bowman et al. 2016, "Generating sentences from a continuous space" (KL annealing); Fu et al. 2019, "Cyclical
    annealing schedule" (cycles); Kingma et al. 2016, "Improving variational inference with inverse autoregressive
    flow", appendix C.8 (free bits; here each latent is a group of its own).

    Args:
        kld_weight: weight of the KL, >= 0; 1 is the bound itself.
        warmup_steps: optimizer steps over which the weight rises linearly from 0, >= 0.
        free_bits: nats each latent may use without cost, >= 0; where the KL has no closed form, nats for all of them.
        warmup: `linear`, or `cyclic` for a weight that rises more than once.
        cycles: of a cyclic warm-up, >= 1; one is linear.
        rise: the part of each cycle over which the weight rises, in (0, 1].
        perceptual: a further term of the loss, from images and reconstructions; see `vae_lab.objectives.perceptual`.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder",)

    def __init__(
        self,
        kld_weight: float,
        warmup_steps: int,
        free_bits: float,
        warmup: Literal["linear", "cyclic"] = "linear",
        cycles: int = CYCLES,
        rise: float = RISE,
        perceptual: nn.Module | None = None,
    ):
        super().__init__()
        for key, value in (("KLD_weight", kld_weight), ("warmup_steps", warmup_steps), ("free_bits", free_bits)):
            check_weight(f"loss.{key}", value)
        if warmup == "cyclic" and warmup_steps == 0:
            raise ValueError("loss.warmup_steps must be >= 1 with objective.warmup=cyclic, got 0")
        if warmup == "linear" and (cycles, rise) != (CYCLES, RISE):
            raise ValueError(
                f"objective.cycles={cycles} and objective.rise={rise} have no effect without objective.warmup=cyclic; "
                f"leave {CYCLES} and {RISE}"
            )
        check_count("objective.cycles", cycles)
        if not 0 < rise <= 1:
            raise ValueError(f"objective.rise must be in (0, 1], got {rise}")
        self.kld_weight = kld_weight
        self.warmup_steps = warmup_steps
        self.free_bits = free_bits
        self.cycles = cycles if warmup == "cyclic" else 1
        self.rise = rise
        if perceptual is not None and not callable(perceptual):
            raise ValueError(f"objective.perceptual must be a class with its settings, or null, got {perceptual!r}")
        self.perceptual = perceptual

    @property
    def varies_until(self) -> int:
        """The step from which on the loss depends on it no more."""
        return (self.cycles - 1) * math.ceil(self.warmup_steps / self.rise) + self.warmup_steps

    def weight(self, context: Context) -> float:
        """The weight of the KL: rising while it is trained with, the final one in evaluation."""
        if context.stage != "train" or not self.warmup_steps:
            return self.kld_weight
        cycle, step = divmod(context.step, math.ceil(self.warmup_steps / self.rise))
        if cycle >= self.cycles or step >= self.warmup_steps:
            return self.kld_weight
        return self.kld_weight * step / self.warmup_steps

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """Evaluate the objective on a batch.

        Args:
            vae: the model.
            batch: images and labels.
            context: the step, and whether it is for training.

        Returns:
            `loss` and `reconstruction`, `feature_distance` if there is one, and of a model with a prior `kl` and
            `elbo`, because a plain autoencoder has neither a finite KL nor a bound on log p(x); the posterior's own
            terms and diagnostics.
        """
        q = vae.encode(batch.x, batch.y)
        z = q.rsample(1)
        params = vae.decode(z.squeeze(0), batch.y)
        terms = self.terms(vae, context, q, z, -vae.likelihood.log_prob(batch.x, params).mean())
        if self.perceptual is None:
            return terms
        distance = self.perceptual(batch.x, vae.likelihood.mean(params))
        return {**terms, "loss": terms["loss"] + distance, "feature_distance": distance}

    def terms(self, vae: VAE, context: Context, q: Any, z: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """What `forward` returns, of what `infer` did; for objectives that add a term of their own."""
        if vae.prior is None:
            return report(reconstruction, reconstruction, None, q)
        kl_of_each = kl_per_latent(q, z, vae.prior)
        kl = kl_of_each.sum()
        has_floor = self.free_bits and context.stage == "train"
        paid = kl_of_each.clamp(min=self.free_bits).sum() if has_floor else kl
        weight = self.weight(context)
        return report(reconstruction + (paid if weight == 1 else weight * paid), reconstruction, kl, q)


def infer(vae: VAE, batch: Any) -> tuple[Any, Tensor, Tensor]:
    """Encode a batch, and decode one sample of z for each image.

    Returns:
        q(z given x); z, (1, B, D); -E log p(x given z) in nats per image, 0-dim.
    """
    q = vae.encode(batch.x, batch.y)
    z = q.rsample(1)
    return q, z, -vae.likelihood.log_prob(batch.x, vae.decode(z.squeeze(0), batch.y)).mean()


def report(loss: Tensor, reconstruction: Tensor, kl: Tensor | None, q: Any, **further: Tensor) -> dict[str, Tensor]:
    """What an objective returns: the terms of the bound under their names, and all that is logged beside them.

    `elbo` and the diagnostics of q carry no gradient.

    Args:
        loss: what is minimised, but for the posterior's own terms, which are added here.
        reconstruction: -E log p(x given z), nats per image.
        kl: KL(q(z given x), p(z)), nats per image; None where there is none, and no bound either.
        q: from `vae.encode`.
        **further: terms of the objective's own.
    """
    with torch.no_grad():
        bound = {} if kl is None else {"elbo": -(reconstruction + kl)}
        diagnostics = q.diagnostics()
    terms = {"loss": sum(q.terms.values(), loss), **bound, "reconstruction": reconstruction}
    return terms | ({} if kl is None else {"kl": kl}) | further | q.terms | diagnostics


def check_weight(key: str, value: float) -> None:
    """Refuse a weight that is negative, infinite or NaN, naming its key."""
    if not 0 <= value < float("inf"):  # NaN fails too
        raise ValueError(f"{key} must be >= 0 and finite, got {value}")


def check_count(key: str, value: int) -> None:
    """Refuse a number of things that is not at least one, naming its key."""
    if value < 1:
        raise ValueError(f"{key} must be >= 1, got {value}")


def kl_per_latent(q: Any, z: Tensor, prior: Any) -> Tensor:
    """KL(q(z given x), p(z)) in nats, averaged over the batch.

    Args:
        q: from `vae.encode`.
        z: samples of it, (S, B, D).
        prior: p(z).

    Returns:
        (D,) where there is a closed form, else (1,): the unbiased estimate log q(z given x) - log p(z) for all latents.
    """
    exact = q.kl(prior)
    if exact is not None:
        return exact.mean(0)
    return (q.log_prob(z) - prior.log_prob(z)).mean().unsqueeze(0)
