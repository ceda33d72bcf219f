"""Objectives with an adversary: a discriminator of images or of codes.

A discriminator D puts out the log-odds that its input is real. Both players minimise cross-entropies in nats:
the discriminator -log D(real) - log(1 - D(fake)), which is 2 log 2 where it cannot tell, and its opponent, the
non-saturating -log D(fake) (Goodfellow et al. 2014, section 3).

Shapes: B batch, C channels, H height, W width, D latents.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lab.models.vae import VAE, run
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import ELBO, check_weight, infer, kl_per_latent, report


def standardized(x: Tensor, real: Tensor) -> Tensor:
    """Images x (B, C, H, W) by the mean and the deviation of the real pixels of the batch.

    On raw pixels, whose mean and scale differ from those of a young generator, a discriminator wins at once.
    """
    return (x - real.mean()) / real.std(correction=0).clamp(min=1e-3)


def judge(adversary: nn.Module, images: Tensor, batch: Any) -> Tensor:
    """What a discriminator says of images, real or not, of a batch: (B, 1), or (B, 1, h, w) of patches."""
    return run(adversary, standardized(images, batch.x), batch.y)


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

    def __init__(self, adversary: nn.Module):
        super().__init__()
        self.adversary = adversary

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly the samples pass for images: `loss` and `generator_loss`, the same."""
        fake = vae.sample(len(batch.x), batch.y)
        generator_loss = fools(judge(self.adversary, fake, batch))
        return {"loss": generator_loss, "generator_loss": generator_loss}

    def adversary_loss(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly images and samples are told apart; see `judged`."""
        with torch.no_grad():
            fake = vae.sample(len(batch.x), batch.y)
        return judged(*(judge(self.adversary, x, batch) for x in (batch.x, fake)))


class VAEGAN(nn.Module):
    """The ELBO, and a discriminator that tells reconstructions from images.

    loss = loss of the ELBO + weight * balance * -E log D(reconstruction), from step `adversarial_start` on

    Source: Larsen et al. 2016, "Autoencoding beyond pixels", without its distance in the discriminator's features.

    Args:
        adversary: the discriminator, images (B, C, H, W) -> (B, 1), or (B, 1, h, w) for patches.
        kld_weight: see `ELBO`.
        warmup_steps: see `ELBO`.
        free_bits: see `ELBO`.
        adversarial_weight: >= 0; 0 is the ELBO.
        adversarial_start: the step from which on both players play, >= 0. A discriminator that starts with a young
            decoder wins at once.
        adaptive: whether the weight follows the gradients, as `balanced` says; else balance = 1.
        perceptual: a distance of features that belongs to the reconstruction; see `ELBO`.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder",)
    judges = "images"
    balance: Tensor

    def __init__(
        self,
        adversary: nn.Module,
        kld_weight: float,
        warmup_steps: int,
        free_bits: float,
        adversarial_weight: float,
        adversarial_start: int,
        adaptive: bool,
        perceptual: nn.Module | None = None,
    ):
        super().__init__()
        self.elbo = ELBO(kld_weight, warmup_steps, free_bits, perceptual=perceptual)
        check_weight("objective.adversarial_weight", adversarial_weight)
        check_weight("objective.adversarial_start", adversarial_start)
        self.adversary = adversary
        self.warmup_steps = warmup_steps
        self.varies_until = max(self.elbo.varies_until, adversarial_start)
        self.adversarial_weight = adversarial_weight
        self.adversarial_start = adversarial_start
        self.adaptive = adaptive
        self.register_buffer("balance", torch.ones(()))  # of the last training step, for evaluation

    def plays(self, context: Context) -> bool:
        """Whether the adversary is in the game; in evaluation it always is."""
        return context.stage != "train" or context.step >= self.adversarial_start

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, `generator_loss` and, if it adapts itself, `adversarial_weight`."""
        q = vae.encode(batch.x, batch.y)
        z = q.rsample(1)
        params = vae.decode(z.squeeze(0), batch.y)
        reconstruction = -vae.likelihood.log_prob(batch.x, params).mean()
        terms = self.elbo.terms(vae, context, q, z, reconstruction)
        fake = vae.likelihood.mean(params)
        if self.elbo.perceptual is not None:
            distance = self.elbo.perceptual(batch.x, fake)
            terms = {**terms, "loss": terms["loss"] + distance, "feature_distance": distance}
            reconstruction = reconstruction + distance
        generator_loss = fools(judge(self.adversary, fake, batch))
        if self.adaptive and self.plays(context) and generator_loss.requires_grad:
            self.balance.copy_(balanced(reconstruction, generator_loss, vae.decoder))
        weight = self.adversarial_weight * self.plays(context) * self.balance
        shown = {"adversarial_weight": weight} if self.adaptive else {}
        return {**terms, "loss": terms["loss"] + weight * generator_loss, "generator_loss": generator_loss, **shown}

    def adversary_loss(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly images and reconstructions are told apart; see `judged`. Without gradient before the start."""
        with torch.no_grad():
            fake = vae.generate(vae.encode(batch.x, batch.y).rsample(1), batch.y)[0]
        terms = judged(*(judge(self.adversary, x, batch) for x in (batch.x, fake)))
        if not self.plays(context):
            terms["discriminator_loss"] = terms["discriminator_loss"].detach() + 0 * terms["discriminator_loss"]
        return terms


def balanced(reconstruction: Tensor, generator_loss: Tensor, decoder: nn.Module) -> Tensor:
    """min(1e4, |grad reconstruction| / (|grad generator_loss| + 1e-6)), at the last layer of the decoder.

    Source: Esser et al. 2021, "Taming transformers for high-resolution image synthesis", eq. 7; the bound
    1e4 is that of the authors' code.
    """
    last = [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]
    losses = (reconstruction, generator_loss)
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in losses]
    return (norms[0] / (norms[1] + 1e-6)).clamp(max=1e4)


class AAE(nn.Module):
    """Reconstruction, and a discriminator that tells codes from latents of the prior: the adversarial
    autoencoder.

    loss = reconstruction + weight * -E log D(z)

    Source: Makhzani et al. 2016, "Adversarial autoencoders", where the two terms are minimised in turn.

    Args:
        adversary: the discriminator, codes (B, D, 1, 1) -> (B, 1).
        adversarial_weight: >= 0; 0 is the plain autoencoder.

    Raises:
        ValueError: if the weight is out of its range.
    """

    needs = ("encoder", "prior")
    judges = "codes"
    matches_prior = True

    def __init__(self, adversary: nn.Module, adversarial_weight: float):
        super().__init__()
        check_weight("objective.adversarial_weight", adversarial_weight)
        self.adversary = adversary
        self.adversarial_weight = adversarial_weight

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """`reconstruction`, and how badly the codes pass for the prior's; with a density also `kl` and `elbo`."""
        q, z, reconstruction = infer(vae, batch)
        kl = kl_per_latent(q, z, vae.prior).sum() if hasattr(q, "log_prob") else None
        generator_loss = fools(self.adversary(as_images(z[0])))
        loss = reconstruction + self.adversarial_weight * generator_loss
        return report(loss, reconstruction, kl, q, generator_loss=generator_loss)

    def adversary_loss(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly latents of the prior and codes are told apart; see `judged`."""
        with torch.no_grad():
            fake = vae.encode(batch.x, batch.y).rsample(1)[0]
            real = vae.prior.sample(len(fake)).to(fake)
        return judged(self.adversary(as_images(real)), self.adversary(as_images(fake)))


class Factor(nn.Module):
    """The ELBO and a penalty on the total correlation of the codes, which a discriminator estimates: FactorVAE.

    loss = loss of the ELBO + gamma * E_q(z) log D(z) / (1 - D(z))

    where D tells codes from codes whose latents are permuted over the batch, each by itself.

    Source: Kim and Mnih 2018, "Disentangling by factorising", eq. 2; here both kinds of code are of the same images.

    Args:
        adversary: the discriminator, codes (B, D, 1, 1) -> (B, 1).
        kld_weight: see `ELBO`; 1 in the paper.
        warmup_steps: see `ELBO`.
        free_bits: see `ELBO`.
        gamma: weight of the total correlation, >= 0; 0 is the ELBO.

    Raises:
        ValueError: if one of them is out of its range.
    """

    needs = ("encoder", "prior")
    judges = "codes"

    def __init__(self, adversary: nn.Module, kld_weight: float, warmup_steps: int, free_bits: float, gamma: float):
        super().__init__()
        self.elbo = ELBO(kld_weight, warmup_steps, free_bits)
        check_weight("objective.gamma", gamma)
        self.adversary = adversary
        self.warmup_steps = warmup_steps
        self.varies_until = self.elbo.varies_until
        self.gamma = gamma

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """The terms of the ELBO, and `total_correlation_adversary`, which is negative where D is wrong."""
        q, z, reconstruction = infer(vae, batch)
        terms = self.elbo.terms(vae, context, q, z, reconstruction)
        total_correlation = self.adversary(as_images(z[0])).mean()
        loss = terms["loss"] + self.gamma * total_correlation
        return {**terms, "loss": loss, "total_correlation_adversary": total_correlation}

    def adversary_loss(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """How badly codes and permuted codes are told apart; see `judged`."""
        with torch.no_grad():
            z = vae.encode(batch.x, batch.y).rsample(2).flatten(2)  # the second sample is permuted
        return judged(self.adversary(as_images(z[0])), self.adversary(as_images(permuted(z[1]))))


def as_images(z: Tensor) -> Tensor:
    """Latents (B, *latent_shape) in the shape that networks of images take, (B, D, 1, 1)."""
    return z.flatten(1)[..., None, None]


def permuted(z: Tensor) -> Tensor:
    """Codes (B, D) with each latent permuted over the batch by itself: samples of the product of the marginals."""
    order = torch.rand(z.shape, device=z.device).argsort(0)
    return z.gather(0, order)
