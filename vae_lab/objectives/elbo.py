"""Training objectives: how reconstruction and KL become the number that is minimised.

An objective is called with (vae, x, step) and returns a flat dict of 0-dim tensors whose keys are the log keys, each
in nats per image, averaged over the batch once, here.

Shapes: B batch, D latent_dim.
"""

from torch import Tensor

from vae_lab.models.vae import VAE


class ELBO:
    """The evidence lower bound with a weight on the KL.

    loss = reconstruction + kld_weight * min(1, step / warmup_steps) * sum_j max(free_bits, mean_B kl_j)

    Sources: Kingma and Welling 2014, eq. 3 (the bound); Higgins et al. 2017, eq. 4 (the weight);
    Bowman et al. 2016, section 3.1 (KL annealing); Kingma et al. 2016, "Improving variational inference with inverse
    autoregressive flow", appendix on free bits (here each latent is a group of its own).

    Args:
        kld_weight: weight of the KL, >= 0; 1 is the bound itself.
        warmup_steps: optimizer steps over which the weight rises linearly from 0, >= 0.
        free_bits: nats each latent may use without cost, >= 0.
    """

    def __init__(self, kld_weight: float, warmup_steps: int, free_bits: float):
        for key, value in (("KLD_weight", kld_weight), ("warmup_steps", warmup_steps), ("free_bits", free_bits)):
            if not 0 <= value < float("inf"):  # NaN fails too
                raise ValueError(f"loss.{key} must be >= 0 and finite, got {value}")
        self.kld_weight = kld_weight
        self.warmup_steps = warmup_steps
        self.free_bits = free_bits

    def weight(self, step: int | None) -> float:
        """The weight of the KL at an optimizer step; `None` asks for the final one, which evaluation uses.

        Evaluation never sees the warm-up: a loss with a small weight would look better than a later, better one.
        """
        if step is None or step >= self.warmup_steps:
            return self.kld_weight
        return self.kld_weight * step / self.warmup_steps

    def __call__(self, vae: VAE, x: Tensor, step: int | None) -> dict[str, Tensor]:
        """Evaluate the objective on a batch with one sample of z for each image.

        Args:
            vae: the model.
            x: (B, C, H, W), in [0, 1].
            step: optimizer steps taken so far, or None for evaluation.

        Returns:
            `loss` and `reconstruction`, and with a stochastic posterior `kl` and `elbo`, because a plain autoencoder
            has neither a finite KL nor a bound on log p(x), and `clamped`, latents per image on the bound of log_var.
        """
        posterior = vae.encode(x)
        params = vae.decode(posterior.rsample())
        reconstruction = -vae.likelihood.log_prob(x, params).mean()
        if not vae.posterior.is_stochastic:
            return {"loss": reconstruction, "reconstruction": reconstruction}
        kl_per_latent = posterior.kl().mean(0)  # (D,)
        kl = kl_per_latent.sum()
        paid = kl_per_latent.clamp(min=self.free_bits).sum() if self.free_bits else kl
        return {
            "loss": reconstruction + self.weight(step) * paid,
            "elbo": -(reconstruction + kl),
            "reconstruction": reconstruction,
            "kl": kl,
            "clamped": posterior.clamped().mean(),
        }
