"""Faults in what a run is given: settings, pictures, data files, and checkpoints that are damaged or a stranger's."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trial import LOUD, SILENT, SURVIVED, NotTried, Outcome, Trial, continued, read_checkpoint, refused

SIZE = 16  # of the pictures
TOLERANCE = 4 / 255  # what rounding and JPEG may change


def setting(trial: Trial, culprit: str, **settings: str) -> Outcome:
    """A setting that must be refused."""
    return refused(trial.train(epochs=1, **settings), culprit)


def nothing_to_resume(trial: Trial) -> Outcome:
    """Continue a run in a folder that does not exist."""
    trial.run = trial.folder / "no_such_run"
    return refused(trial.resume(), "no_such_run")


def damaged_checkpoint(trial: Trial, damage: Callable[[Path], None]) -> Outcome:
    """Continue a killed run whose last checkpoint was damaged."""
    trial.take_killed_run()
    damage(trial.checkpoint)
    done = trial.resume()
    if done.exit_code != 0:
        return refused(done, "last.ckpt")
    return continued(trial, done)


def truncate(path: Path) -> None:
    """Keep the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of the largest tensor of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    flip(path, largest.header_offset + largest.file_size // 2)


def flip(path: Path, position: int) -> None:
    """Flip all bits of one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 0xFF]))


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def payload(trial: Trial) -> Outcome:
    """Continue from a checkpoint that executes code when it is unpickled."""
    trial.take_killed_run()
    marker = trial.folder / "executed"
    saved = read_checkpoint(trial.checkpoint)
    torch.save(saved | {"note": Payload(marker)}, trial.checkpoint)
    return executed(marker, refused(trial.resume(), r"last\.ckpt|weights.only"))


def target(trial: Trial, name: str, arguments: list[str]) -> Outcome:
    """A config of a stranger in which a callback is something else."""
    marker = trial.folder / "executed"
    extra = [argument.format(marker) for argument in arguments]
    return executed(marker, refused(trial.train(*extra, epochs=1, target=name), name))


def executed(marker: Path, outcome: Outcome) -> Outcome:
    """Judge what must not execute anything, whatever else it does."""
    if not marker.exists():
        return outcome
    return Outcome(SILENT if outcome.verdict == SILENT else LOUD, f"EXECUTED, {outcome.evidence}")


def ordinary_pictures(folder: Path, number: int = 80) -> None:
    """Pictures of one colour each with a little noise, in one class: there is something to learn."""
    random = np.random.default_rng(0)
    for i in range(number):
        pixels = random.uniform(20, 235, 3) + random.normal(0, 10, (SIZE, SIZE, 3))
        save(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), folder / f"{i:03}.png")


def save(image: Image.Image, path: Path, **options) -> None:
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def bad_picture(trial: Trial, name: str, content: Callable[[bytes], bytes]) -> Outcome:
    """A picture among ordinary ones of which the file is damaged."""
    folder = trial.folder / "pictures" / "a"
    ordinary_pictures(folder, 40)
    large = Image.open(folder / "000.png").resize((64, 64))
    save(large, folder / name, quality=95)
    (folder / name).write_bytes(content((folder / name).read_bytes()))
    settings = {"epochs": 1, "steps": "1.0", "pictures": folder.parent}
    return refused(trial.train("trainer.limit_val_batches=1.0", **settings), name.replace(".", r"\."))


def odd_picture(trial: Trial, name: str, make: Callable[[], tuple[Image.Image, np.ndarray, dict]]) -> Outcome:
    """Pictures of one kind: what enters the model must be what they show, or they must be refused."""
    image, truth, options = make()
    folder = trial.folder / "pictures" / "a"
    for i in range(24):
        save(image, folder / f"{i}_{name}", **options)
    seen = trial.folder / "seen.pt"
    done = trial.train(epochs=1, pictures=folder.parent, plan={"see": str(seen)})
    if done.exit_code != 0:
        return refused(done, name.replace(".", r"\."))
    error = largest_error(torch.load(seen)[0].numpy(), truth)
    return Outcome(SURVIVED if error <= TOLERANCE else SILENT, f"exit 0, largest error of a pixel {error:.2f}")


def largest_error(pixels: np.ndarray, truth: np.ndarray) -> float:
    """How far pixels (C, H, W) in [0, 1] are from the truth; where that is NaN, any one colour is right."""
    known = ~np.isnan(truth)
    wrong = np.abs(pixels - truth)[known].max()
    free = pixels[:, ~known.all(0)]  # (C, pixels)
    return float(max(wrong, np.ptp(free, axis=1).max() if free.size else 0.0))


def ramp() -> np.ndarray:
    """Values from 0 to 1 (H, W)."""
    return np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)


def grey_16_bit() -> tuple[Image.Image, np.ndarray, dict]:
    """A ramp in 16 bits."""
    values = np.round(ramp() * 65535).astype(np.uint16)
    return Image.fromarray(values), np.broadcast_to(values / 65535, (3, SIZE, SIZE)), {}


def floating_point() -> tuple[Image.Image, np.ndarray, dict]:
    """A ramp in 32-bit floating point."""
    return Image.fromarray(ramp().astype(np.float32)), np.broadcast_to(ramp(), (3, SIZE, SIZE)), {}


def transparent() -> tuple[Image.Image, np.ndarray, dict]:
    """The left half opaque grey, the right half transparent with noise hidden under it."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), np.uint8)
    pixels[:, : SIZE // 2] = (128, 128, 128, 255)
    pixels[:, SIZE // 2 :, 3] = 0
    truth = np.full((3, SIZE, SIZE), 128 / 255)
    truth[:, :, SIZE // 2 :] = np.nan
    return Image.fromarray(pixels), truth, {}


def rotated() -> tuple[Image.Image, np.ndarray, dict]:
    """The upper half bright, stored on its side with a tag that says so."""
    upright = np.full((SIZE, SIZE), 32, np.uint8)
    upright[: SIZE // 2] = 224
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show it
    truth = np.broadcast_to(upright / 255, (3, SIZE, SIZE))
    return Image.fromarray(np.rot90(upright).copy()), truth, {"exif": exif, "quality": 95}


def flipped_mnist(trial: Trial) -> Outcome:
    """The training images of MNIST with one byte changed."""
    source = trial.data / "MNIST" / "raw"
    if not (source / "train-images-idx3-ubyte").exists():
        raise NotTried(f"no {source}: give --data")
    root = trial.folder / "data"
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in source.glob("*-ubyte"):
        shutil.copyfile(path, folder / path.name)
    flip(folder / "train-images-idx3-ubyte", 10**6)
    done = trial.train(pictures=None, mnist=root, epochs=1)
    return refused(done, "train-images-idx3-ubyte")
