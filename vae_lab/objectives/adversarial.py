"""Objectives with an adversary: a discriminator of images or of codes. What an objective is, is in `vae_lab.objectives`.

A discriminator D puts out the log-odds that its input is real. Both players minimise cross-entropies in nats:
the discriminator -log D(real) - log(1 - D(fake)), which is 2 log 2 where it cannot tell, and its opponent, the
non-saturating -log D(fake) (Goodfellow et al. 2014, section 3).

Shapes: B batch, C channels, H height, W width, D latents.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context


def standardized(x: Tensor, real: Tensor) -> Tensor:
    """Images x (B, C, H, W) by the mean and the deviation of the real pixels of the batch.

    On raw pixels, whose mean and scale differ from those of a young generator, a discriminator wins at once.
    """
    return (x - real.mean()) / real.std(correction=0).clamp(min=1e-3)


def fools(logits: Tensor) -> Tensor:
    """-E log D, what the opponent of a discriminator minimises."""
    return F.softplus(-logits).mean()


def judged(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """The loss of a discriminator, from its logits, and the mean probability that it gives to either to be real.

    Source: Goodfellow et al. 2014, eq. 1 and algorithm 1.
    """
    return {
        "discriminator_loss": F.softplus(-real).mean() + F.softplus(fake).mean(),
        "score_real": real.sigmoid().mean(),
        "score_generated": fake.sigmoid().mean(),
    }


class GAN(nn.Module):
    """A generator and a discriminator, nothing else: loss = -E log D(G(z)), z from the prior.

    Source: Goodfellow et al. 2014, section 3, with the non-saturating loss of the generator.

    Args:
        adversary: the discriminator, images (B, C, H, W) -> (B, 1).
    """

    needs = ("prior",)
    judges = "images"
    lower_is_better = False

    def __init__(self, adversary: nn.Module):
        super().__init__()
        self.adversary = adversary

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly the samples pass for images: `loss` and `generator_loss`, the same."""
        fake = vae.sample(len(batch.x), batch.y)
        generator_loss = fools(self.adversary(standardized(fake, batch.x)))
        return {"loss": generator_loss, "generator_loss": generator_loss}

    def adversary_loss(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly images and samples are told apart; see `judged`."""
        with torch.no_grad():
            fake = vae.sample(len(batch.x), batch.y)
        real, fake = (self.adversary(standardized(x, batch.x)) for x in (batch.x, fake))
        return judged(real, fake)
