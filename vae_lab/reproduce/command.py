"""`vae-lab-reproduce`: train the runs of targets, measure them, say PASS or FAIL, and keep what was measured."""

import math
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from vae_lab.config.arguments import read_arguments
from vae_lab.config.explain import did_you_mean
from vae_lab.config.help import columns
from vae_lab.errors import DataError, NumericsError, OutOfMemoryError, RunError, one_line
from vae_lab.reproduce import closed_forms, published
from vae_lab.reproduce.target import Check, Target, train_runs
from vae_lab.runs.files import durable_open, read_json, write_json

USAGE = """vae-lab-reproduce: train what a closed form or a paper says, measure it, say PASS or FAIL.

  vae-lab-reproduce                       the targets: tier, minutes, source, and what was measured so far
  vae-lab-reproduce NAME... [key=value]   reproduce these; the exit code is 1 if one fails
  vae-lab-reproduce --tier TIER           all of a tier

  tier=TIER              quick (seconds), cpu (minutes on two cores) or gpu
  out=outputs/reproduce  the runs are in OUT/NAME/RUN; what is complete is not trained again, what was stopped goes on
  record=OUT             the folder of numbers.json and numbers.md, which keep what was measured; without names the page
                         numbers.md is made anew
  data_root=DIR          where the images are; $VAE_LAB_DATA, or data/"""
DEFAULTS = {"tier": None, "out": "outputs/reproduce", "record": None, "data_root": None}
TARGETS: dict[str, Target] = {**closed_forms.TARGETS, **published.TARGETS}
TIERS = {
    "quick": "Seconds on the digits that come with scikit-learn; part of `make test`.",
    "cpu": "Minutes each on two quiet cores.",
    "gpu": "Hours each on a GPU.",
}
HEAD = """\
# Numbers

What closed forms and papers say, trained and measured by `vae-lab-reproduce`, which made this page from
`numbers.json`. A band was fixed before the run it judges.

```sh
vae-lab reproduce                       # the targets, with tier, time and source
vae-lab reproduce linear_vae_digits     # train, measure, PASS or FAIL
vae-lab reproduce --tier cpu record=docs    # all of a tier; renews this page
```

Values are those of the last weights. Times are those of training, on whatever else the machine did.
"""


def reproduce_targets(arguments: list[str]) -> None:
    """List targets, or reproduce those that the command line names.

    Args:
        arguments: names of targets and key=value settings; see `USAGE`.

    Raises:
        ValueError: if a name or a setting is wrong.
        SystemExit: with code 1 if a target fails.
        Preempted: if a signal came; the same command goes on.
    """
    folders, settings = read_arguments(arguments, DEFAULTS, USAGE)
    names, tier, out = list(map(str, folders)), settings["tier"], Path(settings["out"])
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"there is no target {name}{did_you_mean(name, TARGETS)}; vae-lab-reproduce lists them")
    if tier is not None and tier not in TIERS:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, got {tier!r}")
    names += [name for name, target in TARGETS.items() if target.tier == tier and name not in names]
    record = Path(settings["record"] or out)
    if not names:
        print_targets(read_record(record))
        if settings["record"] is not None:
            write_record(record, read_record(record))
        return
    failed = []
    for name in names:
        data_root = settings["data_root"] or os.environ.get("VAE_LAB_DATA", "data")
        result = measure(name, TARGETS[name], out, str(Path(data_root).absolute()))
        if result is not None:
            write_record(record, read_record(record) | {name: result})
        if result is None or not result["passed"]:
            failed.append(name)
    if failed:
        print(f"FAIL  {len(failed)} of {len(names)}: {', '.join(failed)}")
        raise SystemExit(1)


def measure(name: str, target: Target, out: Path, data_root: str) -> dict | None:
    """Train and check a target, and print what came out; None where it could not be trained."""
    try:
        runs = train_runs(name, target, out, data_root)
        checks = target.check(runs)
    except (ValueError, DataError, NumericsError, OutOfMemoryError, RunError) as error:
        print(f"FAIL  {name}: not measured: {one_line(error)}")
        return None
    passed = all(check.passed for check in checks)
    print(f"{'PASS' if passed else 'FAIL'}  {name}: {target.claim}")
    for check in checks:
        print(f"  {'' if check.passed else 'FAIL '}{check.what}: {check.value:.6g}, {shown_band(check)}")
    print(f"  source: {target.source}\n  band: {target.band}")
    return {
        "passed": passed,
        "checks": [[check.what, check.value, *map(finite, check[2:])] for check in checks],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "torch": version("torch"),
        "seconds": round(sum(read_json(run.folder / "result.json").get("train_seconds", 0) for run in runs.values())),
    }


def machine() -> str:
    """What computed: the GPU, or the cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"


def finite(value: float) -> float | None:
    """A bound as JSON can have it: None where there is none."""
    return value if math.isfinite(value) else None


def shown_band(check: Check) -> str:
    """A band in words."""
    low, high = (f"{bound:.6g}" for bound in (check.low, check.high))
    if check.high == math.inf:
        return f"at least {low}"
    return f"at most {high}" if check.low == -math.inf else f"in [{low}, {high}]"


def read_record(folder: Path) -> dict[str, dict]:
    """What was measured of each target; nothing where there is no record yet."""
    path = folder / "numbers.json"
    return read_json(path) if path.is_file() else {}


def write_record(folder: Path, record: dict[str, dict]) -> None:
    """Write what was measured, and the page made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "numbers.json", {name: record[name] for name in TARGETS if name in record})
    with durable_open(folder / "numbers.md") as file:
        file.write(page(record).encode())


def verdict(result: dict | None) -> str:
    """Of a target, in a word or three."""
    return "not yet run" if result is None else "PASS" if result["passed"] else "FAIL"


def page(record: dict[str, dict]) -> str:
    """The record as Markdown."""
    return "\n".join([HEAD, *page_lines(record)])


def page_lines(record: dict[str, dict]) -> Iterator[str]:
    """The lines of each tier: a table of what was measured, a list of what was not."""
    for tier, meaning in TIERS.items():
        yield f"## {tier}\n\n{meaning}\n"
        for name, target in TARGETS.items():
            if target.tier != tier:
                continue
            result = record.get(name)
            yield f"### `{name}`: {verdict(result)}\n"
            yield f"{target.claim[0].upper()}{target.claim[1:]}. Source: {target.source}. Band: {target.band}.\n"
            if target.failure:
                yield f"Why it fails: {target.failure}.\n"
            if result is None:
                continue
            yield "| what | value | band | |\n|---|---|---|---|"
            for what, value, low, high in result["checks"]:
                check = Check(what, value, -math.inf if low is None else low, math.inf if high is None else high)
                yield f"| {what} | {value:.6g} | {shown_band(check)} | {'PASS' if check.passed else 'FAIL'} |"
            yield f"\n{result['date']}, {result['machine']}, torch {result['torch']}, {result['seconds']:,} s.\n"


def print_targets(record: dict[str, dict]) -> None:
    """Print all targets by tier."""
    for tier, meaning in TIERS.items():
        print(f"{tier}: {meaning}")
        chosen = {name: target for name, target in TARGETS.items() if target.tier == tier}
        print(
            columns(
                [(n, f"{verdict(record.get(n))}, {t.minutes:g} min; {t.claim} ({t.source})") for n, t in chosen.items()]
            )
        )
