"""Checkpoint files: written whole or not at all, read without executing anything, damage noticed."""

import logging
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from lightning.fabric.plugins import CheckpointIO

from vae_lab.durable import durable_open
from vae_lab.errors import RunError

log = logging.getLogger(__name__)


class DamagedError(RunError):
    """A checkpoint is not what was written: an older one may do."""


class DurableCheckpointIO(CheckpointIO):
    """Writes checkpoints with `durable_open` and reads them without executing anything they contain."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: if it cannot be written; the previous one is then intact.
        """
        path, size = Path(path), tensor_bytes(checkpoint)
        with durable_open(path, size) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch hides what the file said behind an assertion of its own
                reason = error.__context__ if isinstance(error.__context__, OSError) else None
                if reason is None:
                    raise RunError(f"cannot write {path}: {str(error).splitlines()[0]}; is the disk full?") from error
                raise reason from error

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        """Read a checkpoint; see `load_checkpoint`."""
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def tensor_bytes(node) -> int:
    """Bytes of all tensors in nested containers, about what they need on disk."""
    if isinstance(node, torch.Tensor):
        return node.nbytes
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return sum(tensor_bytes(child) for child in children)


def load_checkpoint(path: Path, map_location: str = "cpu") -> dict:
    """Read a checkpoint that holds tensors and plain containers only; anything else is refused unexecuted.

    Raises:
        DamagedError: if its bytes are not those that were written.
        RunError: if the file is missing or holds other objects.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"no checkpoint at {path}")
    check_bytes(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        raise RunError(f"cannot load {path}: it holds more than tensors and plain containers") from error
    except Exception as error:  # what is not a checkpoint at all raises one of half a dozen unrelated types
        raise DamagedError(f"{path} is damaged: {str(error).splitlines()[0] if str(error) else repr(error)}") from error
    if not isinstance(checkpoint, dict):
        raise RunError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def check_bytes(path: Path) -> None:
    """Compare every part of a checkpoint with its CRC-32: torch itself would load flipped bits silently.

    Raises:
        DamagedError: naming the file and the first damaged part.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged directory of the archive raises nearly anything
        raise DamagedError(f"{path} is damaged: {str(error) or repr(error)}") from error
    if damaged is not None:
        raise DamagedError(f"{path} is damaged: the checksum of {damaged} is wrong")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that is not damaged; None if nothing was saved yet.

    Raises:
        RunError: if all are damaged, or one holds more than a checkpoint does.
    """
    # By age: the best one is the last one or an older one.
    saved = [path for path in (folder / f"{name}.ckpt" for name in ("last", "previous", "best")) if path.is_file()]
    damage = []
    for path in saved:
        try:
            step = load_checkpoint(path).get("global_step")
        except DamagedError as error:
            damage.append(str(error))
            continue
        for message in damage:
            log.warning("%s; using %s of step %d", message, path.name, step)
        return path
    if damage:
        raise RunError(f"no checkpoint can be read: {'; '.join(damage)}; start a new run")
    return None
