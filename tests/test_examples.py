"""The notebooks in examples/ run from top to bottom, each in seconds, and end with what they show."""

import ast
from pathlib import Path

import jupytext
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
QUICK = (
    "trainer=cpu trainer.max_epochs=1 trainer.check_val_every_n_epoch=1 trainer.limit_train_batches=4 "
    "callbacks.summary=null"
)
DIGITS = "dataset=digits"
MORE = {  # of the notebooks, what they take in place of their own images
    "autoencoder": f"{DIGITS} callbacks.gallery.scatter_every_n_steps=2",
    "conv_vae": DIGITS,
    "gan": f"{DIGITS} dataset.image_size=28",
    "latent_manifold": DIGITS,
    "mlp_vae": DIGITS,
    "disentanglement": "dataset.source.orientations=2 dataset.source.positions=5",
    "image_tokenizer": "model.channels=[8,16] model.num_blocks=1",
    "objectives": "trainer.limit_val_batches=1",
}


def run_cell(source: str, names: dict):
    """Run a cell as a notebook does; returns the value of its last line, which that shows."""
    *lines, last = ast.parse(source).body
    is_shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(lines if is_shown else [*lines, last], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if is_shown else None


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_runs_and_ends_with_a_picture_or_a_figure(path, tmp_path, monkeypatch):
    assert len(path.read_text().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUICK", f"{QUICK} {MORE[path.stem]}")
    monkeypatch.setenv("STEPS", "5")
    (tmp_path / "pictures").mkdir()
    for i, noise in enumerate(torch.rand(40, 3, 40, 40, generator=torch.Generator().manual_seed(0))):
        to_pil_image(noise).save(tmp_path / "pictures" / f"{i}.png")
    names: dict = {}
    shown = [run_cell(cell.source, names) for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert type(shown[-1]).__name__ in ("Image", "Figure")
