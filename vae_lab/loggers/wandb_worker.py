"""The process that talks to W&B, so that nothing W&B does, or fails to do, reaches the training.

`vae_lab.loggers.wandb_process` starts it. It reads orders from stdin, one JSON list [order, value] on a line, and writes
reports to stdout, one JSON list [level, text] on a line. It ends after the order "finish", or when its stdin does: then
the run was killed, and what it had logged is still stored.
"""

import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from vae_lab.loggers.wandb_run import Complaints, Report, carry_out, errors_logged, has_api_key, reason, start_run
from vae_lab.runs.signals import SIGNALS

# Settled by the config and the run folder; what a shell has set for other programs means nothing here.
SETTLED = (
    "MODE", "DISABLED", "SERVICE", "DIR", "RUN_ID", "RESUME", "NAME", "PROJECT", "SILENT", "QUIET", "CONSOLE",
    "SYMLINK", "SAVE_CODE", "DISABLE_GIT", "INIT_TIMEOUT", "FINISH_TIMEOUT", "_SERVICE_WAIT",
)  # fmt: skip


def main() -> None:
    """Track one run, or with the argument `check` say what keeps a run from being online."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the run decides when this ends
    for name in SETTLED:
        os.environ.pop(f"WANDB_{name}", None)
    # W&B's telemetry goes to the same server: against one that hangs, it delays the end by 20 seconds.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    (check if sys.argv[1:] == ["check"] else track)(take_stdout(), Complaints())
    os._exit(0)  # W&B was given its time to end


def take_stdout() -> Report:
    """Keep stdout for reports; what W&B and its child print goes nowhere."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def report(level: int, text: str) -> None:
        with suppress(OSError):  # the run is gone
            stream.write(json.dumps([level, text]) + "\n")

    return report


def check(report: Report, complaints: Complaints) -> None:
    """Report what keeps a run from being online, if anything does. No connection is made."""
    try:
        if not has_api_key(complaints):
            report(logging.ERROR, "no API key; set WANDB_API_KEY, run `wandb login` or use logger.wandb.mode=auto")
    except Exception as error:  # W&B raises all kinds for a broken environment
        report(logging.ERROR, reason(error))


def track(report: Report, complaints: Complaints) -> None:
    """Start a run as the first order says, and obey the others."""
    _, settings = json.loads(sys.stdin.buffer.readline())
    orders: queue.SimpleQueue = queue.SimpleQueue()
    patience = settings["init_timeout"] + settings["upload_timeout"]
    threading.Thread(target=listen, args=(orders, patience), daemon=True).start()
    run = start_run(report, complaints, settings)
    if run is not None:
        obey(run, orders, report, complaints)


def listen(orders: queue.SimpleQueue, patience: float) -> None:
    """Queue the orders while W&B is busy; when they end, wait `patience` seconds for it and then end all the same."""
    for line in sys.stdin.buffer:
        with suppress(ValueError):  # half a line, of a run that was killed
            orders.put(json.loads(line))
    orders.put(("finish", 1))
    time.sleep(patience)
    os._exit(1)


def obey(run: Any, orders: queue.SimpleQueue, report: Report, complaints: Complaints) -> None:
    """Carry out orders until one says "finish".

    Only the first problem is reported: the others follow from it. An order that fails is the last one, but the run is
    still finished.

    Args:
        run: the `wandb.Run`.
        orders: see `carry_out`.
        report: tells the run what happened.
        complaints: of W&B.
    """
    import wandb

    problems, rest = complaints.texts, f"upload the rest with: wandb sync {run.settings.sync_dir}"
    has_failed = has_reported = False
    while (order := orders.get())[0] != "finish":
        try:
            if not has_failed:
                carry_out(run, *order)
        except Exception as error:
            has_failed = True
            problems.append(f"tracking ends here, the run goes on: {reason(error)}")
        if problems and not has_reported:
            has_reported = True
            report(logging.WARNING, f"W&B: {problems[0].rstrip('.')}; {rest}")
    try:
        run.finish(exit_code=order[1])
    except Exception as error:
        problems.append(reason(error))
    problems += errors_logged(run)
    if problems and not has_reported:
        report(logging.WARNING, f"W&B: {problems[0].rstrip('.')}; {rest}")
    with suppress(Exception):  # its own process has died
        wandb.teardown()


if __name__ == "__main__":
    main()
