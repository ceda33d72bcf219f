"""The variational autoencoder: an encoder, a posterior, a decoder and a likelihood. No loss, no Lightning.

Shapes: B batch, C channels, H height, W width, D latent_dim. Images are floats in [0, 1].
"""

from torch import Tensor, nn


class VAE(nn.Module):
    """Binds networks to distributions.

    Args:
        encoder: (B, C, H, W) -> (B, D * posterior.params_per_latent).
        decoder: (B, D) -> (B, C * likelihood.params_per_channel, H, W).
        posterior: see `vae_lab.models.posteriors`.
        likelihood: see `vae_lab.models.likelihoods`.
        latent_dim: D.
        image_shape: (C, H, W).
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, posterior, likelihood, latent_dim: int, image_shape):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = posterior
        self.likelihood = likelihood
        self.latent_dim = latent_dim
        self.image_shape = tuple(image_shape)

    def encode(self, x: Tensor):
        """q(z given x): images (B, C, H, W) -> a distribution over (B, D)."""
        return self.posterior(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, D) -> raw likelihood parameters (B, C * params_per_channel, H, W); logits for Bernoulli."""
        return self.decoder(z)

    def generate(self, z: Tensor) -> Tensor:
        """E[x given z]: latents (B, D) -> images (B, C, H, W)."""
        return self.likelihood.mean(self.decode(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x given z] at the posterior mean: images (B, C, H, W) -> images (B, C, H, W)."""
        return self.generate(self.encode(x).mean)

    def forward(self, x: Tensor) -> Tensor:
        """The same as `reconstruct`."""
        return self.reconstruct(x)
