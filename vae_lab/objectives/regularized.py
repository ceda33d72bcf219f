"""The regularised autoencoder. What an objective is, is in `vae_lab.objectives`."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_lab.models.vae import VAE
from vae_lab.objectives import Context
from vae_lab.objectives.elbo import check_weight, infer, report


class RAE(nn.Module):
    """An autoencoder without noise, with small codes and a smooth decoder; it has no prior to draw samples from.

    loss = reconstruction + code_weight 1/2 |z|^2 + decoder_weight R

    R is the sum of squares of the decoder's parameters (`l2`), or the squared norm of the Jacobian of the decoded image
    at the code (`gradient`). The latter is estimated without bias by the gradient along one random direction of the
    image, E_v |v J|^2 with v ~ N(0, I).

    Source: Ghosh et al. 2020, "From variational to deterministic autoencoders", RAE-L2 and RAE-GP.

    Args:
        code_weight: of the squares of the codes, >= 0.
        decoder_weight: of the regulariser, >= 0.
        regularizer: `l2` or `gradient`.

    Raises:
        ValueError: if a weight is out of its range.
    """

    needs = ("encoder", "point")
    varies_until = 0

    def __init__(self, code_weight: float, decoder_weight: float, regularizer: Literal["l2", "gradient"]):
        super().__init__()
        check_weight("objective.code_weight", code_weight)
        check_weight("objective.decoder_weight", decoder_weight)
        self.code_weight = code_weight
        self.decoder_weight = decoder_weight
        self.regularizer = regularizer

    def forward(self, vae: VAE, batch: Any, context: Context) -> dict[str, Tensor]:
        """`loss`, `reconstruction`, `code_norm` (1/2 |z|^2) and `decoder_norm` (R)."""
        q, z, reconstruction = infer(vae, batch)
        code_norm = 0.5 * z.square().flatten(2).sum(2).mean()
        if self.regularizer == "l2":
            decoder_norm = torch.stack([weight.square().sum() for weight in vae.decoder.parameters()]).sum()
        else:
            decoder_norm = squared_jacobian(vae, z[0], batch.y)
        loss = reconstruction + self.code_weight * code_norm + self.decoder_weight * decoder_norm
        return report(loss, reconstruction, None, q, code_norm=code_norm, decoder_norm=decoder_norm)


def squared_jacobian(vae: VAE, z: Tensor, y: Tensor | None) -> Tensor:
    """An unbiased estimate of the mean squared Frobenius norm of d(image) / d(code): z (B, D) -> 0-dim.

    In training it has gradients for the decoder and through the codes; in evaluation it computes as much as it needs.
    """
    is_training = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        z = z if is_training else z.clone().requires_grad_()
        images = vae.generate(z, y)
        direction = torch.randn_like(images)
        (gradient,) = torch.autograd.grad(images, z, direction, create_graph=is_training)
    return gradient.flatten(1).square().sum(1).mean()
