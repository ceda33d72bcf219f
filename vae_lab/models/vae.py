"""The variational autoencoder: an encoder, a posterior, a prior, a decoder and a likelihood. No loss, no Lightning.

Shapes: S samples of z, B batch, C channels, H height, W width, F label columns; `latent_shape` is (D,) or (D, h, w).
Images are floats in [0, 1].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class VAE(nn.Module):
    """Binds networks to distributions; what each part must be is in `vae_lab.models`.

    Args:
        encoder: (B, C, H, W) -> what the posterior takes; None of a pure generator.
        decoder: (B, *latent_shape) -> (B, P*C, H, W), P the likelihood's `params_per_channel`.
        posterior: from the encoder's output to q(z given x).
        prior: p(z); None of a plain autoencoder, which has no KL and no samples.
        likelihood: p(x given z).
        latent_shape: of one z.
        image_shape: (C, H, W).
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        decoder: nn.Module,
        posterior: Callable,
        prior: nn.Module | None,
        likelihood: Any,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
    ):
        super().__init__()
        self.encoder: Any = encoder  # with marks of its own
        self.decoder = decoder
        self.posterior: Any = posterior  # with marks of its own
        self.prior: Any = prior  # with methods of its own
        self.likelihood = likelihood
        self.latent_shape = tuple(latent_shape)
        self.image_shape = tuple(image_shape)
        self._encoded: tuple | None = None  # x, y and q within `encoding_once`
        bind = getattr(prior, "bind", None)
        if bind is not None:
            bind(self)

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.latent_shape[0]

    @property
    def num_classes(self) -> tuple[int, ...]:
        """Of each of the F label columns that a conditional model takes; empty for others."""
        return getattr(self.decoder, "num_classes", ())

    def encode(self, x: Tensor, y: Tensor | None = None) -> Any:
        """q(z given x): images (B, C, H, W), and labels (B, F) where the encoder takes them.

        Raises:
            ValueError: if the model has no encoder.
        """
        if self.encoder is None:
            raise ValueError("codes and reconstructions need an encoder, which posterior=none does not have")
        if self._encoded is not None and x is self._encoded[0] and y is self._encoded[1]:
            return self._encoded[2]
        return self.posterior(run(self.encoder, x, y))

    @contextmanager
    def encoding_once(self, x: Tensor, y: Tensor | None) -> Iterator[Any]:
        """Give q(z given x), None of a generator; within the block, whoever encodes the same tensors gets that one."""
        q = self.encode(x, y) if self.encoder is not None else None
        self._encoded = x, y, q
        try:
            yield q
        finally:
            self._encoded = None

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Latents -> raw likelihood parameters (logits for Bernoulli), with any leading axes.

        Args:
            z: (..., *latent_shape).
            y: labels, (..., F) or without the first of these axes; where the decoder takes them.

        Returns:
            (..., P*C, H, W).
        """
        leading = z.shape[: -len(self.latent_shape)]
        if y is not None:
            y = y.expand(*leading, -1).flatten(0, -2)
        if len(leading) == 1:
            return run(self.decoder, z, y)
        return run(self.decoder, z.reshape(-1, *self.latent_shape), y).unflatten(0, leading)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x given z]: latents (..., *latent_shape) -> images (..., C, H, W)."""
        return self.likelihood.mean(self.decode(z, y))

    def project(self, z: Tensor) -> Tensor:
        """The nearest latents that the posterior can have, (B, *latent_shape): of a book, or on the sphere."""
        return self.posterior.project(z) if hasattr(self.posterior, "project") else z

    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """E[x given z] for n latents from the prior, (n, C, H, W); y are their labels (n, F), of a conditional model.

        Raises:
            ValueError: if the model has no prior.
        """
        if self.prior is None:
            raise ValueError("samples need a prior, which posterior=deterministic does not have")
        return self.generate(self.prior.sample(n).to(next(self.parameters()).device), y)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E[x given z] at the code of each image: (B, C, H, W) -> (B, C, H, W)."""
        return self.generate(self.encode(x, y).mean, y)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The same as `reconstruct`."""
        return self.reconstruct(x, y)


def run(network: nn.Module, x: Tensor, y: Tensor | None) -> Tensor:
    """Call a network, with the labels if it takes them.

    Raises:
        ValueError: if there are none.
    """
    if not getattr(network, "takes_labels", False):
        return network(x)
    if y is None:
        raise ValueError("a conditional model needs labels y, (B, F), beside x or z, as in sample(n, y)")
    return network(x, y)
