"""A model as ONNX is the model, whatever its parts; and the files say nothing of the machine."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vae_lab
from vae_lab.config.instantiate import build_vae
from vae_lab.errors import NumericsError
from vae_lab.evaluation.evaluate import evaluate_runs
from vae_lab.runs import onnx
from vae_lab.runs.export import export_run
from vae_lab.training.train import train


def run_half(path: Path, **inputs: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(None, {name: value.numpy() for name, value in inputs.items()})


@pytest.mark.slow
def test_onnx_of_a_run_that_went_on_is_of_its_weights_and_holds_no_place(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "a-planted-secret")
    book = ["model=conv", "model.channels=[4,4]", "model.hidden_dims=[]", "model.spatial=true", "dataset.fit=pad"]
    book += ["dataset.image_size=16", "model.conditional=true", "posterior=vq", "posterior.num_codes=8"]
    train(config(*book))
    evaluate_runs([str(tmp_path / "run")])
    train(config(*book, "trainer.max_epochs=3", f"resume={tmp_path / 'run'}"))
    export_run([str(tmp_path / "run"), "onnx=true"])

    folder = tmp_path / "run" / "export"
    content = json.loads((folder / "config.json").read_text())
    assert not [key for key in content["metrics"] if key.startswith("test/")]
    assert set(content["onnx"]["encoder.onnx"]) == {"x", "y", "z", "indices", "sha256"}
    for path in folder.iterdir():
        text = path.read_bytes()
        for word in (str(tmp_path), os.uname().nodename, "a-planted", "site-packages", ".py", str(Path.home())):
            assert word.encode() not in text, (path, word)

    vae = vae_lab.load_run(folder).vae
    x, y = torch.rand(3, 1, 16, 16), torch.tensor([[0], [9], [4]])
    q = vae.encode(x, y)
    z, indices = run_half(folder / "encoder.onnx", x=x, y=y)
    assert np.array_equal(indices, q.indices)
    assert np.allclose(z, q.mean, atol=1e-4)
    (images,) = run_half(folder / "decoder.onnx", z=q.mean, y=y)
    assert np.allclose(images, vae.generate(q.mean, y), atol=1e-4)


@pytest.mark.slow
def test_a_generator_has_only_a_decoder_whose_images_are_clipped(config):
    vae = build_vae(config("posterior=none", "objective=gan", "loss=mse")).eval().requires_grad_(False)
    vae.decoder[-2].bias.copy_(torch.linspace(-1, 2, 64))
    ((name, (content, told)),) = onnx.to_onnx(vae, "none").items()
    assert name == "decoder.onnx"
    assert "clipped to [0, 1]" in told["x"]
    z = torch.randn(3, 3)
    (images,) = run_half(content, z=z)
    assert (images.min(), images.max()) == (0, 1)
    assert np.allclose(images, vae.generate(z).clamp(0, 1), atol=1e-4)


class WithoutOnnx(nn.Module):
    """A network with an operation that ONNX does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x.flatten(1, 2))[0].flatten(1)[:, :6]


@pytest.mark.slow
def test_what_cannot_be_onnx_is_refused_in_one_line(config, capsys, monkeypatch):
    vae = build_vae(config()).eval().requires_grad_(False)
    monkeypatch.setattr(vae, "encoder", WithoutOnnx())
    with pytest.raises(ValueError, match=r"onnx=true: the encoder cannot be ONNX: .*svd") as caught:
        onnx.convert(vae, onnx.Encoder(vae), {"x": ""}, {"z": ""})
    assert len(str(caught.value).splitlines()) == 1
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(onnx, "TOLERANCE", -1)
    with pytest.raises(NumericsError, match="the decoder as ONNX is .* away from what the model gives"):
        onnx.convert(vae, onnx.Decoder(vae), {"z": ""}, {"x": ""})


def test_a_package_that_is_missing_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs the package onnxruntime: pip install 'vae_lab\[onnx\]'"):
        onnx.to_onnx(build_vae(config()), "none")
