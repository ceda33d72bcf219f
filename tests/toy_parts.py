"""Parts as a user writes them, outside of the package: an adversarial objective, and a metric."""

import torch
from torch import nn
from torch.nn import functional as F

from vae_lab.objectives.elbo import ELBO


class AdversarialELBO(nn.Module):
    """The ELBO and a discriminator of images from the prior (Goodfellow et al. 2014, section 3, non-saturating)."""

    needs = ("encoder", "prior")
    judges = "images"

    def __init__(self, adversary: nn.Module, kld_weight: float):
        super().__init__()
        self.elbo = ELBO(kld_weight, 0, 0.0)
        self.adversary = adversary

    def forward(self, vae, batch, context):
        """The ELBO's terms, and how well the samples pass for images."""
        terms = self.elbo(vae, batch, context)
        generator_loss = F.softplus(-self.adversary(vae.sample(len(batch.x)))).mean()
        return {**terms, "loss": terms["loss"] + generator_loss, "generator_loss": generator_loss}

    def adversary_loss(self, vae, batch, context):
        """How badly images and samples are told apart."""
        with torch.no_grad():
            fake = vae.sample(len(batch.x))
        return {"discriminator_loss": (F.softplus(-self.adversary(batch.x)) + F.softplus(self.adversary(fake))).mean()}


class Brightness:
    """`brightness`: the mean pixel of what is reconstructed."""

    needs = ("encoder",)

    def reset(self):
        """Start anew."""
        self.sum, self.count = torch.zeros(()), torch.zeros(())

    def update(self, vae, batch, q, terms):
        """Add a batch."""
        self.sum += vae.generate(q.mean).mean() * len(batch.x)
        self.count += len(batch.x)

    def compute(self, total):
        """The mean over all images."""
        return {"brightness": total(self.sum) / total(self.count)}
