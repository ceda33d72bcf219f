import math

import pytest
import torch
from composed import composed

from vae_lab.data.sprites import LARGEST, SMALLEST, Sprites
from vae_lab.training.build import build_data


def grid(size: int = 64, scales: int = 4, orientations: int = 8, positions: int = 8) -> torch.Tensor:
    pixels = Sprites((1, size, size), scales, orientations, positions).read().pixels
    return pixels.reshape(3, scales, orientations, positions, positions, size, size)


def test_the_grid_is_full_and_labelled():
    images = Sprites((3, 16, 16), 2, 3, 4).read()
    assert images.factors == ("shape", "scale", "orientation", "x", "y")
    assert images.pixels.shape == (3 * 2 * 3 * 4 * 4, 3, 16, 16)
    assert images.num_test == 0
    assert len(images.labels.unique(dim=0)) == len(images.labels)
    assert images.labels.amax(0).tolist() == [2, 1, 2, 3, 3]
    assert torch.equal(images.pixels[:, 0], images.pixels[:, 2])


@pytest.mark.parametrize("size", [16, 37, 64])
def test_all_images_are_distinct_and_inside_the_frame(size: int):
    pixels = grid(size).flatten(0, 4)
    assert len({image.numpy().tobytes() for image in pixels}) == len(pixels)
    border = torch.ones(size, size, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not pixels[:, border].any()
    assert (pixels.amax((1, 2)) > 128).all()


def test_areas_are_those_of_the_shapes():
    heart = (1 / 2 + math.pi / 8) * ((1.5 - math.sqrt(0.5)) / 0.5) ** 2
    radius = torch.tensor([SMALLEST, LARGEST]) * 32
    areas = grid(scales=2).float().sum((-2, -1)) / 255 / radius[:, None, None, None] ** 2
    expected = torch.tensor([2, math.pi / 2, heart]).reshape(3, 1, 1, 1, 1).expand_as(areas)
    torch.testing.assert_close(areas, expected, rtol=0.02, atol=0)


def test_the_period_of_each_shape_is_its_symmetry():
    pixels = grid(orientations=4, positions=1)[:, -1, :, 0, 0]
    square, ellipse, heart = pixels
    pairs = {
        "square": (square[2], square[2].rot90()),
        "ellipse": (ellipse[2], ellipse[0].rot90()),
        "quarter heart": (heart[1], heart[0].rot90(-1)),
        "half heart": (heart[2], heart[0].rot90(2)),
    }
    for name, (drawn, turned) in pairs.items():
        assert (drawn.int() - turned.int()).abs().max() <= 1, name


def test_x_goes_right_and_y_goes_down():
    pixels = grid(positions=2)[:, :, 0].float()
    pixel = torch.arange(64.0)
    mass = pixels.sum((-2, -1))
    right = (pixels.sum(-2) * pixel).sum(-1) / mass  # (shape, scale, x, y)
    down = (pixels.sum(-1) * pixel).sum(-1) / mass
    travel = torch.full_like(right[..., 0, :], (1 - LARGEST - 2 / 64) * 64)
    torch.testing.assert_close(right[..., 1, :] - right[..., 0, :], travel, atol=0.2, rtol=0)
    torch.testing.assert_close(down[..., 1] - down[..., 0], travel, atol=0.2, rtol=0)


def test_the_config_knows_the_factors_and_batches_hold_them():
    cfg = composed("dataset=sprites", "dataset.image_size=16", "dataset.source.positions=2", "dataset.source.scales=3")
    data = build_data(cfg)
    data.prepare_data()
    assert list(data.num_classes) == (data.splits["train"].labels.amax(0) + 1).tolist() == [3, 3, 8, 2, 2]
    batch = next(iter(data.val_dataloader()))
    assert batch.y.shape == (len(batch.x), 5)
    assert data.factors == ("shape", "scale", "orientation", "x", "y")
