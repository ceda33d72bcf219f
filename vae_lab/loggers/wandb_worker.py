"""What happens in W&B's process: it starts, fills and finishes one run after the other, as it is told.

It ends when the one who gives the orders is gone; if that one was killed, what it had told is still stored.
"""

import importlib
import json
import logging
import os
import queue
import re
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vae_lab.errors import one_line
from vae_lab.runs.signals import SIGNALS

# Settled by the config and the run folder; what a shell has set for other programs means nothing here.
SETTLED = (
    "MODE", "DISABLED", "SERVICE", "DIR", "RUN_ID", "RESUME", "NAME", "PROJECT", "SILENT", "QUIET", "CONSOLE",
    "SYMLINK", "SAVE_CODE", "DISABLE_GIT", "INIT_TIMEOUT", "FINISH_TIMEOUT", "_SERVICE_WAIT",
)  # fmt: skip
# What W&B imports as it starts a run and takes a picture, in seconds.
USED_BY_WANDB = ("requests", "PIL.Image", "pandas", "wandb.sdk.launch.inputs.internal")
# Variables that hold paths, which may start from the current folder.
FILES = ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_IDENTITY_TOKEN_FILE")


def main(orders: Connection, reports: Connection) -> None:
    """Leave the run's terminal, signals and folder, and be at its service."""
    leave()
    Worker(orders, reports).serve()
    os._exit(0)  # W&B was given its time to end


def fork_on_demand(asked: socket.socket) -> None:
    """Leave a sweep's terminal, import W&B, and fork a process for each pair of connections until nobody asks."""
    leave()
    for name in ("wandb", *USED_BY_WANDB):
        with suppress(Exception):  # whoever is forked finds out, and says so
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    while True:
        asks, descriptors, _, _ = socket.recv_fds(asked, 1, 2)
        if not asks:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            taken, told = descriptors
            worker = Worker(Connection(taken, writable=False), Connection(told, readable=False))
            worker.report(os.getpid())
            worker.serve()
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def leave() -> None:
    """Leave the terminal, signals and folder of the one who started this process.

    W&B would obey `wandb/settings` in the current folder, which may be a stranger's, and send the API key to the server
    named there.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the run decides when this ends
    if hasattr(os, "setsid"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # nothing is asked, and what W&B prints goes nowhere
        os.dup2(nowhere, stream)
    for name in SETTLED:
        os.environ.pop(f"WANDB_{name}", None)
    for name in filter(os.environ.get, FILES):
        os.environ[name] = os.path.abspath(os.environ[name])
    # W&B's telemetry goes to the same server: against one that hangs, it delays the end by 20 seconds.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    sys.argv[:], sys.path[:] = [""], map(os.path.abspath, sys.path)
    os.chdir("/")


class Worker:
    """Does what it is told with W&B.

    Args:
        orders: gives JSON lists [order, value]. That of "start" is a dict: mode ("online", "offline", or "auto": online
            if there is an API key), folder (for `wandb/`), run_id (one that exists is continued), name, labels
            (project, entity, group, job_type, tags), pid (of the run), init_timeout and upload_timeout (seconds).
        reports: takes the number of this process, level and text of what the run should log, and None when a run, or a
            check, is over.
    """

    def __init__(self, orders: Connection, reports: Connection):
        self.pipe, self.reports = orders, reports
        self.orders: queue.SimpleQueue = queue.SimpleQueue()
        self.problems: list[str] = []  # of the present run; only the first is reported: the others follow from it
        self.log = logging.Logger("wandb", logging.WARNING)
        self.log.addFilter(self._complain)

    def serve(self) -> None:
        """Obey until the one who gives the orders is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while order := self.orders.get():
            match order:
                case "check", _:
                    self._check()
                case "start", settings:
                    self.problems = []
                    if run := self._start(settings):
                        self._fill(run)
                case _:  # the end of a run that never began
                    continue
            self.report(None)
        if "wandb" in sys.modules:
            with suppress(Exception):  # its own process has died
                sys.modules["wandb"].teardown()

    def _listen(self) -> None:
        """Queue the orders while W&B is busy; when they end, be patient with it, and then end all the same."""
        patience = 1.0
        with suppress(EOFError, OSError):
            while True:
                order, value = json.loads(self.pipe.recv_bytes())
                self.orders.put((order, value))
                if order == "start":
                    patience = value["init_timeout"] + value["upload_timeout"]
        self.orders.put(("finish", 1))
        self.orders.put(None)
        time.sleep(patience)
        os._exit(1)

    def _complain(self, record: logging.LogRecord) -> bool:
        self.problems.append(" ".join(re.sub(r"wandb: (WARNING|ERROR)?", "", record.getMessage()).split()))
        return False

    def report(self, what: tuple[int, str] | int | None) -> None:
        """Tell the run something."""
        with suppress(OSError):  # the run is gone
            self.reports.send(what)

    def _check(self) -> None:
        try:
            if not self._has_api_key():
                advice = "set WANDB_API_KEY, run `wandb login` or use logger.wandb.mode=auto"
                self.report((logging.ERROR, f"no API key; {advice}"))
        except Exception as error:  # W&B raises all kinds for a broken environment
            self.report((logging.ERROR, reason(error)))

    def _has_api_key(self) -> bool:
        self._setup()
        import wandb

        return wandb.login(prompt=False, verify=False)

    def _setup(self) -> None:
        """Start W&B, silent: otherwise it asks the server who is logged in, only to print it."""
        import wandb

        silent = wandb.Settings(silent=True)
        wandb.termsetup(silent, self.log)
        wandb.setup(silent)
        wandb.termsetup(silent, self.log)  # the setup has undone it

    def _start(self, settings: dict[str, Any]) -> Any:
        """Start the W&B run: online if that is wanted and works, else offline, at last without any variables."""
        failures: list[str] = []
        for mode in (settings["mode"], "offline", "bare"):
            if mode == "bare":  # one of the variables is what is wrong, and offline needs none
                for name in variables():
                    del os.environ[name]
                os.environ["WANDB_CONFIG_DIR"] = os.devnull
            try:
                is_online = mode == "online" or mode == "auto" and self._has_api_key()
                failures += [] if is_online else self.problems  # as about an unreadable ~/.netrc
                run = self._init(settings, "online" if is_online else "offline")
                break
            except Exception as error:  # W&B raises all kinds
                failures.append(reason(error))
        else:
            self.report((logging.WARNING, f"W&B does not start, this run is not tracked: {failures[0]}"))
            return None
        place = run.url if is_online else f"offline, upload with: wandb sync {run.settings.sync_dir}"
        told = (
            (logging.WARNING, f"W&B: {failures[0]}; tracking {place}") if failures else (logging.INFO, f"W&B: {place}")
        )
        self.report(told)
        if not is_online:
            self.problems.clear()
        return run

    def _init(self, settings: dict[str, Any], mode: Any) -> Any:
        import wandb

        own = Path(settings["folder"]) / "wandb"
        own.mkdir(parents=True, exist_ok=True)
        if not os.access(own, os.W_OK):  # W&B would write to /tmp instead
            raise PermissionError(f"{own} is not writable")
        self._setup()
        try:
            run = wandb.init(
                dir=settings["folder"],
                id=settings["run_id"],
                resume="allow",
                name=settings["name"],
                mode=mode,
                reinit="create_new",
                settings=wandb.Settings(
                    init_timeout=settings["init_timeout"],
                    finish_timeout=settings["upload_timeout"],
                    finish_timeout_raises=True,
                    console="off",  # train.log has it, without secrets
                    x_disable_meta=True,  # would store the environment
                    x_stats_pid=settings["pid"],  # the run's load, not this process's
                    x_save_requirements=False,  # all that is installed: a fifth of a second for each run
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

    def _fill(self, run: Any) -> None:
        """Store what comes until the order "finish"; what fails is the last of it, but the run is still finished."""
        import wandb

        has_failed = has_reported = False
        order, value = "begun", None
        while order != "finish":
            order, value = self.orders.get()
            try:
                match order if order == "finish" or not has_failed else None, value:
                    case "config", values:
                        run.config.update(values, allow_val_change=True)
                    case "metrics", values:
                        run.log(values)
                    case "picture", (key, path, step):
                        gif = path.endswith(".gif")
                        run.log({key: wandb.Video(path, format="gif") if gif else wandb.Image(path), "step": step})
                    case "summary", values:
                        run.summary.update(values)
                    case "finish", code:
                        run.finish(exit_code=code)
            except Exception as error:
                has_failed = True
                ends = "" if order == "finish" else "tracking ends here, the run goes on: "
                self.problems.append(ends + reason(error))
            log = Path(run.settings.log_internal)
            if order == "finish" and log.is_file():
                # Some errors W&B tells nobody but its log: a full disk, a server that answers with something else.
                text = log.read_text(errors="replace")
                self.problems += re.findall(r'"level":"ERROR","msg":"(?!monitor)((?:[^"\\]|\\.)*)"', text)
            if self.problems and not has_reported:
                has_reported = True
                rest = f"upload the rest with: wandb sync {run.settings.sync_dir}"
                self.report((logging.WARNING, f"W&B: {self.problems[0].rstrip('.')}; {rest}"))


def variables() -> list[str]:
    """The names of the variables for W&B in the environment."""
    return sorted(name for name in os.environ if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING")


def reason(error: Exception) -> str:
    """What an exception says, on one line; of a wrong setting not its value, which may be a secret."""
    if not hasattr(error, "errors"):
        return one_line(error)
    text = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())  # pydantic's
    return f"{text} (check {', '.join(variables())})" if variables() else text
