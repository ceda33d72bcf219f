"""The evidence lower bound. What an objective is, is in `vae_lab.objectives`.

Shapes: S samples of z, B batch, D latents.
"""

from typing import Any

from torch import Tensor, nn

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context


class ELBO(nn.Module):
    """The evidence lower bound with a weight on the KL, from one sample of z for each image.

    loss = reconstruction + kld_weight * min(1, step / warmup_steps) * sum_j max(free_bits, mean_B kl_j)

    Sources: Kingma and Welling 2014, eq. 3 (the bound); Higgins et al. 2017, eq. 4 (the weight);
    Bowman et al. 2016, section 3.1 (KL annealing); Kingma et al. 2016, "Improving variational inference with inverse
    autoregressive flow", appendix on free bits (here each latent is a group of its own).

    Args:
        kld_weight: weight of the KL, >= 0; 1 is the bound itself.
        warmup_steps: optimizer steps over which the weight rises linearly from 0, >= 0.
        free_bits: nats each latent may use without cost, >= 0; where the KL has no closed form, nats for all of them.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder",)

    def __init__(self, kld_weight: float, warmup_steps: int, free_bits: float):
        super().__init__()
        for key, value in (("KLD_weight", kld_weight), ("warmup_steps", warmup_steps), ("free_bits", free_bits)):
            if not 0 <= value < float("inf"):  # NaN fails too
                raise ValueError(f"loss.{key} must be >= 0 and finite, got {value}")
        self.kld_weight = kld_weight
        self.warmup_steps = warmup_steps
        self.free_bits = free_bits

    def weight(self, context: Context) -> float:
        """The weight of the KL: rising while it is trained with, the final one in evaluation."""
        if context.stage != "train" or context.step >= self.warmup_steps:
            return self.kld_weight
        return self.kld_weight * context.step / self.warmup_steps

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """Evaluate the objective on a batch.

        Args:
            vae: the model.
            batch: images and labels.
            context: the step, and whether it is for training.

        Returns:
            `loss` and `reconstruction`, and of a model with a prior `kl` and `elbo`, because a plain autoencoder has
            neither a finite KL nor a bound on log p(x); the posterior's own terms and diagnostics.
        """
        q = vae.encode(batch.x, batch.y)
        z = q.rsample(1)
        return self.terms(vae, batch, context, q, z, vae.decode(z, batch.y))

    def terms(self, vae: VAE, batch: Any, context: Context, q: Any, z: Tensor, params: Tensor) -> dict[str, Tensor]:
        """What `forward` returns, of samples z (1, B, D) of q that are decoded to params (1, B, P*C, H, W) already."""
        reconstruction = -vae.likelihood.log_prob(batch.x, params).mean()
        loss = sum(q.terms.values(), reconstruction)
        if vae.prior is None:
            return {"loss": loss, "reconstruction": reconstruction, **q.terms, **q.diagnostics()}
        kl_of_each = kl_per_latent(q, z, vae.prior)
        kl = kl_of_each.sum()
        paid = kl_of_each.clamp(min=self.free_bits).sum() if self.free_bits else kl
        return {
            "loss": loss + self.weight(context) * paid,
            "elbo": -(reconstruction + kl),
            "reconstruction": reconstruction,
            "kl": kl,
            **q.terms,
            **q.diagnostics(),
        }


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
