import numpy as np
import pytest
import torch
from PIL import Image

from vae_lab.data.decoding import check_fit, decode, fit_pixels


def random_pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def to_pillow(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())


def from_pillow(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def difference(first: torch.Tensor, second: torch.Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


def test_nothing_to_do_is_no_copy():
    pixels = random_pixels(4, 3, 8, 8)
    for fit in ("resize", "crop", "pad"):
        assert fit_pixels(pixels, (3, 8, 8), fit) is pixels


def test_luma_is_that_of_pillow():
    pixels = random_pixels(1, 3, 256, 256)
    expected = from_pillow(to_pillow(pixels[0]).convert("L"))
    assert torch.equal(fit_pixels(pixels, (1, 256, 256), "resize")[0], expected)


def test_grey_is_repeated_and_comes_back():
    grey = random_pixels(5, 1, 8, 8)
    rgb = fit_pixels(grey, (3, 8, 8), "resize")
    assert torch.equal(rgb, grey.repeat(1, 3, 1, 1))
    assert torch.equal(fit_pixels(rgb, (1, 8, 8), "resize"), grey)


@pytest.mark.parametrize("size", [16, 50, 97])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_antialiased_like_pillow(size: int, channels: int):
    pixels = random_pixels(1, channels, 50, 70)
    expected = from_pillow(to_pillow(pixels[0]).resize((size, size), Image.Resampling.BILINEAR))
    assert difference(fit_pixels(pixels, (channels, size, size), "resize")[0], expected) <= 1


def test_crop_takes_the_centre():
    pixels = torch.zeros(1, 1, 10, 16, dtype=torch.uint8)
    pixels[..., 3:13] = 200
    assert (fit_pixels(pixels, (1, 10, 10), "crop") == 200).all()
    assert (fit_pixels(pixels.mT, (1, 5, 5), "crop") == 200).all()


def test_pad_is_centred_and_keeps_every_pixel():
    pixels = random_pixels(2, 1, 28, 20)
    padded = fit_pixels(pixels, (1, 32, 32), "pad")
    assert torch.equal(padded[..., 2:30, 6:26], pixels)
    assert padded.sum() == pixels.sum()


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    pixels = random_pixels(7, 3, 12, 9)
    whole = fit_pixels(pixels, (1, 6, 6), "crop")
    monkeypatch.setattr("vae_lab.data.decoding.CHUNK_PIXELS", 200)
    assert torch.equal(fit_pixels(pixels, (1, 6, 6), "crop"), whole)


@pytest.mark.parametrize(
    ("image_shape", "fit", "message"),
    [
        ((2, 8, 8), "resize", "channels must be 1 or 3, got 2"),
        ((1, 8, 9), "resize", "image_shape must be square"),
        ((1, 0, 0), "resize", "image_size must be an integer >= 1, got 0"),
        ((1, 8, 8), "stretch", "fit must be one of resize, crop, pad, got stretch"),
        ((1, 16, 16), "pad", "image_size must be >= 28 with fit=pad, got 16"),
    ],
)
def test_user_values_are_checked(image_shape, fit: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_fit(image_shape, fit, source_size=28)


def test_decode_is_exact_for_png(tmp_path):
    pixels = random_pixels(3, 12, 12)
    to_pillow(pixels).save(tmp_path / "ü 画.PNG")
    decoded = decode(tmp_path / "ü 画.PNG", (3, 12, 12), "resize", (0, 0, 0))
    assert torch.equal(decoded, pixels)
    assert decoded.is_contiguous()


def test_a_large_jpeg_decodes_to_the_same_picture(tmp_path):
    small = from_pillow(to_pillow(random_pixels(3, 6, 8)).resize((1216, 912), Image.Resampling.BICUBIC))
    to_pillow(small).save(tmp_path / "a.jpg", quality=95)
    expected = fit_pixels(from_pillow(Image.open(tmp_path / "a.jpg"))[None], (3, 32, 32), "crop")[0]
    assert difference(decode(tmp_path / "a.jpg", (3, 32, 32), "crop", (0, 0, 0)), expected) <= 2
