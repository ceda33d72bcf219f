"""A trained model as ONNX, for programs without torch: `encoder.onnx`, of images their codes, and `decoder.onnx`.

What was written is run at once, and must give what the model gives. It holds no line and no path of the code.
"""

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from vae_lab.errors import NumericsError, one_line
from vae_lab.models.vae import VAE

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
TOLERANCE = 1e-4  # of what is near 1 or below; relative to larger values
UNSURE = 0.01  # of the codes of a book: where two are as near, rounding decides


class Encoder(nn.Module):
    """Images (N, C, H, W), and labels (N, F) of a conditional model -> codes, and where they are of a book indices."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Encode, without noise."""
        q = self.vae.encode(*given)
        return (q.mean, q.indices) if hasattr(q, "indices") else (q.mean,)


class Decoder(nn.Module):
    """Latents (N, *latent_shape), and labels (N, F) of a conditional model -> mean images (N, C, H, W) in [0, 1]."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Decode; the mean of an unbounded likelihood is clipped."""
        return (self.vae.generate(*given).clamp(0, 1),)


def to_onnx(vae: VAE, binarize: str) -> dict[str, tuple[bytes, dict[str, str]]]:
    """Both halves of a model as ONNX, for any number of images N; of a pure generator the decoder alone.

    Args:
        vae: in evaluation mode, on the CPU.
        binarize: how its images were, which is told; `none` if not.

    Returns:
        By the name of the file what it holds, and what each of its inputs and outputs is.

    Raises:
        ValueError: if a package is missing, or a half cannot be written as ONNX.
        NumericsError: if what was written does not give what the model gives.
    """
    image, latent = (f"float32 (N, {', '.join(map(str, shape))})" for shape in (vae.image_shape, vae.latent_shape))
    pixels = f"{image}: pixels in [0, 1], which are bytes / 255, not normalised in any other way"
    if binarize != "none":
        pixels += f"; in training each was 0 or 1 (dataset.binarize={binarize})"
    mean = f"{image}: the mean image given z, clipped to [0, 1]; times 255 it is bytes"
    classes = ", ".join(map(str, vae.num_classes))
    labels = {"y": f"int64 (N, {len(vae.num_classes)}): labels from 0, of {classes} classes"} if classes else {}
    code = {"z": f"{latent}: the code, without noise"}
    if hasattr(vae.posterior, "num_codes"):
        code["indices"] = f"int64 (N, ...): which of {vae.posterior.num_codes} codes stands at each place of z"
    found = {DECODER: (convert(vae, Decoder(vae), {"z": latent, **labels}, {"x": mean}))}
    if vae.encoder is not None:
        found[ENCODER] = convert(vae, Encoder(vae), {"x": pixels, **labels}, code)
    return found


def convert(vae: VAE, half: nn.Module, takes: dict[str, str], gives: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """One half of `to_onnx`, from what its inputs and outputs are."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise ValueError(f"onnx=true needs the package {error.name}: pip install 'vae_lab[onnx]'") from error
    name, axis = type(half).__name__.lower(), torch.export.Dim
    shapes = [{0: axis("N") if key != "y" else axis.AUTO} for key in takes]  # the same, which torch finds out itself
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # where it fails, it prints the code
            program: Any = torch.onnx.export(
                half.eval(),
                inputs(vae, takes, 2),
                dynamo=True,
                verbose=False,
                input_names=list(takes),
                output_names=list(gives),
                dynamic_shapes=(tuple(shapes),),
            )
        ClearMetadataAndDocStringPass()(program.model)  # which quote the code with its paths
        content = program.model_proto.SerializeToString()
    except Exception as error:  # whatever an operation that ONNX lacks, or a model above 2 GB, raises on its way
        raise ValueError(f"onnx=true: the {name} cannot be ONNX: {one_line(error.__cause__ or error)}") from error
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for number in (1, 8):
        given = inputs(vae, takes, number)
        results = session.run(None, {key: part.numpy() for key, part in zip(takes, given, strict=True)})
        for wanted, result in zip(half(*given), results, strict=True):
            apart = (torch.from_numpy(result) - wanted).abs()
            is_near = apart <= TOLERANCE * wanted.abs().max().clamp(min=1)
            if is_near.float().mean() < (1 - UNSURE if "indices" in gives else 1):
                raise NumericsError(
                    f"onnx=true: the {name} as ONNX is {apart.max():.2g} away from what the model gives"
                )
    return content, {**takes, **gives}


def inputs(vae: VAE, takes: dict[str, str], number: int) -> tuple[Tensor, ...]:
    """Some inputs of a half; each at another number."""
    noise = torch.Generator().manual_seed(number)
    columns = [torch.randint(classes, (number,), generator=noise) for classes in vae.num_classes]
    draw, shape = (torch.rand, vae.image_shape) if "x" in takes else (torch.randn, vae.latent_shape)
    return draw(number, *shape, generator=noise), *([torch.stack(columns, 1)] if columns else [])
