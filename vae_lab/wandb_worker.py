"""The process that talks to W&B, so that nothing W&B does, or fails to do, reaches the training.

`vae_lab.wandb_process` starts it. It reads orders from stdin, one JSON list [order, value] on a line, and writes
reports to stdout, one JSON list [level, text] on a line. It ends after the order "finish", or when its stdin does: then
the run was killed, and what it had logged is still stored.
"""

import json
import logging
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Settled by the config and the run folder; what a shell has set for other programs means nothing here.
SETTLED = (
    "MODE", "DISABLED", "SERVICE", "DIR", "RUN_ID", "RESUME", "NAME", "PROJECT", "SILENT", "QUIET", "CONSOLE",
    "SYMLINK", "SAVE_CODE", "DISABLE_GIT", "INIT_TIMEOUT", "FINISH_TIMEOUT", "_SERVICE_WAIT",
)  # fmt: skip

Report = Callable[[int, str], None]


class Complaints(logging.Handler):
    """What W&B warns of, in its own words."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.log = logging.Logger("wandb")
        self.log.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(" ".join(re.sub(r"wandb: (WARNING|ERROR)?", "", record.getMessage()).split()))


def main() -> None:
    """Track one run, or with the argument `check` say what keeps a run from being online."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
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


def start_run(report: Report, complaints: Complaints, settings: dict[str, Any]) -> Any:
    """Start the W&B run: online if that is wanted and works, else offline.

    Args:
        report: tells the run what happened.
        complaints: of W&B.
        settings: see `init_run`; the mode may also be "auto": online if there is an API key.

    Returns:
        The `wandb.Run`, or None if there is none.
    """
    mode, failures = settings["mode"], []
    try:
        if mode == "auto":
            mode = "online" if has_api_key(complaints) else "offline"
            failures += complaints.texts  # as about an unreadable ~/.netrc
        if mode == "online":
            run = init_run(complaints, {**settings, "mode": "online"})
            report(logging.INFO, f"W&B: {run.url}")
            return run
    except Exception as error:  # W&B raises all kinds
        failures.append(reason(error))
    for prepare in (lambda: None, forget_settings):
        prepare()
        try:
            run = init_run(complaints, {**settings, "mode": "offline"})
            break
        except Exception as error:
            failures.append(reason(error))
    else:
        report(logging.WARNING, f"W&B does not start, this run is not tracked: {failures[0]}")
        return None
    complaints.texts.clear()
    upload = f"offline, upload with: wandb sync {run.settings.sync_dir}"
    if failures:
        report(logging.WARNING, f"W&B: {failures[0]}; tracking {upload}")
    else:
        report(logging.INFO, f"W&B: {upload}")
    return run


def variables() -> list[str]:
    """The names of the variables for W&B in the environment."""
    return sorted(name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING")


def forget_settings() -> None:
    """Make W&B start as if nobody had set anything: one of the settings is what is wrong, and offline needs none."""
    for name in variables():
        del os.environ[name]
    os.environ["WANDB_CONFIG_DIR"] = os.devnull


def setup(complaints: Complaints) -> Any:
    """W&B's global state; silent, because otherwise it asks the server who is logged in, only to print it."""
    import wandb

    silent = wandb.Settings(silent=True)
    wandb.termsetup(silent, complaints.log)
    state = wandb.setup(silent)
    wandb.termsetup(silent, complaints.log)  # the setup has undone it
    return state


def has_api_key(complaints: Complaints) -> bool:
    """Whether W&B finds credentials in the environment, in ~/.netrc or in its settings; malformed ones count too."""
    import wandb

    host = setup(complaints).settings.base_url
    try:
        from wandb.sdk.lib.wbauth import authenticate_session

        return authenticate_session(host=host, source="vae_lab", prompt=False, update_session=False) is not None
    except wandb.errors.AuthenticationError:
        return True  # wandb.init will say what is wrong with them
    except (ImportError, TypeError):  # private, so it may move; then only the environment is asked
        return bool(os.environ.get("WANDB_API_KEY"))


def init_run(complaints: Complaints, settings: dict[str, Any]) -> Any:
    """Start the W&B run, online or offline.

    Args:
        complaints: of W&B.
        settings: mode ("online" or "offline"), folder (the run's), run_id (of W&B; one that exists is continued), name,
            labels (project, entity, group, job_type, tags), init_timeout and upload_timeout (seconds).

    Raises:
        Exception: of any kind, as W&B does.
    """
    import wandb

    own = Path(settings["folder"]) / "wandb"
    own.mkdir(parents=True, exist_ok=True)
    if not os.access(own, os.W_OK):  # W&B would write to /tmp instead
        raise PermissionError(f"{own} is not writable")
    setup(complaints)
    try:
        run = wandb.init(
            dir=settings["folder"],
            id=settings["run_id"],
            resume="allow",
            name=settings["name"],
            mode=settings["mode"],
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=settings["init_timeout"],
                finish_timeout=settings["upload_timeout"],
                finish_timeout_raises=True,
                console="off",  # train.log has it, without secrets
                x_disable_meta=True,  # would store the environment
                x_stats_pid=os.getppid(),  # the run's load, not this process's
                disable_git=True,
                save_code=False,
                symlink=False,
            ),
            **settings["labels"],
        )
    except Exception:
        wandb.teardown()  # else the failed attempt keeps the run id in use
        raise
    run.define_metric("*", step_metric="step")
    return run


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
    problems += errors_logged(Path(run.settings.log_internal))
    if problems and not has_reported:
        report(logging.WARNING, f"W&B: {problems[0].rstrip('.')}; {rest}")
    with suppress(Exception):  # its own process has died
        wandb.teardown()


def carry_out(run: Any, order: str, value: Any) -> None:
    """Store a config, values of a step, a PNG or GIF file or final values."""
    import wandb

    match order:
        case "config":
            run.config.update(value, allow_val_change=True)
        case "metrics":
            run.log(value)
        case "picture":
            key, path, step = value
            picture = wandb.Video(path, format="gif") if path.endswith(".gif") else wandb.Image(path)
            run.log({key: picture, "step": step})
        case "summary":
            run.summary.update(value)


def errors_logged(path: Path) -> list[str]:
    """Errors that W&B tells nobody but its log: a full disk, a server that answers with something else."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return re.findall(r'"level":"ERROR","msg":"(?!monitor)((?:[^"\\]|\\.)*)"', text)


def reason(error: Exception) -> str:
    """What an exception says, on one line; of a wrong setting not its value, which may be a secret."""
    if hasattr(error, "errors"):  # pydantic's
        text = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        return f"{text} (check {', '.join(variables())})" if variables() else text
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
