"""Pictures hold exactly the pixels, components and frames that they should."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from vae_lab.errors import NumericsError, RunError
from vae_lab.evaluation import pictures


@pytest.mark.parametrize(("shape", "scale"), [((1, 8, 8), 6), ((1, 28, 28), 2), ((3, 32, 32), 2), ((3, 64, 64), 1)])
def test_each_tile_is_its_image_enlarged_exactly(shape, scale):
    images = torch.rand(7, *shape)
    picture = pictures.grid(images, num_columns=3)

    pitch = scale * shape[-1] + pictures.GAP
    assert picture.shape == (3 * pitch + pictures.GAP, 3 * pitch + pictures.GAP, 3)
    assert picture.dtype == np.uint8
    for i, image in enumerate(images):
        top, left = pictures.GAP + i // 3 * pitch, pictures.GAP + i % 3 * pitch
        tile = picture[top : top + pitch - pictures.GAP, left : left + pitch - pictures.GAP]
        expected = (image.expand(3, -1, -1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(tile, expected.repeat(scale, 0).repeat(scale, 1))


def test_grid_clamps_to_the_pixel_range_and_draws_nan_black():
    images = torch.tensor([-1.0, 2.0, float("nan"), float("inf")]).view(4, 1, 1, 1).expand(4, 1, 48, 48)
    picture = pictures.grid(images, num_columns=4)
    assert [int(picture[20, 20 + 50 * i, 0]) for i in range(4)] == [0, 255, 0, 255]


def test_annotate_keeps_the_picture_and_makes_room_for_labels():
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    page = pictures.annotate(picture, "a title that is wider than the picture", ["row"], ["a", "b"])
    top, left = page.shape[0] - 60 - pictures.MARGIN, page.shape[1] - 80 - pictures.MARGIN
    assert top > 2 * pictures.MARGIN
    assert any(np.array_equal(page[top : top + 60, i : i + 80], picture) for i in range(left + 1))


def test_originals_stand_directly_above_their_reconstructions():
    x, x_hat = torch.zeros(6, 1, 48, 48), torch.ones(6, 1, 48, 48)
    picture = pictures.reconstructions(x, x_hat, "")
    column = picture[:, -pictures.MARGIN - 20, 0]  # through the last tiles
    runs = [int(v) for i, v in enumerate(column) if v in (0, 255) and (i == 0 or column[i - 1] != v)]
    assert runs == [255, 0, 255, 255]  # page, original, reconstruction, page


@pytest.mark.parametrize(("num", "dim"), [(200, 5), (4, 9), (50, 2)])
def test_principal_components_agree_with_the_singular_value_decomposition(num, dim):
    codes = torch.randn(num, dim, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, dim + 1)
    points, explained = pictures.principal_components(codes)
    left, singular, _ = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)
    torch.testing.assert_close(points.abs(), (left * singular)[:, :2].abs(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(explained, (singular.square() / singular.square().sum())[:2])


def test_principal_components_do_not_flip_and_bear_collapsed_codes():
    codes = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    points, _ = pictures.principal_components(codes)
    torch.testing.assert_close(pictures.principal_components(codes + 3)[0], points, atol=1e-4, rtol=1e-4)
    assert pictures.principal_components(torch.ones(5, 4))[1].tolist() == [0, 0]


@pytest.mark.parametrize("num_values", [3, 12])
def test_scatter_writes_the_names_of_classes_whatever_they_are(num_values):
    codes, labels = torch.arange(160.0).view(80, 2).sin(), torch.arange(80) % num_values
    names = ["a" * 99, "$x{", "_hidden", *"defghijkl"]
    numbered, named = (pictures.scatter(codes, labels, "class", "latents", known) for known in ((), names))
    assert numbered.shape == named.shape
    assert (numbered != named).any()


@pytest.mark.parametrize(
    ("rows", "num_panels"),
    [
        ([], 1),
        ([{"step": 1, "epoch": 0, "val/loss": 3.0}], 1),
        ([{"step": 1, "epoch": 0, "train/loss": 3.0, "train/reconstruction": float("inf")}], 2),
        ([{"step": s, "epoch": s, "train/loss": 1 / s, "val/reconstruction": 1, "val/kl": 0} for s in (1, 2)], 3),
    ],
)
def test_curves_have_a_panel_for_each_recorded_term(rows, num_panels):
    assert pictures.curves(rows).shape[1] == pytest.approx(4.3 * num_panels * 120, abs=1)


def test_a_step_repeated_after_a_resume_counts_once():
    rows = [{"step": 1, "train/loss": 5.0}, {"step": 2, "train/loss": 9.0}]
    again = [{"step": 2, "train/loss": 4.0}]
    plain = [{"step": 1, "train/loss": 5.0}, {"step": 2, "train/loss": 4.0}]
    np.testing.assert_array_equal(pictures.curves(rows + again), pictures.curves(plain))


@pytest.mark.parametrize("blue", [0, 9])
def test_gif_has_every_frame_on_one_page_and_holds_the_last(tmp_path, blue):
    frames = [np.full((20, 30 + 10 * (i == 0), 3), 40 * i, np.uint8) for i in range(5)]  # the first is wider
    for frame in frames:
        frame[..., 2] += blue
    pictures.write_gif(tmp_path / "training.gif", frames)

    with Image.open(tmp_path / "training.gif") as gif:
        pages = [frame.convert("RGB") for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] == 2000
    assert [page.getpixel((5, 5))[0] for page in pages] == [0, 40, 80, 120, 160]
    assert {page.size for page in pages} == {(40, 20)}
    assert pages[-1].getpixel((35, 5)) == (255, 255, 255)


@pytest.mark.filterwarnings("error")
def test_a_scatter_of_codes_that_coincide_or_explode_does_not_warn_and_of_a_diverged_model_says_so():
    for scale in (0, 1e-30, 1e30):
        assert pictures.scatter(torch.ones(80, 2) * scale, None, "", "latents").any()
    with pytest.raises(NumericsError, match="not finite"):
        pictures.scatter(torch.full((3, 2), float("nan")), None, "", "latents")


def test_files_are_written_whole_and_a_full_disk_is_not_hidden(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    pictures.write_png(path, np.zeros((4, 4, 3), np.uint8))
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"cannot write .*picture\.png: No space left .* bytes needed"):
        pictures.write_png(path, np.ones((4, 4, 3), np.uint8))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
