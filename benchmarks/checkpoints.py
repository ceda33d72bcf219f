"""What a save and a load of a checkpoint cost with vae-lab's `DurableCheckpointIO`, against Lightning's stock one.

Lightning's `TorchCheckpointIO` serialises into memory, writes into TMPDIR and moves the file to its place. vae-lab's
writes beside the place, waits until the bytes are on the disk (fsync), renames, and checks every CRC at a load. A
checkpoint here is what a model trained with Adam leaves: parameters, and two moments for each. Rounds are interleaved
and their order alternates; loads come from memory, since the file has just been written.

    python benchmarks/checkpoints.py [--folder FOLDER_ON_THE_DISK_TO_MEASURE]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from throughput import spread

from vae_lab.runs.checkpoints import DurableCheckpointIO

KINDS: dict[str, CheckpointIO] = {"stock": TorchCheckpointIO(), "vae-lab": DurableCheckpointIO()}
LAYERS = 8


def main(arguments: list[str] | None = None) -> None:
    """Measure every size and print a table."""
    args = parse_arguments(arguments)
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        same = os.stat(folder).st_dev == os.stat(tempfile.gettempdir()).st_dev
        for size in args.sizes:
            rows += measure(make_checkpoint(size), size, args.rounds, Path(folder))
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {args.rounds} rounds; median ms (quartiles)")
    print(f"TMPDIR, where the stock one writes first, is on {'the same' if same else 'another'} file system\n")
    print("| MB | | stock | vae-lab | ratio |\n| --- | --- | --- | --- | --- |", *rows, sep="\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder, if not given")
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 10, 200], metavar="MB")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args(arguments)


def make_checkpoint(megabytes: float) -> dict:
    """A checkpoint of that many MB (10^6 bytes): float32 parameters and the two moments that Adam keeps of each."""
    values = max(1, int(megabytes * 1e6 / 4 / 3 / LAYERS))
    parameters = {f"layer{i}.weight": torch.randn(values) for i in range(LAYERS)}
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": torch.randn(values), "exp_avg_sq": torch.rand(values)}
        for i in range(LAYERS)
    }
    return {"global_step": 1, "state_dict": parameters, "optimizer_states": [{"state": moments}]}


def measure(checkpoint: dict, size: float, rounds: int, folder: Path) -> list[str]:
    """Save and load in interleaved rounds, after one that warms up.

    Returns:
        Two lines of the table.
    """
    seconds = {(kind, action): [] for action in ("save", "load") for kind in KINDS}
    for i in range(rounds + 1):
        for kind in list(KINDS)[:: 1 if i % 2 else -1]:
            path, io = folder / kind / "last.ckpt", KINDS[kind]
            path.parent.mkdir(exist_ok=True)
            saving = clocked(io.save_checkpoint, checkpoint, path)
            loading = clocked(io.load_checkpoint, path)
            if i:
                seconds[kind, "save"].append(saving)
                seconds[kind, "load"].append(loading)
    return [line(size, action, [seconds[kind, action] for kind in KINDS]) for action in ("save", "load")]


def clocked(act: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - start


def line(size: float, action: str, seconds: list[list[float]]) -> str:
    """One line of the table; the ratio is of the two times of each round."""
    stock, lab = seconds
    ratios = [b / a for a, b in zip(stock, lab, strict=True)]
    cells = [spread([1000 * s for s in times]) for times in seconds]
    return f"| {size:g} | {action} | {' | '.join(cells)} | {spread(ratios, 2)} |"


if __name__ == "__main__":
    main()
