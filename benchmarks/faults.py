"""The same faults against a plain Lightning and Hydra script (`plain.py`) and against vae-lab.

A fault is injected into both in the same way (`injection.py`), and one judgement decides for both (`trial.py`):

    survived        the right outcome: it continues bit-exactly, trains on the right pixels, keeps the checkpoint that
                    was there, or refuses with an exit code other than 0 and a line that names the cause
    failed loudly   an exit code other than 0, but work is lost or no line names the cause
    SILENT          exit code 0 although work is lost, the model is NaN, the pixels are wrong, the result differs or
                    what makes no sense was accepted

    python benchmarks/faults.py --data FOLDER_OF_MNIST
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import inputs
import kills
from programs import LAB, PLAIN, Program
from trial import BROKEN, LOUD, SILENT, SURVIVED, NotTried, Outcome, Trial

PROGRAMS = (PLAIN, LAB)
VERDICTS = (SURVIVED, LOUD, SILENT)
FAULTS: dict[str, Callable[[Trial], Outcome]] = {
    "SIGTERM within an epoch": partial(kills.stop, number=signal.SIGTERM),
    "SIGINT within an epoch": partial(kills.stop, number=signal.SIGINT),
    "SIGKILL within an epoch": kills.kill,
    "SIGKILL at an epoch's end": kills.kill_at_epoch_end,
    f"SIGKILL in a save, {kills.KILLS} times, TMPDIR elsewhere": kills.kill_while_saving,
    "disk full": kills.full_disk,
    "checkpoint folder becomes read-only": kills.locked_folder,
    "NaN loss (lr=1e12)": kills.nan,
    "two runs in the same second": kills.two_at_once,
    "sweep of 3 in one process, SIGTERM in job 2": kills.sweep,
    "W&B: no key, at a terminal": kills.no_key,
    "W&B: dead server": kills.dead_server,
    "resume where nothing is": inputs.nothing_to_resume,
    "resume, last.ckpt truncated": partial(inputs.damaged_checkpoint, damage=inputs.truncate),
    "resume, last.ckpt with a flipped byte": partial(inputs.damaged_checkpoint, damage=inputs.flip_byte),
    "resume, last.ckpt with a pickle payload": inputs.payload,
    "config calls os.system": partial(
        inputs.target, name="os.system", arguments=["+callbacks.mine.command='touch {}'"]),
    "config calls builtins.open": partial(
        inputs.target, name="builtins.open", arguments=["+callbacks.mine.file={}", "+callbacks.mine.mode=w"]),
    "unknown key": partial(inputs.setting, culprit="latnt_dim", unknown="8"),
    "KL weight of -1": partial(inputs.setting, culprit="KLD_weight", kld_weight="-1"),
    "16-bit grey pictures": partial(inputs.odd_picture, name="deep.png", make=inputs.grey_16_bit),
    "floating-point TIFF": partial(inputs.odd_picture, name="float.tiff", make=inputs.floating_point),
    "transparent pictures": partial(inputs.odd_picture, name="alpha.png", make=inputs.transparent),
    "pictures rotated by EXIF": partial(inputs.odd_picture, name="phone.jpg", make=inputs.rotated),
    "one truncated picture": partial(inputs.bad_picture, name="torn.jpg", content=lambda file: file[: len(file) // 2]),
    "one empty picture file": partial(inputs.bad_picture, name="empty.jpg", content=lambda file: b""),
    "MNIST with a flipped byte": inputs.flipped_mnist,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Try the chosen faults on both programs and print the table.

    Returns:
        1 if a program did not get as far as a fault, so that nothing is known of it; else 0.
    """
    args = parse_arguments(arguments)
    names = [name for name in FAULTS if args.only.lower() in name.lower()]
    if not names:
        sys.exit(f"no fault is called {args.only!r}; there are: {', '.join(FAULTS)}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(PROGRAMS)) as pool:
        tried = [pool.submit(try_all, names, program, Path(folder) / program.name, args.data) for program in PROGRAMS]
        outcomes = {program.name: future.result() for program, future in zip(PROGRAMS, tried, strict=True)}
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{table(outcomes)}\n")
    seconds, busy = time.monotonic() - start, usage.ru_utime + usage.ru_stime
    print(f"{seconds:.0f} s, {busy:.0f} s of processor time, {os.cpu_count()} cores")
    if args.json:
        named = {name: {fault: o._asdict() for fault, o in found.items()} for name, found in outcomes.items()}
        args.json.write_text(json.dumps(named, indent=2) + "\n")
    return int(any(o.verdict == BROKEN for found in outcomes.values() for o in found.values()))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default="data", help="the folder that holds MNIST/")
    parser.add_argument("--only", default="", metavar="NAME", help="the faults with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there, too")
    return parser.parse_args(arguments)


def try_all(names: list[str], program: Program, folder: Path, data: Path) -> dict[str, Outcome]:
    """Try faults on one program, one after the other."""
    shared = folder / "shared"
    inputs.ordinary_pictures(shared / "pictures" / "a")
    Trial(program, folder / "undisturbed", shared, data).run_undisturbed()
    outcomes = {}
    for number, name in enumerate(names):
        start = time.monotonic()
        try:
            verdict, evidence = FAULTS[name](Trial(program, folder / str(number), shared, data))
        except NotTried as reason:
            verdict, evidence = reason.verdict, str(reason)
        for place in (folder / str(number), shared, folder):  # temporary names that tell the reader nothing
            evidence = evidence.replace(f"{place}/", "")
        outcomes[name] = Outcome(verdict, evidence)
        print(f"{program.name:8} {name}: {verdict} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    return outcomes


def table(outcomes: dict[str, dict[str, Outcome]]) -> str:
    """The outcomes side by side, and how many of the faults that both met each program survived, in Markdown."""
    rows = [["fault", *outcomes], ["---"] * (1 + len(outcomes))]
    names = list(next(iter(outcomes.values())))
    for name in names:
        cells = [f"{found[name].verdict}: {shorten(found[name].evidence)}" for found in outcomes.values()]
        rows.append([name, *cells])
    tried = [name for name in names if all(found[name].verdict in VERDICTS for found in outcomes.values())]
    for verdict in VERDICTS:
        counts = [sum(found[name].verdict == verdict for name in tried) for found in outcomes.values()]
        rows.append([f"**{verdict}**", *(f"**{count} of {len(tried)}**" for count in counts)])
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def shorten(text: str, length: int = 160) -> str:
    """Text on one line, the middle left out where it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length * 2 // 3]} ... {text[-length // 3 :]}"


if __name__ == "__main__":
    sys.exit(main())
